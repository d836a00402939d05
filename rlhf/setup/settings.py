"""The settings of a recipe, each with its reason, chosen from data, model and machine.

Numbers follow the shipped recipes: the paper's batches where there are rows for them, rates x steps as measured
(docs/ppo.md), few steps and short rows on a CPU.
"""

from dataclasses import dataclass
from typing import Any

from rlhf.errors import InputError
from rlhf.runs.console import amount
from rlhf.setup.data import Holding, percentile
from rlhf.setup.fit import Fit, Lengths, fit
from rlhf.setup.machine import Machine
from rlhf.setup.model import Model

Setting = tuple[str, Any, str]  # option, value, reason ("" without)
LONGEST = {"cpu": 512, "gpu": 2048}  # tokens of a row
ANSWER = {"cpu": 128, "gpu": 512}  # tokens of a sampled answer
FEW_RANKINGS = 5_000
SMALL = 500_000_000  # parameters; below, learning rates are those of small models
# Splits whose rows a stage holds to the option, and what it calls it if not by its name.
LIMITED = {"max_length": ("train", "validation"), "max_prompt_length": ("train",), "max_new_tokens": ("test",)}
NAMES = {"max_new_tokens": "the context less max_new_tokens"}


@dataclass(frozen=True)
class Facts:
    """Model, data and machine on which the settings depend."""

    name: str
    model: Model
    machine: Machine
    data: dict[str, Holding]
    lengths: Lengths
    fit: Fit

    @property
    def on(self) -> str:
        return "gpu" if self.machine.gpus else "cpu"

    @property
    def processes(self) -> int:
        """Those of a launch: one on the CPU, or one on each GPU."""
        return max(self.machine.gpus, 1)


def gather_facts(name: str, model: Model, machine: Machine, data: dict[str, Holding]) -> Facts:
    """Returns the lengths that cover the rows, and the precision that fits.

    Raises:
        InputError: a split is empty that a stage needs.
    """
    for kind, splits in {"demonstrations": ("train", "validation"), "comparisons": ("train", "validation")}.items():
        for split in splits if kind in data else ():
            _require(data[kind], split)
    if "prompts" in data:
        _require(data["prompts"], "train")
        _require(data["prompts"], "test")
    lengths = choose_lengths(model, machine, data)
    return Facts(name, model, machine, data, lengths, fit(model, machine, lengths))


def _require(found: Holding, split: str) -> None:
    if not found.rows[split]:
        raise InputError(
            f"{found.args.dataset_name} has {found.rows.total():,} {found.kind}, and none for {split}: by a hash of "
            "the first message, eight of ten conversations are for training, one for validation and one for test. Give "
            "more of them, at least 50; rows with the same first message are one conversation."
        )


def choose_lengths(model: Model, machine: Machine, data: dict[str, Holding]) -> Lengths:
    """Returns the limits in tokens: the longest row, rounded up, but no more than machine and context allow."""
    on = "gpu" if machine.gpus else "cpu"
    context = model.context or LONGEST[on]
    rows = [n for kind in ("demonstrations", "comparisons") if kind in data for n in data[kind].lengths]
    answers = [n for kind in ("demonstrations", "comparisons") if kind in data for n in data[kind].answers]
    row = min(rounded_up(max(rows, default=LONGEST[on])), LONGEST[on], context)
    response = max(8, min(rounded_up(percentile(answers, 90), 16) if answers else ANSWER[on], ANSWER[on], context // 2))
    prompts = data["prompts"].prompts if "prompts" in data else []
    prompt = min(rounded_up(max(prompts, default=row)), max(row - response, 16), context - response)
    k = data["comparisons"].k[1] if "comparisons" in data and data["comparisons"].k else 2
    return Lengths(row, prompt, response, k)


def rounded_up(number: int, step: int = 64) -> int:
    """Returns the smallest multiple of `step` that is not below a number."""
    return -(-number // step) * step


def share_of_answers(facts: Facts) -> int:
    """Returns the percentage of the longest answers that are no longer than those of PPO; 100 without any."""
    answers = [n for kind in ("demonstrations", "comparisons") if kind in facts.data for n in facts.data[kind].answers]
    return 100 * sum(n <= facts.lengths.response for n in answers) // len(answers) if answers else 100


# ---- Groups of settings that stages share ---------------------------------------------------------------------------


def source(facts: Facts, kind: str, limit: str = "") -> list[Setting]:
    """Returns the options of the data of a stage.

    Args:
        limit: option that limits the tokens of a row: max_length, max_prompt_length, max_new_tokens (a prompt and
            its answer share the context), or none.
    """
    found = facts.data[kind]
    settings: list[Setting] = [("dataset_name", found.args.dataset_name, "")]
    for name in ("dataset_config", "dataset_train_split", "dataset_format", "columns"):
        value = getattr(found.args, name)
        if value not in (None, "train"):
            best = value == "best_answer"
            settings.append((name, value, "the best answer of each ranking is learned" if best else "as it was given"))
    if reason := _skips(facts, found, limit):
        settings.append(("on_bad_rows", "skip", reason))
    return settings


def _skips(facts: Facts, found: Holding, limit: str) -> str:
    """Returns why rows are skipped; "" if none will be."""
    if found.bad:
        return f"{found.bad:,} of {found.read:,} rows cannot be used"
    most, name = _most(facts.model, facts.lengths, limit), NAMES.get(limit, limit)
    for split in LIMITED.get(limit, ()):
        lengths = found.lengths if split == "train" else found.held_out.get(split, [])
        if long := sum(most is not None and length > most for length in lengths):
            rows = "rows" if split == "train" else f"{split} rows"
            return f"{long:,} of {len(lengths):,} {rows} are longer than {name}"
    if found.rows["train"] > len(found.lengths):
        return f"the first {len(found.lengths):,} rows were measured; later ones may be longer"
    return ""


def _most(model: Model, lengths: Lengths, limit: str) -> int | None:
    """Returns the tokens that a limit allows; None for no limit."""
    room = None if model.context is None else model.context - lengths.response
    return {"max_length": lengths.row, "max_prompt_length": lengths.prompt, "max_new_tokens": room}.get(limit)


def weights(facts: Facts) -> list[Setting]:
    """Returns model and precision; every stage of a recipe has the same."""
    size, precision = amount(facts.model.parameters), facts.fit.precision
    settings: list[Setting] = [("model_name_or_path", facts.model.name, f"{size} parameters")]
    if precision == "nf4-nested":
        settings.append(("load_in_4bit", True, f"QLoRA: in 16 bits {size} parameters do not fit"))
        settings.append(("use_bnb_nested_quant", True, "saves 0.4 bits a weight more"))
    if precision == "float32":
        reason = f"this {'GPU' if facts.machine.gpus else 'CPU'} has no instructions for bfloat16"
    else:
        reason = "the frozen base; adapters stay in float32"
    settings.append(("dtype", "float32" if precision == "float32" else "bfloat16", reason))
    return settings


def training(facts: Facts, stage: str, step: int) -> list[Setting]:
    """Returns precision and rows of a pass.

    Args:
        step: rows of an optimizer step.
    """
    settings: list[Setting] = []
    if not facts.machine.bf16:
        settings.append(("bf16", False, "as dtype"))
    elif not facts.machine.gpus:
        settings.append(("bf16", True, "this CPU has instructions for it"))
    rows = min(facts.fit.rows[stage], step)
    reason = "those of a step" if rows == step else facts.fit.text(stage)
    settings.append(("per_device_train_batch_size", rows, f"rows in a pass: {reason}"))
    settings.append(("report_to", "none", "or tensorboard, trackio, wandb"))
    return settings


def endings(facts: Facts) -> list[Setting]:
    """Returns the penalty of truncated answers, unless it would punish most good answers for their length."""
    return [("missing_eos_penalty", 1.0, "penalizes truncated answers")] if share_of_answers(facts) >= 50 else []


def batch(rows: int, paper: int, steps: int, processes: int = 1) -> int:
    """Returns the paper's batch size, or a smaller power of two, at least 4, that leaves `steps` steps.

    It is rounded up to a multiple of the processes, which share a batch.
    """
    size = paper
    while size > 4 and rows / size < steps:
        size //= 2
    return rounded_up(size, processes)


def output(facts: Facts, stage: str) -> Setting:
    return ("output_dir", f"runs/{facts.name}/{stage}", "")


def rate(facts: Facts) -> Setting:
    """Returns the learning rate of SFT and reward model."""
    small = facts.model.parameters < SMALL
    reason = "more than the 1e-4 for billions of parameters" if small else "ten times that of full fine-tuning"
    return ("learning_rate", 3e-4 if small else 1e-4, f"LoRA: {reason}")
