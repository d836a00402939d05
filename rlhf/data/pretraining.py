"""Packs pretraining text into an endless stream of blocks of token ids, which can be stopped and resumed anywhere.

Documents are shuffled, tokenized when their turn comes, closed with EOS and concatenated; every `length` tokens are a
block. The n-th block depends on (sources, tokenizer, length, weights, seed, n) alone. `state_dict` holds a position,
not text.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from rlhf.data.arguments import DataArguments, PretrainingArguments
from rlhf.data.columns import Renaming
from rlhf.data.encode import encode_document
from rlhf.data.loading import load_pretraining
from rlhf.data.schemas import RowError, pretraining
from rlhf.data.sources import is_hub_dataset, stream_hub
from rlhf.data.splits import first_turn, split_of
from rlhf.errors import InputError, options_named

Rows = Dataset | IterableDataset


class PretrainingStream:
    """An endless iterator over blocks: lists of `length` token ids, with EOS between documents.

    Each block comes from one source, drawn by the weights. Weights are thus shares of the tokens, however long the
    documents are. A source that ends starts again in another order.

    Args:
        sources: rows with `text`; one or several, each in memory or streamed.
        tokenizer: has an EOS token. If it adds BOS to every text, each document begins with BOS.
        length: tokens per block.
        weights: one positive number per source, with any sum. None: equal weights.
        seed: seed of the order of the documents and of the draw of sources.
        buffer_size: documents among which a streamed source is shuffled. Sources in memory are shuffled as a whole.

    Raises:
        InputError: arguments that cannot be used; while iterating, a row without text or a source without rows.
    """

    def __init__(
        self,
        sources: Rows | Sequence[Rows],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        buffer_size: int = 10_000,
    ):
        sources = [sources] if isinstance(sources, Rows) else list(sources)
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or any(weight <= 0 for weight in weights):
            raise InputError(
                f"weights {weights} for {len(sources)} sources of pretraining text; give one positive number each."
            )
        if not isinstance(tokenizer.eos_token_id, int):
            raise InputError("The tokenizer has no EOS token, which separates documents of pretraining text. Set one.")
        if length < 2:
            raise InputError(f"Blocks of pretraining text have {length} tokens; they must have at least 2.")
        self.tokenizer, self.length, self.weights, self.seed = tokenizer, length, weights, seed
        self.documents = [
            ShuffledRows(rows, (seed, number))
            if isinstance(rows, Dataset)
            else ShuffledStream(rows, (seed, number), buffer_size)
            for number, rows in enumerate(sources)
        ]
        self.rest: list[list[int]] = [[] for _ in sources]  # tokens read from each source that no block has yet
        self.blocks = 0

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        draw = random.Random(f"block-{self.seed}-{self.blocks}")
        source = draw.choices(range(len(self.weights)), self.weights)[0]
        ids = self.rest[source]
        while len(ids) < self.length:
            ids += encode_document(self.tokenizer, next(self.documents[source]))
        self.rest[source] = ids[self.length :]
        self.blocks += 1
        return ids[: self.length]

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the stream, in types that JSON has."""
        documents = [documents.state_dict() for documents in self.documents]
        return {"blocks": self.blocks, "rest": [list(ids) for ids in self.rest], "documents": documents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues after the last block taken before `state_dict()`.

        Raises:
            InputError: the state has another number of sources.
        """
        if len(state["documents"]) != len(self.documents):
            raise InputError(
                f"The checkpoint has positions in {len(state['documents'])} sources of pretraining text, but there are "
                f"{len(self.documents)}. Resume with the same sources."
            )
        self.blocks, self.rest = state["blocks"], [list(ids) for ids in state["rest"]]
        for documents, position in zip(self.documents, state["documents"], strict=True):
            documents.load_state_dict(position)


class ShuffledRows:
    """Texts of rows in memory, in a new random order in each pass. Several texts of a row stay together."""

    def __init__(self, rows: Dataset, key: tuple[int, ...]):
        if len(rows) == 0:
            raise InputError("A source of pretraining text has no rows. Leave it out.")
        self.rows, self.key, self.read = rows, key, 0
        self.order = np.empty(0, dtype=np.int64)
        self.order_of: int | None = None  # the pass that `order` belongs to

    def __next__(self) -> str | list[str]:
        epoch, position = divmod(self.read, len(self.rows))
        if self.order_of != epoch:
            self.order, self.order_of = permutation(len(self.rows), *self.key, epoch), epoch
        number = int(self.order[position])
        row = self.rows[number]
        self.read += 1
        if isinstance(row.get("text"), list):
            return [_document_text({**row, "text": text}, number) for text in row["text"]]
        return _document_text(row, number)

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.read = state["read"]


class ShuffledStream:
    """Texts of a stream, read `buffer_size` at a time and shuffled among these.

    The position is small: the position of the stream when the buffer was filled, and the number of texts taken since.
    `IterableDataset.shuffle` refills its buffer one by one, and loses it when it is resumed.
    """

    def __init__(self, rows: IterableDataset, key: tuple[int, ...], buffer_size: int):
        self.rows, self.key, self.buffer_size = rows, key, buffer_size
        self._open(epoch=0, position=None, fills=0)

    def __next__(self) -> str:
        if self.taken == len(self.buffer):
            self._fill()
        self.taken += 1
        return self.buffer[self.taken - 1]

    def _open(self, epoch: int, position: dict | None, fills: int) -> None:
        """Starts reading pass number `epoch` at `position` (None: the beginning)."""
        self.epoch, self.fills = epoch, fills
        self.passing = copy.deepcopy(self.rows)  # a copy, so that `rows` stay at their beginning
        if position is not None:
            self.passing.load_state_dict(position)
        self.iterator = iter(self.passing)
        self.buffer, self.taken, self.filled_at = [], 0, position

    def _fill(self) -> None:
        self.filled_at = copy.deepcopy(self.passing.state_dict()) if self.fills else None
        texts = self._read()
        if not texts:
            if not self.fills:
                raise InputError("A source of pretraining text has no rows. Leave it out.")
            self._open(self.epoch + 1, None, 0)
            texts = self._read()
        order = permutation(len(texts), *self.key, self.epoch, self.fills)
        self.buffer, self.taken = [texts[i] for i in order], 0
        self.fills += 1

    def _read(self) -> list[str]:
        texts = []
        for row in self.iterator:
            texts.append(_document_text(row, self.fills * self.buffer_size + len(texts)))
            if len(texts) == self.buffer_size:
                break
        return texts

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "fills": self.fills, "filled_at": self.filled_at, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._open(state["epoch"], state["filled_at"], max(0, state["fills"] - 1))
        if state["fills"]:
            texts = self._read()
            order = permutation(len(texts), *self.key, self.epoch, self.fills)
            self.buffer, self.taken = [texts[i] for i in order], state["taken"]
            self.fills += 1


def permutation(count: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(count)


def _document_text(row: dict[str, Any], number: int) -> str:
    try:
        return pretraining(row)["text"]
    except RowError as error:
        raise InputError(
            f"row {number + 1} of the pretraining text: {error}, or leave out bad rows with --on_bad_rows skip."
        ) from error


def open_sources(args: PretrainingArguments, data: DataArguments, output_dir: str | None = None) -> list[Rows] | None:
    """Opens the sources of `args` for `PretrainingStream`; None if there are none. Hub data sets are streamed.

    All documents of the train splits are used, except transcripts of conversations that are held out. Nothing evaluates
    on other documents, so holding them out would only waste text; of the stage's own source, they are held out too.

    Args:
        data: the stage's own source, handling of bad rows, and seed of the sandbox.
        output_dir: the run's folder, in which skipped rows are listed.

    Raises:
        InputError: as for `load_pretraining`.
    """
    names = args.pretrain_dataset_name or []
    configs = [None if c == "-" else c for c in args.pretrain_dataset_config or ["-"] * len(names)]
    sources = []
    for name, config in zip(names, configs, strict=True):
        if is_hub_dataset(name):
            rows = stream_hub(name, config, "train")
            if args.pretrain_columns:
                rows = rows.map(Renaming(args.pretrain_columns, name))
            if data.on_bad_rows == "skip":
                rows = rows.filter(_is_document)
            rows = rows.filter(partial(_may_be_trained_on, hold_out=name == data.dataset_name))
            sources.append(rows if args.pretrain_dataset_size is None else rows.take(args.pretrain_dataset_size))
        else:
            own = DataArguments(
                dataset_name=name,
                dataset_config=config,
                dataset_size=args.pretrain_dataset_size,
                dataset_seed=data.dataset_seed,
                columns=None if name == "sandbox" else args.pretrain_columns,
                on_bad_rows=data.on_bad_rows,
            )
            with options_named({"dataset_name ": "pretrain_dataset_name ", "--columns": "--pretrain_columns"}):
                sources.append(load_pretraining(own, "train", output_dir, hold_out=name == data.dataset_name))
    return sources or None


def text_rows(sources: Sequence[Rows]) -> dict[str, Dataset]:
    """Returns the sources that are not streamed, under the names that the contract gives them."""
    return {f"text_{i}": rows for i, rows in enumerate(sources, 1) if isinstance(rows, Dataset)}


def _is_document(row: dict[str, Any]) -> bool:
    try:
        pretraining(row)
    except RowError:
        return False
    return True


def _may_be_trained_on(row: dict[str, Any], hold_out: bool) -> bool:
    text = row.get("text")
    if not isinstance(text, str) or not (hold_out or first_turn(text) is not None):
        return True  # `_document_text` reports what is no text
    return split_of({"text": text}) == "train"
