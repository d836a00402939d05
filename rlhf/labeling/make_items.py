"""Makes items of prompts, completions, rankings and gold judgments that lie in files or in any other source of data."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.cells import read_cells
from rlhf.data.checks import Row, RowError
from rlhf.data.encode import Prompt, completion_text, plain_messages, prompt_key
from rlhf.data.files import SourceRow, is_readable, named_row, read_rows
from rlhf.data.loading import checked_rows, find_rows
from rlhf.data.schemas import check_prompt, comparison, demonstration
from rlhf.errors import InputError
from rlhf.labeling.import_export import ranking_item
from rlhf.labeling.items import MAX_COMPLETIONS, Item

logger = logging.getLogger(__name__)

Answer = tuple[str, str | None]  # text, name of the system that wrote it
SINGLE = ("response", "completion", "output", "answer")
SOURCES = ("completion_sources", "sources", "systems", "models")


def comparison_items(asked: Iterable[tuple[Prompt, Sequence[Answer]]], k: int = MAX_COMPLETIONS) -> list[Item]:
    """Returns items of at most k different completions of one prompt; more of them make several items.

    Blank completions, and prompts with fewer than two different ones, are left out, which is logged.

    Args:
        asked: prompts and the answers to each. Answers to equal prompts belong together.
        k: 2 to 9.
    """
    prompts: dict[str, Prompt] = {}
    answers: dict[str, dict[str, Answer]] = {}
    for prompt, given in asked:
        key = prompt_key(prompt)
        prompts.setdefault(key, prompt)
        different = answers.setdefault(key, {})
        for text, source in given:
            if text.strip():
                different.setdefault(text.strip(), (text, source))
    items, dropped = [], 0
    for key, different in answers.items():
        found = list(different.values())
        dropped += len(found) < 2
        for part in _parts(found, k):
            items.append(_comparison_item(prompts[key], part))
    if dropped:
        logger.warning("%d of %d prompts have no two different completions: no items", dropped, len(prompts))
    return items


def completion_items(path: str | Path, k: int = MAX_COMPLETIONS) -> list[Item]:
    """Returns items of a file of completions made elsewhere, or of the completions.jsonl of an evaluation.

    A row has `prompt` and either `completions`, a list of texts, or one `response` or `completion` and perhaps its
    `system`.

    Raises:
        InputError: the file cannot be read, a row is neither, or no prompt has two different completions.
    """
    asked = [_read(row, _answers) for row in _file_rows(path)]
    items = comparison_items(asked, k)
    if not items:
        raise InputError(f"{path} has no prompt with two different completions. Give a file with more answers.")
    return items


def demonstration_items(name: str, size: int | None = None) -> list[Item]:
    """Returns an item for each different prompt of a source, whose ideal answer labelers write."""
    prompts = (one if isinstance(one, str) else plain_messages(one) for one in read_prompts(name, size))
    return [Item("demonstration", prompt) for prompt in prompts]


def gold_items(path: str | Path) -> list[Item]:
    """Returns items with the judgments of a trusted labeler, by which others are screened.

    A row is a comparison (`prompt`, `completions`, `ranks`), perhaps with `flags`, a list of one object of true and
    false for each completion; or a demonstration (`prompt`, `completion`).

    Raises:
        InputError: the file cannot be read, or a row is neither.
    """
    items = [_read(row, _gold) for row in _file_rows(path)]
    if not items:
        raise InputError(f"{path} is empty. Give it one comparison or demonstration in each line.")
    return items


def read_prompts(name: str, size: int | None = None) -> list[Prompt]:
    """Returns the first `size` different prompts of a file, of a name on the Hub, or of the sandbox's train split."""
    prompts: dict[str, Prompt] = {}
    for row in _source_rows("prompts", name, size):
        prompts.setdefault(prompt_key(row["prompt"]), row["prompt"])
        if len(prompts) == size:
            break
    return list(prompts.values())


def read_rankings(name: str, size: int | None = None) -> list[Row]:
    """Returns the first `size` comparisons of a source, as the reward stage reads them (`rlhf.data.schemas`)."""
    return list(islice(_source_rows("comparisons", name, size), size))


def _source_rows(kind: str, name: str, size: int | None) -> Iterator[Row]:
    args = DataArguments(name, dataset_size=size)
    bad_rows = BadRows("error", None)
    splits = find_rows(kind, args)
    if name == "sandbox":  # its other splits are held out
        splits = {"train": splits["train"]}
    for rows in splits.values():
        yield from checked_rows(kind, rows(), args, bad_rows)
    if not bad_rows.rows_read:
        raise InputError(f"{name} is empty. Give a source with {kind}.")


def _parts(answers: list[Answer], k: int) -> list[list[Answer]]:
    """Divides n answers into parts of at most k, whose sizes differ by one at most; none if n < 2."""
    n = -(-len(answers) // k) if len(answers) >= 2 else 0
    return [answers[i::n] for i in range(n)]


def _comparison_item(prompt: Prompt, answers: Sequence[Answer]) -> Item:
    sources = [source or "" for _, source in answers]
    prompt = prompt if isinstance(prompt, str) else plain_messages(prompt)
    return Item("comparison", prompt, [text for text, _ in answers], sources if any(sources) else None)


def _file_rows(path: str | Path) -> Iterator[SourceRow]:
    path = Path(path).expanduser()
    if not path.is_file() or not is_readable(path):
        fault = "is no json, jsonl, csv or parquet file" if path.exists() else "does not exist"
        raise InputError(f"{path} {fault}. Correct the path.")
    return read_rows(path)


def _read(row: SourceRow, read: Any) -> Any:
    """Returns what `read` makes of a row.

    Raises:
        InputError: with the place of the row.
    """
    with named_row(row):
        return read(read_cells(row.content))


def _answers(content: Row) -> tuple[Prompt, list[Answer]]:
    """Returns the prompt and the answers of a row, which training can read."""
    texts = content.get("completions")
    if texts is None:
        single = next((content[name] for name in SINGLE if content.get(name) is not None), None)
        if single is None:
            raise RowError("no completions and no response; a list of texts or one text is needed")
        if single == "":  # a system that said nothing
            return check_prompt(content.get("prompt")), []
        row = demonstration({"prompt": content.get("prompt"), "completion": single})
        system = content.get("system")
        return row["prompt"], [(completion_text(row["completion"]), system if isinstance(system, str) else None)]
    ranks = list(range(len(texts))) if isinstance(texts, list) else None
    row = comparison({"prompt": content.get("prompt"), "completions": texts, "ranks": ranks})
    sources = next((content[name] for name in SOURCES if isinstance(content.get(name), list)), None)
    if sources is None:
        sources = [None] * len(row["completions"])
    elif len(sources) != len(row["completions"]) or not all(isinstance(one, str) for one in sources):
        raise RowError(f"{len(sources)} systems for {len(row['completions'])} completions; one name each is needed")
    return row["prompt"], list(zip(row["completions"], sources, strict=True))


def _gold(content: Row) -> Item:
    flags = content.pop("flags", None)
    if all(content.get(name) is None for name in ("completions", "chosen")):
        row = demonstration(content)
        return Item("demonstration", row["prompt"], gold={"demonstration": completion_text(row["completion"])})
    item = ranking_item(comparison(content), gold=True)
    if flags is not None:
        k = len(item.completions)
        if not isinstance(flags, list) or len(flags) != k or not all(isinstance(one, dict) for one in flags):
            raise RowError(
                f"column flags is no list of {k} objects; one of true and false for each completion is needed"
            )
        if any(value is not None and not isinstance(value, bool) for one in flags for value in one.values()):
            raise RowError("column flags has a value that is no true, false or null; nobody could agree with it")
        item.gold["flags"] = flags  # pyright: ignore[reportOptionalSubscript]
    return item
