"""TRL's unpaired preferences: {"prompt", "completion", "label": true or false}, one completion per row.

Files without truth values spell them 1 and 0, or as words. `rlhf.data.schemas` reads TRL's other formats.
"""

import json
from collections.abc import Iterator

from rlhf.data.encode import prompt_key
from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import RowError, check_prompt

TRUTH_VALUES = {"true": True, "1": True, "false": False, "0": False}


def is_unpaired(row: Row) -> bool:
    return "completion" in row and _is_good(row) is not None


def _is_good(row: Row) -> bool | None:
    label = row.get("label")
    return TRUTH_VALUES.get(str(label).lower()) if isinstance(label, bool | int | str) else None


def comparisons(rows: list[Row]) -> Iterator[Row]:
    """Ranks the good completions of a prompt above the bad ones; no row if all are good, or all bad."""
    ranks = [0 if _is_good(row) else 1 for row in rows]
    if len(set(ranks)) == 2:
        completions = [row["completion"] for row in rows]
        yield {"prompt": rows[0]["prompt"], "completions": completions, "ranks": ranks}


def demonstrations(rows: list[Row]) -> Iterator[Row]:
    """Yields the good completions."""
    for row in rows:
        if _is_good(row):
            yield {"prompt": row["prompt"], "completion": row["completion"]}


def prompts(rows: list[Row]) -> Iterator[Row]:
    yield {"prompt": rows[0]["prompt"]}


def labeled_prompt(row: Row) -> str:
    """Returns the prompt as the key of a labeled completion."""
    if _is_good(row) is None:
        raise RowError(f"column label is {row.get('label')!r:.40}; true or false is needed")
    if row.get("prompt") is None or row.get("completion") is None:
        raise RowError("no column prompt or no column completion; add it")
    return json.dumps(prompt_key(check_prompt(row["prompt"])))


TRL_UNPAIRED = Format(
    title="unpaired preferences",
    matches=is_unpaired,
    kinds={"comparisons": comparisons, "demonstrations": demonstrations, "prompts": prompts},
    assemble_by=labeled_prompt,
)
