"""Published formats, recognized by their columns. docs/data.md has the table.

To add a format:

1. Write a module here with functions from a row as published to rows of the schemas, and a `Format` that names them
   (`base.py`). `hh.py` is a short example; `trl.py` reads several rows as one comparison.
2. Add the `Format` to `FORMATS`.
3. Add a row as published, with the rows that it becomes, to `CASES` in tests/test_data_formats.py, the columns to
   `PUBLISHED` in tests/test_data_loading.py, and a line to the table in docs/data.md.
"""

from rlhf.data.formats import (
    arena,
    best_answer,
    capybara,
    forums,
    helpsteer,
    hh,
    instructions,
    nectar,
    oasst,
    openai,
    saferlhf,
    summarize,
    trl,
    ultrachat,
    ultrafeedback,
    votes,
)
from rlhf.data.formats.base import Format
from rlhf.data.schemas import Row

FORMATS: dict[str, Format] = {
    "oasst": oasst.TREES,
    "oasst_messages": oasst.MESSAGES,
    "hh_rlhf": hh.HH_RLHF,
    "summarize_from_feedback": summarize.SUMMARIES,
    "summarize_from_feedback_axis": summarize.SUMMARY_AXES,
    "ultrafeedback": ultrafeedback.ULTRAFEEDBACK,
    "helpsteer2": helpsteer.HELPSTEER2,
    "helpsteer2_preference": helpsteer.HELPSTEER2_PREFERENCE,
    "helpsteer3": helpsteer.HELPSTEER3,
    "nectar": nectar.NECTAR,
    "stack_exchange_paired": forums.STACK_EXCHANGE,
    "shp": forums.SHP,
    "webgpt": forums.WEBGPT,
    "arena": arena.ARENA,
    "arena_55k": arena.ARENA_55K,
    "pku_saferlhf": saferlhf.PKU_SAFERLHF,
    "openai_preferences": openai.OPENAI_PREFERENCES,
    "capybara": capybara.CAPYBARA,
    "alpaca": instructions.ALPACA,
    "dolly": instructions.DOLLY,
    "self_instruct": instructions.SELF_INSTRUCT,
    "ultrachat": ultrachat.ULTRACHAT,
    "lima": ultrachat.LIMA,
    "trl_unpaired": trl.TRL_UNPAIRED,
    "votes": votes.VOTES,
    "best_answer": best_answer.BEST_ANSWER,
}


def detect(row: Row) -> str | None:
    """Returns the name of a row's format; None if no format matches, and the row must be in one of our schemas."""
    return next((name for name, form in FORMATS.items() if form.matches(row)), None)
