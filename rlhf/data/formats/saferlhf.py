"""PKU-Alignment/PKU-SafeRLHF: {"prompt", "response_0", "response_1", "better_response_id", "safer_response_id"}.

People say which answer is better and which is safer. Where the two verdicts differ, a ranking needs one of them:
--columns ignore=safer_response_id keeps the better one.
"""

from collections.abc import Iterator

from rlhf.data.checks import integer
from rlhf.data.formats.base import Format, Row, required_text
from rlhf.data.schemas import RowError

ANSWERS = ("response_0", "response_1")
VERDICTS = ("better_response_id", "safer_response_id")
ABOUT = ("is_response_{}_safe", "response_{}_harm_category", "response_{}_severity_level", "response_{}_source")


def is_rated_pair(row: Row) -> bool:
    return {"prompt", *ANSWERS} <= row.keys() and any(name in row for name in VERDICTS)


def comparisons(row: Row) -> Iterator[Row]:
    verdicts = {name: _answer(row, name) for name in VERDICTS if row.get(name) is not None}
    if len(set(verdicts.values())) > 1:
        raise RowError(
            "better_response_id and safer_response_id name different answers; choose one verdict: leave the other out "
            "with --columns ignore=safer_response_id, or ignore=better_response_id"
        )
    if not verdicts:
        raise RowError(f"columns {', '.join(VERDICTS)} are empty; one verdict is needed")
    better = next(iter(verdicts.values()))
    yield {"prompt": required_text(row, "prompt")} | {
        name: required_text(row, ANSWERS[i]) for name, i in (("chosen", better), ("rejected", 1 - better))
    }


def prompts(row: Row) -> Iterator[Row]:
    yield {"prompt": required_text(row, "prompt")}


def _answer(row: Row, column: str) -> int:
    value = integer(row[column])
    if type(value) is not int or value not in (0, 1):
        raise RowError(f"column {column} is {row[column]!r:.40}; 0 or 1 is needed, the number of an answer")
    return value


PKU_SAFERLHF = Format(
    title="pairs that are judged by quality and by safety",
    matches=is_rated_pair,
    columns=("prompt", *ANSWERS, *VERDICTS, "prompt_source", *(name.format(i) for name in ABOUT for i in (0, 1))),
    kinds={"comparisons": comparisons, "prompts": prompts},
)
