"""Names of systems: words for readers, and the baseline that each is compared with. No library is loaded."""

from collections.abc import Iterable

NAMES = {"base": "Base", "sft": "SFT", "sft_best": "SFT, best of n", "ppo": "RLHF"}  # for readers
GREEDY = "_greedy"  # at the end of a system's name: it is compared with the greedy baseline


def label(system: str) -> str:
    """Returns the name of a system for readers: `ppo_greedy` is `RLHF, greedy`."""
    stem = system.removesuffix(GREEDY)
    name = NAMES.get(stem, stem)
    return name if stem == system else f"{name}, greedy"


def rival(system: str, baseline: str, systems: Iterable[str]) -> str | None:
    """Returns the system that `system` is compared with: a greedy one with the greedy baseline, if there is one.

    None for the baseline itself, with any decoding, and without a baseline.
    """
    names = set(systems)
    greedy_baseline = baseline + GREEDY
    other = greedy_baseline if system.endswith(GREEDY) and greedy_baseline in names else baseline
    return other if other in names and system not in (baseline, greedy_baseline) else None
