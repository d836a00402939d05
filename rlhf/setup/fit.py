"""The precision and the rows of a pass that fit the machine, by the formulas of rlhf/models/memory.py."""

from dataclasses import dataclass, replace

from rlhf.models.fitting import USABLE, in_process
from rlhf.models.memory import Memory, ppo_memory, reward_memory, sft_memory
from rlhf.models.model_sizes import Layout, Precision
from rlhf.runs.console import amount, gigabytes
from rlhf.setup.machine import Machine
from rlhf.setup.model import Model

ROWS = (16, 8, 4, 2, 1)
ENOUGH = 4  # rows of a pass; more would save less time than layers that are not computed again


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest rows, and the largest number of answers.

    Attributes:
        row: of prompt and answer, in SFT and the reward stage.
        prompt, response: of PPO.
        k: answers of a comparison, at most.
    """

    row: int
    prompt: int
    response: int
    k: int = 2


@dataclass(frozen=True)
class Fit:
    """Rows and layout that fit the memory.

    Attributes:
        precision: of the frozen base.
        rows: stage -> rows in one pass: those that fit without recomputation if they are `ENOUGH`, else with it.
        needed: stage -> bytes, by estimate.
        available: bytes.
    """

    precision: Precision
    rows: dict[str, int]
    needed: dict[str, int]
    available: int

    @property
    def fits(self) -> bool:
        return max(self.needed.values()) <= self.available

    def text(self, stage: str) -> str:
        """Returns the estimate for a stage."""
        return f"{gigabytes(self.needed[stage])} of {gigabytes(self.available)} GB by estimate"


def fit(model: Model, machine: Machine, lengths: Lengths, rank: int = 16) -> Fit:
    """Returns the first precision in which all stages fit, with the most rows; the last one if none does.

    The order is bfloat16, 4 bits; float32 is for machines without bfloat16. A CPU has no 4 bits.
    """
    available = int(USABLE * machine.gpu_memory)
    choices: list[Precision] = ["bfloat16" if machine.bf16 else "float32"]
    if not machine.gpus:
        available = machine.memory // 2  # the rest is the system's and other programs'
    elif not model.stored_as_gguf:
        choices.append("nf4-nested")
    found, device = None, "gpu" if machine.gpus else "cpu"
    for precision in choices:
        layout = Layout(precision, "ddp", max(machine.gpus, 1), machine.bf16, rank=rank)
        found = _rows(model, layout, lengths, available, device)
        if found.fits:
            return found
    assert found is not None
    return found


def _rows(model: Model, layout: Layout, lengths: Lengths, available: int, device: str) -> Fit:
    rows, needed, choices = {}, {}, [number for number in ROWS if number >= ENOUGH]
    for stage in ("sft", "reward", "ppo"):
        layout = layout.on(device, dropout=stage != "ppo")  # as `rlhf plan`; the recipe leaves lora_dropout as it is
        fast = replace(layout, checkpointing=0)
        for each, number in [*((fast, number) for number in choices), *((layout, number) for number in ROWS)]:
            memory = in_process(_memory(stage, model, each, lengths, number), device)
            rows[stage], needed[stage] = number, memory.peak
            if memory.peak <= available:
                break
    return Fit(layout.base, rows, needed, available)


def _memory(stage: str, model: Model, layout: Layout, lengths: Lengths, rows: int) -> Memory:
    if stage == "sft":
        return sft_memory(model.shape, layout, rows, lengths.row)
    if stage == "reward":
        half = max(1, lengths.row // 2)  # of the prompt, and of each answer
        return reward_memory(model.shape, layout, rows, lengths.k, half, half, rows * lengths.k)
    return ppo_memory(model.shape, layout, rows, lengths.prompt, lengths.response, 4 * rows)


def too_large(model: Model, machine: Machine, found: Fit) -> str:
    """Returns what does not fit, and the remedy."""
    stage = max(found.needed, key=found.needed.__getitem__)
    return (
        f"{model.name} ({amount(model.parameters)} parameters) does not fit this machine: {stage} needs "
        f"{gigabytes(found.needed[stage])} GB by estimate even for one row at a time, and {gigabytes(found.available)} "
        f"GB of {machine} can be used. Take a smaller model, or run on a larger machine (docs/scale.md says which)."
    )
