"""Prepares prompts as in the paper (section 3.2, appendix A.2), from a source of any size.

Each prompt is read once, in the order of the source, and dropped for the first reason that applies:

    longer than max_prompt_length tokens
    personal data, in the training split
    long prefix in common with an earlier prompt
    its user has max_per_user prompts already

The split is that of the conversation (`rlhf.data.splits`), as in all stages. A temporary file keeps 16 bytes of each
earlier prompt.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf.data.encode import Prompt, plain_messages, prompt_key, prompt_text
from rlhf.data.personal import PersonalData, PersonalSpan
from rlhf.data.splits import Split, split_of
from rlhf.errors import require_at_least

TOO_LONG, PERSONAL, DUPLICATE, TOO_MANY = REASONS = (
    "too long",
    "personal data",
    "long prefix in common with an earlier prompt",
    "user has enough prompts",
)


@dataclass
class PrepareArguments:
    """Options of `rlhf data`; the defaults are the paper's where it names them."""

    output_dir: str = field(metadata={"help": "Folder for the prepared prompts and their card."})
    model_name_or_path: str = field(metadata={"help": "Model whose tokenizer counts the tokens of a prompt."})
    max_prompt_length: int = field(
        default=1000, metadata={"help": "Longest prompt, in tokens, chat template included."}
    )
    max_per_user: int = field(default=200, metadata={"help": "Prompts to keep of one user_id, at most."})
    duplicate_prefix: int = field(
        default=200,
        metadata={"help": "Characters. Prompts with the same first N (or the same text, if shorter) are duplicates."},
    )
    personal_data: Literal["drop", "keep"] = field(
        default="drop",
        metadata={"help": "drop: leave out training prompts with personal data. keep: do not look for it."},
    )
    phone_region: str = field(
        default="US", metadata={"help": "Country code (US, DE) of telephone numbers that have none."}
    )

    def __post_init__(self):
        require_at_least(self, 1, "max_prompt_length", "max_per_user", "duplicate_prefix")


@dataclass(frozen=True)
class Decision:
    """The decision on a prompt.

    Attributes:
        row: row of the schema of prompts.
        split: train, validation or test.
        tokens: length of the encoded prompt.
        reason: one of `REASONS` if it is dropped, None if it is kept.
        personal_data: spans of `prompt_text` of the prompt, if it was searched.
    """

    row: dict[str, Any]
    split: Split
    tokens: int
    reason: str | None
    personal_data: list[PersonalSpan] = field(default_factory=list)


def decide(
    rows: Iterable[dict[str, Any]],
    args: PrepareArguments,
    count_tokens: Callable[[Prompt], int],
    personal: PersonalData | None,
) -> Iterator[Decision]:
    """Yields a decision for each row, in order.

    Args:
        rows: rows of the schema of prompts.
        count_tokens: returns the number of tokens of an encoded prompt.
        personal: finds personal data in training prompts; None leaves it in.
    """
    seen = _Seen()
    for row in rows:
        prompt, split = row["prompt"], split_of(row)
        tokens, spans, reason = count_tokens(prompt), [], None
        if tokens > args.max_prompt_length:
            reason = TOO_LONG
        elif personal is not None and split == "train" and (spans := personal.find(prompt_text(prompt))):
            reason = PERSONAL
        elif seen.has_prefix(prefix := prefix_key(prompt, args.duplicate_prefix)):
            reason = DUPLICATE
        elif row.get("user_id") is not None and seen.count_user(row["user_id"]) > args.max_per_user:
            reason = TOO_MANY
        else:
            seen.add_prefix(prefix)
        yield Decision(row, split, tokens, reason, spans)


def prefix_key(prompt: Prompt, length: int) -> str:
    """Returns a key that is equal for duplicates.

    Duplicates have the same conversation before the last message, and last messages with the same first `length`
    characters (or the same text, if shorter). Case and the amount of white space do not count.
    """
    before, last = ([], prompt) if isinstance(prompt, str) else (plain_messages(prompt[:-1]), prompt[-1]["content"])
    return prompt_key(before) + " ".join(last.casefold().split())[:length]


class _Seen:
    """Prefixes of the prompts kept so far, and counts of users, in a temporary file."""

    def __init__(self):
        # "": a file that SQLite deletes, with the recent pages in memory
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute("BEGIN")
        self._table.execute("CREATE TABLE prefixes (hash PRIMARY KEY) WITHOUT ROWID")
        self._table.execute("CREATE TABLE users (hash PRIMARY KEY, prompts) WITHOUT ROWID")

    def has_prefix(self, key: str) -> bool:
        return self._table.execute("SELECT 1 FROM prefixes WHERE hash = ?", (_digest(key),)).fetchone() is not None

    def add_prefix(self, key: str) -> None:
        self._table.execute("INSERT INTO prefixes VALUES (?)", (_digest(key),))

    def count_user(self, user: str) -> int:
        """Counts this call, and returns the number of calls for this user."""
        add = "INSERT INTO users VALUES (?, 1) ON CONFLICT DO UPDATE SET prompts = prompts + 1 RETURNING prompts"
        ((count,),) = self._table.execute(add, (_digest(user),)).fetchall()
        return count


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
