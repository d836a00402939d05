"""Rankings as demonstrations: the best answer of each is what SFT learns. Chosen with `dataset_format` only.

Rankings in our own columns and TRL's pairs have no demonstrations by themselves: the best of a few answers may be a bad
one. Where people wrote no demonstrations, it is what there is.
"""

from collections.abc import Iterator

from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import KNOWN, OPTIONAL_COLUMNS, comparison


def demonstrations(row: Row) -> Iterator[Row]:
    """Takes the best answer, the first of equals. A row whose answers all tie has none."""
    compared = comparison(row)
    ranks = compared["ranks"]
    if max(ranks) > 0:
        kept = {name: compared[name] for name in OPTIONAL_COLUMNS if name in compared}
        yield {"prompt": compared["prompt"], "completion": compared["completions"][ranks.index(0)], **kept}


def as_it_is(row: Row) -> Iterator[Row]:
    """Leaves a row to the schema."""
    yield row


BEST_ANSWER = Format(
    title="rankings whose best answers are demonstrations",
    matches=lambda row: False,
    columns=tuple(sorted(KNOWN)),
    kinds={"demonstrations": demonstrations, "comparisons": as_it_is, "prompts": as_it_is},
)
