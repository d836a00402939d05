"""The columns that change what a row means, which are read or refused and never ignored; and renaming (`--columns`).

A name is judged by its words: `system_prompt` and `SystemMessage` have the word system. A column that is not read, and
whose name has a word of `PROMPT` or `ANSWER`, is refused unless it is empty or repeats a column that is read. Names
that end in a word of `ABOUT` (`prompt_id`, `chosen_model`), and names without such words, say nothing about the row:
they are ignored, and the log names them once. But values speak under any name: prose may be a part of the prompt, and
true, no, "bad" or "wrong answer" may be a verdict. The keys of objects are judged like columns.
"""

import json
import logging
import re
from collections.abc import Collection
from functools import cache
from typing import Any

from rlhf.data.checks import TRUTH_VALUES, Row, RowError, is_empty
from rlhf.errors import InputError
from rlhf.runs.artifacts import say_once

# Parts of what is asked.
PROMPT_WORDS = """
    prompt instruction question query queries problem input system developer history previous conversation dialog
    dialogue message turns context ctx background knowledge evidence document doc passage paragraph article story
    abstract snippet facts hint persona role character scenario constraint rule guideline requirement definition goal
    tool function api schema kwargs prefix prefill suffix choices option distractor example shot demonstration title
    heading text content body post data instance premise hypothesis claim sentence table audience reader recipient
    keyword excerpt outline draft transcript caption chat thread
"""
MEDIA_WORDS = "image picture photo screenshot video audio pixel speech attachment"
# Answers, and how good they are.
ANSWER_WORDS = """
    completion response answer output reply replies target solution generation candidate summary summaries chosen
    rejected accepted preferred dispreferred thinking thought reasoning rationale explanation cot label score rating
    rate rank ranking margin reward return preference winner loser better worse best worst vote kto tie tied good
    bad correct incorrect correctness right wrong true false valid thumb upvotes downvotes likes dislikes feedback
    verdict judgment judgement choice quality helpful helpfulness harmless harmlessness harmful safe unsafe desirable
    undesirable accept reject approve approved pass passed fail failed keep strength positive negative grade star
    status mask critique reflection refusal correction corrected revision revised edit edited reference gold golden
    truth expected ideal flag flagged ok okay useful useless verified verification eval evaluation assessment annotation
    sentiment moderation confidence certainty
"""
# Says whether to use a row at all.
ROW_WORDS = """
    exclude excluded discard discarded include included usable unusable deleted spam skip skipped drop dropped
"""
# Short values that are verdicts under any name.
VERDICT_WORDS = """
    good bad poor wrong correct incorrect reject rejected accept accepted approved fail failed unsafe safe toxic spam
    useless unusable invalid hallucination hallucinated
"""
SPEAKER_WORDS = "gpt chatgpt bot llm ai assistant claude"
# Flags that say where a row comes from, or that are read as splits.
FLAG_WORDS = """
    has multi english synthetic anony anonymous redacted translated generated augmented streamed public classification
    train training val validation dev test heldout held holdout unseen benchmark
"""
# Names about a row that may also hold an instruction; a name as "Coding" is none, "Translate to French" may be one.
INSTRUCTIVE_WORDS = "task format policy topic style tone language lang"
# Last words of names about a row: prompt_id, answer_length, score_model.
ABOUT_WORDS = """
    id idx index hash sha md uuid key source dataset length len token count num model name type date time
    timestamp at version category categories license split policy author annotator worker labeler url link format
    fingerprint topic domain task file subset city country region locale gender age
"""
REPEATABLE_WORDS = "prompt instruction question query message messages response completion answer output"
PROMPT, MEDIA, ANSWER, ROW, ABOUT, INSTRUCTIVE, REPEATABLE = (
    frozenset(words.split())
    for words in (PROMPT_WORDS, MEDIA_WORDS, ANSWER_WORDS, ROW_WORDS, ABOUT_WORDS, INSTRUCTIVE_WORDS, REPEATABLE_WORDS)
)
VERDICTS, SPEAKERS, FLAGS = (frozenset(words.split()) for words in (VERDICT_WORDS, SPEAKER_WORDS, FLAG_WORDS))
WEIGHT = frozenset(["weight"])
# Parts of names that are written without a border between their words: sysprompt, chathistory.
PROMPT_STEMS = re.compile("system|history|context|prompt|instruct|question|image")
ANSWER_STEMS = re.compile("respon|answer|reject|chosen|reward|score|toxi|hallucinat|profan|offens|nsfw")
SPLIT_FLAGS = frozenset((first, last) for first in ("is", "in", "for") for last in ("eval", "evaluation"))
FIRST_ABOUT = frozenset(["num", "n", "count", "original"])
PROSE = 5  # words; values of fewer are names, unless they end like a sentence
SENTENCE = re.compile(r"\S\s+\S.*[.!?]$", re.DOTALL)
TOOL_RECORDS = frozenset(["distilabel_metadata"])  # objects that repeat what a tool has sent and received
IGNORE = "ignore"  # target of --columns for columns to leave out


def refuse_unread(row: Row, read: Collection[str], kind: str) -> None:
    """Raises `RowError` if a column may change what the row means and is neither read nor empty.

    Args:
        read: names of the columns that are read, or known to say nothing.
        kind: "prompts" needs the columns about the prompt only, "pretraining" the text only.
    """
    for name, value in row.items():
        if name in read or is_empty(value):
            continue
        found = None if name in TOOL_RECORDS else _changing(name, value, kind)
        if found is None or _repeats(_words(name), value, row, read):
            continue
        remedy = f"rename it with --columns new={name}" if found == name else "move that key into a column"
        raise RowError(
            f"column {name} may change what the row means{'' if found == name else f' (by its key {found})'}, and is "
            f"not read here; {remedy}, or leave the column out with --columns {IGNORE}={name}"
        )


def log_unread(source: str, names: Collection[str]) -> None:
    """Logs once for each source which columns are not read."""
    names = sorted(name for name in map(str, names) if name.strip() and not name.startswith(("__index", "Unnamed: ")))
    if names:
        say_once(f"columns of {source} that are not read: {', '.join(names[:30])}", logging.WARNING)


class Renaming:
    """Gives columns the names of `--columns new=old ...`, and leaves out those of `ignore=old`.

    Args:
        pairs: as on the command line.
        source: name of the data set, for messages.
    """

    def __init__(self, pairs: list[str] | None, source: str):
        self.names = parse_columns(pairs)
        self.source = source
        self.not_found = set(self.names)
        self.present: set[str] = set()

    def __call__(self, row: Row) -> Row:
        """Returns the renamed row.

        Raises:
            RowError: a new name is that of another column of the row.
        """
        if not self.names:
            return row
        if self.not_found:
            self.not_found -= row.keys()
            self.present |= row.keys()
        kept = {name: value for name, value in row.items() if name not in self.names}
        for old, new in self.names.items():
            if old not in row or new == IGNORE:
                continue
            if not is_empty(kept.get(new)):
                raise RowError(
                    f"column {old} is to be named {new}, but there is a column {new}; leave it out with --columns "
                    f"{IGNORE}={new}"
                )
            kept[new] = row[old]
        return kept

    def check_that_all_were_found(self) -> None:
        """Raises `InputError` if a column was in no row."""
        if self.not_found:
            raise InputError(
                f"columns names {', '.join(sorted(self.not_found))}, which no row of {self.source} has. Name some of "
                f"{', '.join(sorted(self.present))[:300]}."
            )


def parse_columns(pairs: list[str] | None, targets: Collection[str] | None = None) -> dict[str, str]:
    """Returns {old name: new name} of `--columns new=old ...`.

    Args:
        targets: new names to choose from. None allows all.

    Raises:
        InputError: a pair of another form, a new name that no format reads, or a name that is given twice.
    """
    names: dict[str, str] = {}
    for pair in pairs or []:
        new, _, old = (part.strip() for part in pair.partition("="))
        if not new or not old:
            raise InputError(f"columns has {pair!r}. Write new=old, for example prompt=question.")
        if new != IGNORE and targets is not None and new not in targets:
            raise InputError(
                f"columns has {pair}, but {new} is not a column that is read. Choose from {', '.join(sorted(targets))}."
            )
        if old in names:
            raise InputError(f"columns names {old} twice. Give each column one new name.")
        if new != IGNORE and new in names.values():
            raise InputError(f"columns gives the name {new} to two columns. Leave one out.")
        names[old] = new
    return names


def _changing(name: str, value: Any, kind: str) -> str | None:
    """Returns the column, or the key within its objects ("meta.system"), that may change what the row means."""
    objects = _objects(value) if kind != "pretraining" else []
    for key, item in ((key, item) for one in objects for key, item in one.items() if not is_empty(item)):
        if (found := _changing(str(key), item, kind)) is not None:
            return f"{name}.{found}"
    value = objects if objects and isinstance(value, str) else value
    return name if _changes_meaning(_words(name), value, kind) else None


def _objects(value: Any) -> list[Row]:
    """Returns the objects that a value holds, also as text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if isinstance(value, list):
        return [one for item in value if not isinstance(item, str) for one in _objects(item)]
    return [value] if isinstance(value, dict) else []


def _changes_meaning(words: tuple[str, ...], value: Any, kind: str) -> bool:
    if _any_of(words, WEIGHT):
        return not (isinstance(value, int | float) and value == 1)
    if _any_of(words, MEDIA):
        return bool(value)
    if kind == "pretraining":
        return False
    if _any_of(words[-1:], INSTRUCTIVE):  # "Answer in French", and not "Modern Standard Arabic"
        return _is_prose(value, 3) and re.search(r"(^|\s)[a-z]", str(value)) is not None
    is_answer = kind != "prompts"
    if words[-1:] == ("model",):
        return is_answer and _is_sentence(value)
    if _any_of(words[-1:], ABOUT) or _any_of(words[:1], FIRST_ABOUT) or words in SPLIT_FLAGS:
        return False
    is_number = isinstance(value, bool | int | float)
    is_prompt = _any_of(words, PROMPT, PROMPT_STEMS)
    if not is_number and (is_prompt or len("".join(words)) == 1):  # options A, B, C, D
        return True
    if _any_of(words, ROW):
        return True
    is_verdict = not is_prompt and not _any_of(words, FLAGS) and _is_verdict(words, value)
    is_said = len(words) == 1 and _any_of(words, SPEAKERS) and _is_prose(value, 2)
    if _any_of(words, ANSWER, ANSWER_STEMS) or is_verdict or is_said:
        return is_answer
    return _is_prose(value, PROSE)


def _is_verdict(words: tuple[str, ...], value: Any) -> bool:
    """True for true or false in any spelling, and for few words with one of `VERDICT_WORDS`."""
    if isinstance(value, list):
        return any(_is_verdict(words, item) for item in value if isinstance(item, str | bool))
    if isinstance(value, bool) or (words[:1] == ("is",) and str(value).lower() in TRUTH_VALUES):
        return True
    said = re.findall("[a-z]+", value[:100].lower()) if isinstance(value, str) else []
    if not said or len(said) >= PROSE:
        return False
    return said in (["true"], ["false"], ["yes"], ["no"]) or not VERDICTS.isdisjoint(said)


def _is_prose(value: Any, num_words: int) -> bool:
    """True for text of so many words or for a short sentence, and for a list with such text."""
    if isinstance(value, list):
        return any(isinstance(item, str | list) and _is_prose(item, num_words) for item in value)
    if not isinstance(value, str):
        return False
    count = len(value.split())
    return count >= num_words or (count >= 3 and SENTENCE.search(value.strip()) is not None)


def _is_sentence(value: Any) -> bool:
    """True for text that is no name of a model: it ends like a sentence, or has three words in lower case."""
    if not isinstance(value, str):
        return False
    return SENTENCE.search(value.strip()) is not None or len(re.findall(r"(?<!\S)[a-z']+(?!\S)", value)) >= 3


def _any_of(words: tuple[str, ...], names: frozenset[str], stems: re.Pattern[str] | None = None) -> bool:
    """True for a word that is among the names, in the singular or the plural, or that holds a stem."""
    return any(
        word in names
        or word.removesuffix("s") in names
        or f"{word}s" in names
        or (stems is not None and stems.search(word))
        for word in words
    )


def _repeats(words: tuple[str, ...], value: Any, row: Row, read: Collection[str]) -> bool:
    """True if the value stands in a column that is read; `text` may hold all of them, as in Alpaca."""
    others = [row[name] for name in read if name in row and not is_empty(row[name])]
    messages = [one for other in others if isinstance(other, list) for one in other if isinstance(one, dict)]
    others += [message.get("content", message.get("value")) for message in messages]
    if words == ("text",) and isinstance(value, str):
        texts = [one.strip() for one in others if isinstance(one, str)]
        return bool(texts) and all(text in value for text in texts)
    return all(word in REPEATABLE for word in words) and any(_plain(value) == _plain(one) for one in others)


def _plain(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


@cache
def _words(name: str) -> tuple[str, ...]:
    """("systemPrompt_2") -> ("system", "prompt"): numbers say nothing."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", str(name)))
