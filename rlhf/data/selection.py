"""Selects the rows of one split among all rows of a source: its own splits, the counts, and too few rows."""

import logging
from collections.abc import Iterable, Iterator

from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.schemas import Row
from rlhf.data.sources import Splits
from rlhf.data.splits import SPLITS, Split, conversation_id, split_of_name
from rlhf.errors import InputError
from rlhf.runs.artifacts import say_once

FEW = 30  # conversations


def own_splits(
    source: Splits, args: DataArguments, splits: tuple[Split, ...] = SPLITS, named: str | None = None
) -> dict[str, Split]:
    """Returns the source's own splits that may have rows of `splits`: name -> train, validation or test.

    Besides the train split, these are splits that are named with nothing but a word for validation or test. They come
    first, so that a limited number of rows is taken from what the source holds out.

    Args:
        named: the one split of the source to use in full.

    Raises:
        InputError: there is none.
    """
    if named is not None:
        if named not in source:
            raise InputError(
                f"{args.dataset_name} has no split {named}, only {', '.join(source)}; name one of these with "
                "dataset_test_split."
            )
        if named == args.dataset_train_split or split_of_name(named) == "train":
            raise InputError(
                f"dataset_test_split is {named}, a split to train on. Name one that the source holds out, or leave "
                "dataset_test_split out: a tenth of the train split's conversations is never trained on."
            )
        return {named: split_of_name(named) or "test"}
    roles: dict[str, Split] = {args.dataset_train_split: "train"} if args.dataset_train_split in source else {}
    for own in source:
        role = split_of_name(own, whole=True)
        if role in ("validation", "test") and any(may_serve(role, split) for split in splits):
            roles[own] = role
    if not roles:
        raise InputError(
            f"{args.dataset_name} has no split {args.dataset_train_split}, only {', '.join(source)}. Name the split to "
            "train on with dataset_train_split; files and splits named validation or test are never trained on."
        )
    return dict(sorted(roles.items(), key=lambda item: -SPLITS.index(item[1])))


def may_serve(own: Split, split: Split) -> bool:
    """True if rows of the source's own split `own` may be in `split`.

    Rows of the train split may be held out. Rows that a source holds out are never trained on, and no choice is made on
    its test rows.
    """
    return SPLITS.index(own) <= SPLITS.index(split)


class Selection:
    """The rows of one split among all rows of a source, and the number of conversations.

    Attributes:
        conversations: ids of the first `FEW` conversations that are selected; of all conversations, if none is.
    """

    def __init__(self, name: str, split: Split, size: int | None):
        self.name, self.split, self.size = name, split, size
        self.conversations: set[int] = set()
        self.num_rows = 0

    def rows(self, rows: Iterable[tuple[str, Split | None, Row]]) -> Iterator[Row]:
        """Yields the rows of the split.

        Raises:
            InputError: prompts are text in one of the source's own splits and messages in another.
        """
        prompt_type = None
        for own, split, row in rows:
            if split != self.split:
                if not self.num_rows:
                    self.conversations.add(conversation_id(row))
                continue
            if not self.num_rows:
                self.conversations.clear()
                prompt_type = type(row.get("prompt"))
            elif type(row.get("prompt")) is not prompt_type:
                raise InputError(
                    f"column prompt of {self.name} is text in some splits and messages in others ({own} differs). "
                    "Write all in one way."
                )
            self.num_rows += 1
            if len(self.conversations) < FEW and (self.size is None or self.num_rows <= self.size):
                self.conversations.add(conversation_id(row))
            yield row

    def reason_for_nothing(self, kind: str, args: DataArguments, bad_rows: BadRows) -> str:
        """Returns the reason why no row is left, and the remedy."""
        skipped = f"{len(bad_rows)} of {bad_rows.rows_read} rows were skipped"
        if not self.conversations:
            chosen = f" with dataset_config {args.dataset_config}" if args.dataset_config is not None else ""
            return f"{self.name} has no {kind} to use{chosen} ({skipped}). Give a source with usable rows."
        share = "eight of ten" if self.split == "train" else "one of ten"
        return (
            f"{self.name} has {len(self.conversations):,} different conversations that could be in the {self.split} "
            f"split, and none of them is ({skipped}): by a hash of the first message, {share} are. Give more of them, "
            "at least 50; rows with the same first message are one conversation."
        )

    def warn_of_few(self) -> None:
        limited = self.size is not None and self.num_rows > self.size  # as it was asked for
        if len(self.conversations) < FEW and not limited:
            say_once(
                f"{self.name} has {len(self.conversations)} validation conversations: what is chosen or calibrated on "
                f"them is mostly chance. Give more rows, so that at least {FEW} are held out.",
                logging.WARNING,
            )
