"""An evaluation in a model card: the tables of the report, and win rates in the Hub's format."""

import logging
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from rlhf.errors import InputError
from rlhf.evaluation.report import read_numbers
from rlhf.evaluation.report_parts import escaped, markdown
from rlhf.evaluation.report_sections import card_sections, lead
from rlhf.evaluation.report_tables import Summary, judges_of, rival
from rlhf.models.adapter_files import WEIGHTS, adapter_digest
from rlhf.runs.model_card import Evaluation, source_text
from rlhf.runs.objects import read_object
from rlhf.runs.published import is_hub_id
from rlhf.runs.system_names import label

logger = logging.getLogger(__name__)


def card_evaluation(stage_folder: str | Path, stage: str = "ppo") -> Evaluation | None:
    """Returns what the evaluation of a run found about the adapter of one stage, for its model card.

    Args:
        stage_folder: the adapter's folder. The numbers are those of the folder above.
        stage: "sft" or "ppo"; a reward model answers nothing.

    Returns:
        None if there is no adapter or it was not evaluated; if another one was, that is logged.
    """
    folder = Path(stage_folder)
    if not (folder / WEIGHTS).is_file():
        return None
    try:
        summary, benchmark = read_numbers(folder.resolve().parent)
    except InputError as error:
        logger.warning("the model card gets no evaluation: %s", error)
        return None
    if summary is None or stage not in summary["systems"]:
        return None
    answered = (read_object(folder.resolve().parent / "evaluate" / "answers" / f"{stage}.json") or {}).get("adapter")
    if answered is not None and answered != adapter_digest(folder):
        logger.warning("the model card gets no evaluation: summary.json is of another adapter than %s", folder)
        return None
    tables = markdown(card_sections(summary, benchmark), False, level=3).strip()
    folded = f"<details><summary>All tables of the evaluation</summary>\n\n{tables}\n\n</details>"
    return Evaluation(f"{escaped(lead(summary, benchmark))}\n\n{folded}", win_rates(summary, stage))


def win_rates(summary: Summary, stage: str) -> list[EvalResult]:
    """Returns a stage's win rate by each judge that nothing was trained to please, for the metadata of its card."""
    results = []
    for name, judge in judges_of(summary).items():
        wins = (judge.get("win_rate") or {}).get(stage)
        if judge.get("optimized") or not wins or not rival(summary, stage):
            continue
        results.append(_result(summary, name, stage, wins))
    return results


def _result(summary: Summary, judge: str, stage: str, wins: dict[str, Any]) -> EvalResult:
    data = str(summary["dataset"])
    return EvalResult(
        task_type="text-generation",
        dataset_type=data if is_hub_id(data) else Path(data).name,
        dataset_name=source_text(data),
        dataset_split=summary["split"],
        metric_type="win_rate",
        metric_name=f"Win rate over {label(rival(summary, stage))}, judge {judge}",
        metric_value=round(wins["mean"], 4),
        metric_args={"judge": judge, "prompts": wins.get("n"), "low": wins.get("low"), "high": wins.get("high")},
    )
