"""Says during training that the model learns the tastes of its labelers rather than what people prefer."""

import logging

from transformers import TrainerCallback

logger = logging.getLogger(__name__)

GAP, GAP_LOW = "eval_labeler_gap", "eval_labeler_gap_low"


class LabelerGapWarning(TrainerCallback):
    """Warns when accuracy on held-out labelers falls away from that on the labelers trained on.

    `labeler_gap` is the second minus the first. It is rarely 0: groups differ in how much they agree (in the paper, the
    held-out ones agreed more, 77.3 to 72.6 %). So what counts is that it has grown: the lower end of its 95 % interval
    is above the least gap of the run so far. It needs an evaluation during training (`eval_strategy`).
    """

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        gap, low = (metrics or {}).get(GAP), (metrics or {}).get(GAP_LOW)
        if gap is None or low is None:
            return
        # The Trainer has logged this evaluation already; its history outlasts a stop.
        *earlier, _ = [log[GAP] for log in state.log_history if GAP in log]
        if earlier and low > max(min(earlier), 0.0):
            logger.warning(
                "step %d: accuracy on held-out labelers is %.3f below that on training labelers (95 %% interval from "
                "%.3f), at its least it was %.3f; fewer epochs, a lower learning rate or more labelers help.",
                state.global_step, gap, low, min(earlier),
            )  # fmt: skip
