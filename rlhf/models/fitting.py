"""A stage's memory beside that of its device: the margin, the process around it, and the micro-batch that fits.

`gradient_checkpointing: auto`, `per_device_train_batch_size: auto`, `rlhf plan` and `rlhf new` take it from here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlhf.models.memory import Memory

USABLE = 0.85  # of a memory: the formulas may be off by 15 % (docs/scale.md)
LIBRARIES = 640_000_000  # bytes of Python and its libraries in a process on a CPU; with a GPU they are in main memory
KEPT_FREE = 0.3  # of what a CPU's process frees, glibc keeps this share: it grows by more than its tensors take
EVERY = (0, 8, 4, 2, 1)  # recomputation, the least first: of no layer, of each eighth layer, ..., of all


def in_process(memory: Memory, device: str) -> Memory:
    """Returns a stage's memory with what a process on a CPU ("cpu") takes beside its tensors; on a GPU as it is."""
    if device != "cpu":
        return memory
    phases = {
        phase: terms | {"freed, but kept by the process": round(KEPT_FREE * sum(terms.values()))}
        for phase, terms in memory.phases.items()
    }
    return replace(memory, resident=memory.resident | {"Python and libraries": LIBRARIES}, phases=phases)


def fits(memory: Memory, available: float) -> bool:
    """True if a stage takes at most `USABLE` of the available bytes."""
    return memory.peak <= USABLE * available


@dataclass(frozen=True)
class Divisions:
    """Rows that may pass at a time, the most first.

    Attributes:
        enough: those with enough tokens for the full speed of the device; the first of all if none has.
        fewer: the others.
    """

    enough: list[int]
    fewer: list[int]


def tokens_wanted(largest: int, device: str, padded: bool) -> tuple[int, int]:
    """Returns from how many tokens on a device is busy with a micro-batch, and from how many on more save no time.

    A GPU has `largest` tokens in a pass, and an eighth of them, 2,048, keep it busy. A CPU is as fast with `largest` as
    with more. But a stage that cuts a micro-batch into passes of similar rows finds more of them in a larger one, up to
    8 `largest`. Where all rows are padded to the longest, more rows are more padding: up to 2 `largest`.

    Args:
        largest: of `rlhf.models.pass_limits`.
        device: "cpu", else a GPU.
        padded: a micro-batch passes as it is, padded to its longest row.
    """
    return (largest, (2 if padded else 8) * largest) if device == "cpu" else (largest // 8, largest)


def divisions(share: int, tokens: float, wanted: tuple[int, int]) -> Divisions:
    """Returns the divisors of `share` with which a micro-batch has at most as many tokens as save time, and 1.

    Args:
        share: rows of an optimizer step on each device.
        tokens: of a row, on average.
        wanted: of `tokens_wanted`.
    """
    least, most = wanted
    rows = [n for n in range(share, 0, -1) if share % n == 0 and (n * tokens <= most or n == 1)]
    enough = [n for n in rows if n * tokens >= least] or rows[:1]
    return Divisions(enough, rows[len(enough) :])


def choose_division(
    memory_of: Callable[[int, int], Memory], rows: Divisions, available: float, every: Sequence[int] = EVERY
) -> tuple[int, int]:
    """Returns the first (rows, n) that fits: the rows of a pass, and that each n-th layer is computed again.

    Enough rows come before fewer. Of enough rows, less recomputation comes first, then more rows; of fewer rows, more
    rows come first. Where nothing fits, it is the first that takes no more than the last: PPO's sampling may take most.

    Args:
        memory_of: a stage's memory, by rows and n.
        available: bytes.
        every: choices of n, the least recomputation first.
    """
    choices = [(number, n) for n in every for number in rows.enough]
    choices += [(number, n) for number in rows.fewer for n in every]
    least = memory_of((rows.enough + rows.fewer)[-1], every[-1]).peak
    return next(choice for choice in choices if memory_of(*choice).peak <= max(USABLE * available, least))
