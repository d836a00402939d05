"""TRL's unpaired preferences: {"prompt", "completion", "label": true or false}, one completion per row.

Files without truth values spell them 1 and 0, 1.0 and 0.0, or as words. LLaMA-Factory names the label kto_tag. Prompt
and completion may have any name that a demonstration has. `rlhf.data.schemas` reads TRL's other formats.
"""

import json
from collections.abc import Iterator

from rlhf.data.checks import truth_value
from rlhf.data.encode import completion_text, prompt_key
from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import OPTIONAL_COLUMNS, RowError, demonstration
from rlhf.data.spellings import COMPLETIONS, CONVERSATIONS, HISTORY, QUESTIONS, SYSTEMS

LABELS = ("label", "kto_tag")
ANSWERS = ("completion", "messages", *COMPLETIONS, *CONVERSATIONS)
WORDS = {"good": True, "desirable": True, "chosen": True, "bad": False, "undesirable": False, "rejected": False}


def is_labeled(row: Row) -> bool:
    """True for an answer with a column for its label, be it empty or of another meaning: it is no demonstration."""
    return any(label in row for label in LABELS) and any(row.get(answer) is not None for answer in ANSWERS)


def comparisons(rows: list[Row]) -> Iterator[Row]:
    """Ranks the good completions of a prompt above the bad ones; no row if all are good, or all bad."""
    ranks = [0 if _is_good(row) else 1 for row in rows]
    if len(set(ranks)) == 2:
        answered = [_without_label(row) for row in rows]
        same = {
            n: answered[0][n]
            for n in OPTIONAL_COLUMNS
            if n in answered[0] and len({row.get(n) for row in answered}) == 1
        }
        completions = [completion_text(row["completion"]) for row in answered]
        yield {"prompt": answered[0]["prompt"], "completions": completions, "ranks": ranks, **same}


def demonstrations(rows: list[Row]) -> Iterator[Row]:
    """Yields the good completions."""
    for row in rows:
        if _is_good(row):
            yield _without_label(row)


def prompts(rows: list[Row]) -> Iterator[Row]:
    yield _without_label(rows[0])


def labeled_prompt(row: Row) -> str:
    """Returns the prompt as the key of a labeled completion."""
    _is_good(row)
    return json.dumps(prompt_key(_without_label(row)["prompt"]))


def _is_good(row: Row) -> bool:
    names = [name for name in LABELS if name in row]
    filled = [name for name in names if row[name] is not None]
    if len(filled) > 1:
        raise RowError(
            f"columns {' and '.join(filled)} are two labels; leave one out with --columns ignore={filled[1]}"
        )
    name = (filled or names or ["label"])[0]
    label = row.get(name)
    if isinstance(label, str) and label.strip().lower() in WORDS:
        return WORDS[label.strip().lower()]
    try:
        return truth_value(label, f"column {name}")
    except RowError as error:
        raise RowError(
            f"{error}; if it says nothing about the answer, leave it out with --columns ignore={name}"
        ) from error


def _without_label(row: Row) -> Row:
    return demonstration({name: value for name, value in row.items() if name not in LABELS})


TRL_UNPAIRED = Format(
    title="unpaired preferences",
    matches=is_labeled,
    columns=("prompt", *LABELS, *ANSWERS, *QUESTIONS, *SYSTEMS, HISTORY, *OPTIONAL_COLUMNS),
    kinds={"comparisons": comparisons, "demonstrations": demonstrations, "prompts": prompts},
    assemble_by=labeled_prompt,
)
