"""Configuration of the reward model stage."""

from dataclasses import dataclass, field
from typing import Literal

from trl import RewardConfig

from rlhf.errors import InputError


@dataclass
class KWiseRewardConfig(RewardConfig):
    """TRL's RewardConfig with the paper's numbers as defaults (arXiv 2203.02155, appendix C.2).

    A batch is counted in prompts; each brings its K completions and all C(K, 2) pairs of them.
    """

    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Passes over the comparisons; the reward model overfits after one."}
    )
    # The paper's 9e-6 moves all weights. LoRA needs about ten times the rate of full fine-tuning, whatever the model
    # (thinkingmachines.ai/blog/lora); a model of a few million parameters takes ten times more still.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate, for LoRA."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Cosine to 10 %% of the peak, no warm-up."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second beta; the first is 0.9."})
    # 8 * 8 = 64 prompts a step on one device. Launched on n devices, divide one of the two by n.
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Prompts a device takes at a time."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Such batches in one optimizer step."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Prompts a device takes in evaluation."})
    completions_per_forward: int = field(
        default=32,
        metadata={
            "help": "A batch's completions pass the model in parts of about this size (whole prompts, sorted by "
            "length), which changes the memory needed and not the loss."
        },
    )
    shuffled_pairs: bool = field(
        default=False,
        metadata={
            "help": "The paper's ablation: every pair is an example of its own, shuffled over the data set, and "
            "batches are counted in pairs. A completion is then trained on K - 1 times an epoch, which overfits."
        },
    )
    cross_validate: Literal["labelers", "labeler_groups", "prompts"] | None = field(
        default=None,
        metadata={
            "help": "Train and evaluate in five folds of the training data instead, each time without one fifth of "
            "the labelers or prompts, or without one group of labelers; no model is kept."
        },
    )
    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the SFT adapter whose LoRA weights the reward model starts from; '' for none."
        },
    )
    calibration_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Demonstrations whose mean score becomes 0: `sandbox`, a Hub name, a local file or folder. "
            "Default: those of dataset_name, where it has demonstrations."
        },
    )
    calibration_dataset_config: str | None = field(
        default=None, metadata={"help": "Its configuration on the Hub; for OpenAssistant the language."}
    )
    calibration_size: int = field(default=512, metadata={"help": "At most this many demonstrations are scored."})

    def __post_init__(self):
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()
        self.sft_model_path = self.sft_model_path or None  # "" on the command line takes back what a recipe says
        for name in ("completions_per_forward", "calibration_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 1.")
        if self.cross_validate and str(self.resume_from_checkpoint or "false").lower() not in ("true", "false"):
            raise InputError(
                "cross_validate keeps no checkpoints, but every finished fold; to go on after those, set "
                "resume_from_checkpoint to true."
            )
