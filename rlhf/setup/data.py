"""Contents of a source of data, as the stages read it: kinds, rows of each split, bad rows, lengths in tokens."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

from transformers import PreTrainedTokenizerBase

from rlhf.data.arguments import DataArguments
from rlhf.data.bad_rows import BadRows
from rlhf.data.encode import completion_text, encode_prompt, encode_prompt_and_completions
from rlhf.data.loading import find_rows, rows_by_split
from rlhf.data.prompt_style import refused_roles, rendered_already, resolve_style, styled_prompt
from rlhf.data.schemas import Row
from rlhf.data.splits import SPLITS
from rlhf.errors import InputError
from rlhf.setup.languages import count_scripts

KINDS = ("demonstrations", "comparisons", "prompts", "pretraining")
READ = 20_000  # rows of each of the source's own splits, at most
MEASURED = 1_000  # rows of each split whose tokens are counted


@dataclass
class Holding:
    """The rows of one kind in a source.

    Attributes:
        args: options with which a stage reads them.
        rows: number in train, validation and test.
        set_aside: rows that the source holds out and the hash does not.
        read, bad: rows read, and rows of these that cannot be used.
        first_bad: file, row and reason of the first of them.
        whole: False if there are more rows than `READ`.
        prompts: [measured] tokens of prompts.
        answers: [measured] tokens of the longest answer to each; empty for prompts and text.
        held_out: {split: [measured] tokens of prompt and longest answer}, for validation and test.
        scripts: {script: letters} in the measured training rows.
        k: smallest and largest number of answers, for comparisons.
    """

    kind: str
    args: DataArguments
    rows: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    read: int = 0
    bad: int = 0
    first_bad: str = ""
    whole: bool = True
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    held_out: dict[str, list[int]] = field(default_factory=dict)
    scripts: Counter[str] = field(default_factory=Counter)
    k: tuple[int, int] | None = None

    @property
    def lengths(self) -> list[int]:
        """[measured] tokens of prompt and longest answer."""
        return [sum(pair) for pair in zip(self.prompts, self.answers or [0] * len(self.prompts), strict=True)]


def look_at_data(args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Holding], dict[str, str]]:
    """Returns {kind: what the source holds of it}, and {kind: reason} of the kinds that it does not hold.

    Rankings without demonstrations get these by the format `best_answer`. A kind with more bad rows than good ones is
    not held.

    Raises:
        InputError: there is no such source, or no row can be used as any kind.
    """
    held: dict[str, Holding] = {}
    missing: dict[str, str] = {}
    args = replace(args, on_bad_rows="skip")
    for kind in KINDS:
        find_rows(kind, args)  # raises for a source that is not there
        found = _try(kind, args, tokenizer)
        if isinstance(found, Holding):
            held[kind] = found
        else:
            missing[kind] = found
    if "comparisons" in held and "demonstrations" not in held and args.dataset_name != "sandbox":
        found = _try("demonstrations", replace(args, dataset_format="best_answer"), tokenizer)
        if isinstance(found, Holding):
            held["demonstrations"] = found
    if not held:
        raise InputError(f"{args.dataset_name} holds no rows to train on: {missing[likeliest(missing)]}")
    return held, missing


def likeliest(missing: Mapping[str, str], kinds: Sequence[str] = ("prompts", *KINDS)) -> str:
    """Returns the one of the kinds whose reason says most: not that a column is absent; else the first."""
    plain = ("no column", "which have no")
    telling = [kind for kind in kinds if kind in missing and not any(words in missing[kind] for words in plain)]
    return (telling or [kind for kind in kinds if kind in missing])[0]


def _try(kind: str, args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Holding | str:
    try:
        found = _holding(kind, args, tokenizer)
    except InputError as error:
        return str(error)
    if not found.rows.total() or found.bad > found.rows.total():
        return found.first_bad or f"{args.dataset_name} has no {kind}."
    return found


def _holding(kind: str, args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Holding:
    """Reads up to `READ` rows of each split as the stages do."""
    bad_rows, found = BadRows("skip", None), Holding(kind, args)
    measured: dict[str, list[Row]] = {split: [] for split in SPLITS}
    with _quiet():
        rows = rows_by_split(kind, args, bad_rows, limit=READ)
        for _, split, row in rows:
            if split is None:
                found.set_aside += 1
                continue
            found.rows[split] += 1
            if len(measured[split]) < MEASURED:
                measured[split].append(row)
    found.read, found.bad, found.whole = bad_rows.rows_read, len(bad_rows), bad_rows.rows_read < READ
    if bad_rows.first is not None:
        found.first_bad = "{file}, {row}: {reason}.".format(**bad_rows.first)
    found.scripts = count_scripts(text for row in measured["train"] for text in _texts(row))
    for split, some in measured.items() if kind != "pretraining" else ():
        lengths = _lengths(found, split, some, tokenizer)
        if split != "train":
            found.held_out[split] = [prompt + max(answers, default=0) for prompt, answers in lengths]
            continue
        found.prompts = [prompt for prompt, _ in lengths]
        found.answers = [max(answers) for _, answers in lengths if answers]
        sizes = [len(answers) for _, answers in lengths]
        found.k = (min(sizes), max(sizes)) if kind == "comparisons" and sizes else None
    return found


def _lengths(
    found: Holding, split: str, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[int, list[int]]]:
    """Returns the tokens of each prompt and of its answers; counts the rows that the chat template refuses as bad."""
    style = resolve_style(found.args.prompt_style, None, tokenizer)
    lengths = []
    for row in rows:
        prompt, answers = row["prompt"], _answers(row)
        is_text = isinstance(prompt, str)
        if reason := rendered_already(tokenizer, prompt) if is_text else refused_roles(tokenizer, prompt):
            found.bad += 1
            found.rows[split] -= 1
            found.first_bad = found.first_bad or f"{found.args.dataset_name}: {reason}."
            continue
        asked = styled_prompt(prompt, style) if is_text else prompt
        if answers:
            start, ids = encode_prompt_and_completions(tokenizer, asked, answers)
        else:
            start, ids = encode_prompt(tokenizer, asked), []
        lengths.append((len(start), [len(one) for one in ids]))
    return lengths


def _texts(row: Row) -> list[str]:
    """Returns prompt, answers and text of a row."""
    prompt = row.get("prompt", [])
    asked = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return [*asked, *_answers(row), *([row["text"]] if "text" in row else [])]


def _answers(row: Row) -> list[str]:
    answers = row.get("completions") or ([row["completion"]] if "completion" in row else [])
    return [completion_text(answer) for answer in answers]


def choose_sources(sources: Sequence[dict[str, Holding]]) -> dict[str, Holding]:
    """Returns {kind: the source to read it from}: the first that holds it; for prompts one of prompts alone, if any."""
    chosen: dict[str, Holding] = {}
    for kind, found in chain.from_iterable(source.items() for source in sources):
        chosen.setdefault(kind, found)
    for source in sources:
        if "prompts" in source and not {"demonstrations", "comparisons"} & source.keys():
            chosen["prompts"] = source["prompts"]
    own = [source["demonstrations"] for source in sources if "demonstrations" in source]
    written = [found for found in own if found.args.dataset_format != "best_answer"]
    if written:  # by people, before the best answers of rankings
        chosen["demonstrations"] = written[0]
    return chosen


def rows_text(found: Holding) -> str:
    """Returns the numbers of rows and lengths in one line."""
    more = "" if found.whole else f" among the first {READ:,}"
    split = ", ".join(f"{found.rows[name]:,} {name}" for name in SPLITS)
    aside = f"; {found.set_aside:,} that the source holds out are set aside" if found.set_aside else ""
    parts = [f"{found.rows.total():,}{more} ({split}{aside})"]
    if found.k is not None:
        parts.append(f"K = {found.k[0]}" + (f" to {found.k[1]}" if found.k[1] > found.k[0] else ""))
    if found.prompts:
        parts.append(f"prompts of {percentile(found.prompts, 50):,} tokens (median), {max(found.prompts):,} at most")
    if found.answers:
        parts.append(f"answers of {percentile(found.answers, 50):,}, {max(found.answers):,} at most")
    return "; ".join(parts)


def percentile(numbers: Sequence[int], share: int) -> int:
    """Returns the smallest of the numbers that at least `share` percent of them do not exceed."""
    return sorted(numbers)[max(0, -(-len(numbers) * share // 100) - 1)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out the log of the rows of each split, which is printed in another form."""
    logger = logging.getLogger("rlhf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
