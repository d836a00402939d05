"""The data card: one page of Markdown that says what a prepared data set holds and what was left out of it."""

import random
from collections import Counter, defaultdict
from typing import Any

from rlhf.data.encode import prompt_text
from rlhf.data.personal import mask
from rlhf.data.prepare import REASONS, Decision, PrepareArguments

SPLITS = ("train", "validation", "test")
EXAMPLES = 10
EXAMPLES_A_KIND = 3  # of personal data, masked
LONGEST_EXAMPLE = 300
CATEGORIES = 50  # a column of free text is none
BAR = 40


class DataCard:
    """Counts of decisions, as they are made; nothing of it grows with the data.

    Args:
        seed: draws the examples, evenly from all prompts that are kept for training.
    """

    def __init__(self, seed: int = 0):
        self.kept: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {reason: Counter() for reason in REASONS}
        self.categories: dict[str, Counter[str]] = defaultdict(Counter)
        self.lengths: dict[str, Counter[int]] = defaultdict(Counter)
        self.personal: Counter[str] = Counter()
        self.masked: dict[str, list[str]] = defaultdict(list)
        self.examples: list[str] = []
        self._rng = random.Random(seed)

    def add(self, decision: Decision) -> None:
        """Counts a prompt that was kept or dropped."""
        text, split = prompt_text(decision.row["prompt"]), decision.split
        if decision.reason is not None:
            self.dropped[decision.reason][split] += 1
            for kind in {found.kind for found in decision.found}:
                if len(self.masked[kind]) < EXAMPLES_A_KIND:
                    masked = mask(text, decision.found)
                    self.masked[kind].append(_excerpt(masked, around=masked.index(f"[{kind}]")))
            self.personal.update(found.kind for found in decision.found)
            return
        self.kept[split] += 1
        category = decision.row.get("category") or "(none)"
        if category not in self.categories and len(self.categories) >= CATEGORIES:
            category = "(others)"
        self.categories[category][split] += 1
        self.lengths[split][decision.tokens.bit_length()] += 1
        if split == "train":
            self._draw(text)

    def counts(self) -> dict[str, Any]:
        """All numbers of the card."""
        return {
            "kept": dict(self.kept),
            "dropped": {reason: dict(by_split) for reason, by_split in self.dropped.items()},
            "personal_data": dict(self.personal),
            "categories": {name: dict(by_split) for name, by_split in self.categories.items()},
        }

    def render(self, source: str, args: PrepareArguments, rows_read: int, bad_rows: int) -> str:
        """The card.

        Args:
            source: what was read, for the reader.
            rows_read, bad_rows: rows of the source, and those of them that could not be used.
        """
        rules = (
            f"At most {args.max_prompt_length} tokens (tokenizer of {args.model_name_or_path}), at most "
            f"{args.max_per_user} prompts a user; of prompts that share their first {args.duplicate_prefix} characters "
            f"one is kept. {args.held_out_share:.0%} of the users are in validation and as many in test, none in two."
        )
        parts = [
            f"# Prompts from {source}",
            f"{rows_read:,} rows were read; {bad_rows:,} could not be used and are in skipped_rows.jsonl. {rules}",
            "## Kept and dropped",
            _table("prompts", {"kept": self.kept, **{f"dropped: {k}": v for k, v in self.dropped.items()}}),
            "## Use cases",
            _table("category", dict(sorted(self.categories.items(), key=lambda item: -item[1].total()))),
            "## Lengths in tokens",
            *(_histogram(split, self.lengths[split]) for split in SPLITS if self.lengths[split]),
            "## Personal data in the training split",
            *self._personal(args),
            "## Examples from the training split",
            *(_quote(_excerpt(text)) for text in self.examples),
        ]
        return "\n\n".join(parts) + "\n"

    def _personal(self, args: PrepareArguments) -> list[str]:
        if args.personal_data == "keep":
            return ["It was not looked for."]
        about = "Found by its form; names and postal addresses have none. Prompts with any of it were dropped."
        rows = [f"| {kind} | {count:,} |" for kind, count in self.personal.most_common()]
        table = "\n".join(["| kind | found |", "|---|---|", *rows])
        return [about, table, *(_quote(text) for texts in self.masked.values() for text in texts)]

    def _draw(self, text: str) -> None:
        """Reservoir sampling: every text so far is among the examples with the same probability."""
        if len(self.examples) < EXAMPLES:
            self.examples.append(text)
        elif (place := self._rng.randrange(self.kept["train"])) < EXAMPLES:
            self.examples[place] = text


def _table(title: str, rows: dict[str, Counter[str]]) -> str:
    lines = [
        f"| {_cell(name)} | {' | '.join(f'{counts[split]:,}' for split in SPLITS)} |" for name, counts in rows.items()
    ]
    return "\n".join([f"| {title} | {' | '.join(SPLITS)} |", "|---|---|---|---|", *lines])


def _histogram(split: str, lengths: Counter[int]) -> str:
    """Bars of lengths that double: a bit length of n is lengths from 2^(n-1) to 2^n - 1."""
    most = max(lengths.values())
    lines = [
        f"{2 ** (bits - 1):>6} - {2**bits - 1:<6} {'#' * round(BAR * lengths[bits] / most):<{BAR}} {lengths[bits]:,}"
        for bits in range(min(lengths), max(lengths) + 1)
    ]
    return "\n".join(["```", split, *lines, "```"])


def _excerpt(text: str, around: int = 0) -> str:
    """`LONGEST_EXAMPLE` characters of the text, those around a place in the middle where it allows."""
    start = max(0, min(around - LONGEST_EXAMPLE // 2, len(text) - LONGEST_EXAMPLE))
    end = start + LONGEST_EXAMPLE
    return ("... " if start else "") + text[start:end] + (" ..." if end < len(text) else "")


def _quote(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.splitlines())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
