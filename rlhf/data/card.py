"""The data card: a page of Markdown on what a prepared data set holds and what was dropped."""

import hashlib
import random
import sqlite3
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rlhf.data.encode import prompt_text
from rlhf.data.personal import mask
from rlhf.data.prepare import REASONS, Decision, PrepareArguments
from rlhf.data.splits import SPLITS, Split
from rlhf.runs.markdown import markdown_table, render_template

TEMPLATE = Path(__file__).with_name("card.md.j2")
EXAMPLES = 10
EXAMPLES_PER_KIND = 3  # of personal data, masked
LONGEST_EXAMPLE = 300  # characters
CATEGORIES = 50  # at most; a column of free text holds no categories
BAR = 40  # characters


class DataCard:
    """Counts decisions one by one, in memory that does not grow with the data.

    Args:
        seed: seed of the examples, a uniform sample of the prompts kept for training.
    """

    def __init__(self, seed: int = 0):
        self.kept: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {reason: Counter() for reason in REASONS}
        self.categories: dict[str, Counter[str]] = defaultdict(Counter)
        self.lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self.personal: Counter[str] = Counter()
        self.masked: dict[str, list[str]] = defaultdict(list)
        self.examples: list[str] = []
        self._users = _Users()
        self._rng = random.Random(seed)

    def add(self, decision: Decision) -> None:
        """Counts a prompt that was kept or dropped."""
        text, split = prompt_text(decision.row["prompt"]), decision.split
        if decision.reason is not None:
            self.dropped[decision.reason][split] += 1
            for kind in {span.kind for span in decision.personal_data}:
                if len(self.masked[kind]) < EXAMPLES_PER_KIND:
                    masked = mask(text, decision.personal_data)
                    self.masked[kind].append(_excerpt(masked, around=masked.index(f"[{kind}]")))
            self.personal.update(span.kind for span in decision.personal_data)
            return
        self.kept[split] += 1
        if decision.row.get("user_id") is not None:
            self._users.add(decision.row["user_id"], split)
        category = decision.row.get("category") or "(none)"
        if category not in self.categories and len(self.categories) >= CATEGORIES:
            category = "(others)"
        self.categories[category][split] += 1
        self.lengths[split][decision.tokens.bit_length()] += 1
        if split == "train":
            self._draw(text)

    def counts(self) -> dict[str, Any]:
        """Returns all numbers of the card."""
        users, shared = self._users.counts()
        return {
            "kept": dict(self.kept),
            "users": users,
            "users_in_several_splits": shared,
            "dropped": {reason: dict(by_split) for reason, by_split in self.dropped.items()},
            "personal_data": dict(self.personal),
            "categories": {name: dict(by_split) for name, by_split in self.categories.items()},
        }

    def render(self, source: str, args: PrepareArguments, rows_read: int, bad_rows: int) -> str:
        """Returns the page.

        Args:
            source: name of the data that was read.
            rows_read, bad_rows: numbers of rows that were read, and that could not be used.
        """
        decisions = {"kept": self.kept, **{f"dropped: {reason}": splits for reason, splits in self.dropped.items()}}
        categories = dict(sorted(self.categories.items(), key=lambda item: -item[1].total()))
        users, shared = self._users.counts()
        personal_data = [(kind, f"{count:,}") for kind, count in self.personal.most_common()]
        return render_template(
            TEMPLATE,
            source=source,
            args=args,
            rows_read=rows_read,
            bad_rows=bad_rows,
            users=users,
            shared_users=shared,
            decisions=_split_table("prompts", decisions),
            categories=_split_table("category", categories),
            lengths=[_histogram(split, self.lengths[split]) for split in SPLITS if self.lengths[split]],
            personal_data=markdown_table(["kind", "found"], personal_data),
            masked_prompts=[_quote(text) for texts in self.masked.values() for text in texts],
            examples=[_quote(_excerpt(text)) for text in self.examples],
        )

    def _draw(self, text: str) -> None:
        """Samples by reservoir: each text so far is among the examples with the same probability."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)
        elif (place := self._rng.randrange(self.kept["train"])) < EXAMPLES:
            self.examples[place] = text


class _Users:
    """Users of kept prompts and their splits, in a temporary file."""

    def __init__(self):
        self._table = sqlite3.connect("", isolation_level=None)  # "": a file that SQLite deletes
        self._table.execute("BEGIN")
        self._table.execute("CREATE TABLE users (hash, split, PRIMARY KEY (hash, split)) WITHOUT ROWID")

    def add(self, user: str, split: Split) -> None:
        digest = hashlib.blake2b(user.encode(), digest_size=16).digest()
        self._table.execute("INSERT OR IGNORE INTO users VALUES (?, ?)", (digest, SPLITS.index(split)))

    def counts(self) -> tuple[int, int]:
        """Returns the numbers of users, and of users in more than one split."""
        of_each = "SELECT count(*) AS splits FROM users GROUP BY hash"
        ((users, shared),) = self._table.execute(f"SELECT count(*), total(splits > 1) FROM ({of_each})").fetchall()
        return users, int(shared)


def _split_table(title: str, counts: dict[str, Counter[str]]) -> str:
    """Returns a table with a row for each name: its count in each split."""
    rows = [(name, *(f"{by_split[split]:,}" for split in SPLITS)) for name, by_split in counts.items()]
    return markdown_table([title, *SPLITS], rows)


def _histogram(split: str, lengths: Counter[int]) -> str:
    """Returns a bar for each bit length; bit length n covers lengths from 2^(n-1) to 2^n - 1."""
    most = max(lengths.values())
    lines = [
        f"{2 ** (bits - 1):>6} - {2**bits - 1:<6} {'#' * round(BAR * lengths[bits] / most):<{BAR}} {lengths[bits]:,}"
        for bits in range(min(lengths), max(lengths) + 1)
    ]
    return "\n".join(["```", split, *lines, "```"])


def _excerpt(text: str, around: int = 0) -> str:
    """Returns at most `LONGEST_EXAMPLE` characters of the text, with position `around` in the middle if possible."""
    start = max(0, min(around - LONGEST_EXAMPLE // 2, len(text) - LONGEST_EXAMPLE))
    end = start + LONGEST_EXAMPLE
    return ("... " if start else "") + text[start:end] + (" ..." if end < len(text) else "")


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())
