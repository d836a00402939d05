"""A stage's memory beside that of its device: the margin, the process around it, and as little recomputation as fits.

`gradient_checkpointing: auto`, `rlhf plan` and `rlhf new` all take a stage's memory from here.
"""

from collections.abc import Callable
from dataclasses import replace

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


def least_recomputation(memory_of: Callable[[int], Memory], available: float) -> int:
    """Returns the first n of `EVERY` with which a stage fits, or takes no more than with n = 1, since it samples.

    Args:
        memory_of: a stage's memory with each n-th layer computed again in backward.
        available: bytes.
    """
    least = memory_of(1).peak
    return next(n for n in EVERY if fits(memory_of(n), available) or memory_of(n).peak == least)
