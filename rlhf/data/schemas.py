"""Schemas of the four kinds of rows, and the common spellings that are read as them.

| kind | columns |
|---|---|
| demonstrations | `prompt`, `completion` |
| comparisons | `prompt`, `completions` (K >= 2 texts), `ranks` (K integers, 0 = best, equal = tie) |
| prompts | `prompt` |
| pretraining | `text` |

A prompt is text, or messages that end in the user's turn. These are read, too:
- other names of these columns (`rlhf.data.spellings`);
- TRL's `messages` as a demonstration of its last assistant turn;
- `prompt`/`chosen`/`rejected`, or `chosen`/`rejected` that begin with their prompt, as a comparison with K = 2;
- completions of several messages, of which the last is the completion and the others belong to the prompt;
- `ratings` of completions, or the indices `best` and `worst`, in place of ranks.

Each function takes a row as read and returns the row of the schema, or raises `RowError`. Optional columns
(`OPTIONAL_COLUMNS`, and `ratings` of a comparison) are kept. Others are dropped if they say nothing about the row, and
refused if they may change what it means (`rlhf.data.columns`).
"""

import re
from typing import Any

from rlhf.data.checks import Row, RowError, check_text, integer, is_nan, kind_of
from rlhf.data.columns import refuse_unread
from rlhf.data.messages import Messages, check_is_learned, check_messages
from rlhf.data.ranking import agreement, best_worst_ranks, rating_ranks
from rlhf.data.spellings import NAMES, SCORES, spelled_out

OPTIONAL_COLUMNS = ("user_id", "category", "source", "labeler_id", "labeler_group")
COLUMNS = (
    *("prompt", "completion", "messages", "completions", "ranks", "ratings", "best", "worst", "chosen", "rejected"),
    *("text", *OPTIONAL_COLUMNS, *(name for pair in SCORES for name in pair)),
)
KNOWN = frozenset([*COLUMNS, *NAMES])
# The beginning of an answer in a transcript, or in text that a chat template has rendered.
TURN_BORDER = re.compile(
    r"(?:^|\n)(?:Assistant|ASSISTANT):|<\|im_start\|>assistant\n?|<\|assistant\|>\n?|<start_of_turn>model\n?|\[/INST\]"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n*|(?:^|\n)### ?(?:Response|Assistant):\n?"
)

TRANSCRIPT = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)


def demonstration(row: Row) -> Row:
    """Returns `prompt` and `completion`: one assistant message if the prompt is messages, else text."""
    row = spelled_out(row)
    if row.get("messages") is not None and row.get("completion") is None:
        prompt, answer = _split_conversation(row["messages"], "messages")
        _check_is_inside(row.get("prompt"), prompt, "messages")
        _refuse_unread(row, "demonstrations", "messages", "prompt")
    else:
        asked = _name_of_prompt(row)
        prompt, (answer,) = _continued(
            _column(row, asked), {"completion": _column(row, "completion")}, learned="completion"
        )
        _refuse_unread(row, "demonstrations", asked, "completion")
    completion = answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
    return {"prompt": prompt, "completion": completion, **_optional_columns(row)}


def comparison(row: Row) -> Row:
    """Returns `prompt`, `completions` as texts, and `ranks` without gaps: [1, 3, 3] becomes [0, 1, 1].

    Without ranks, `ratings` order the completions (higher is better); without these, the indices `best` and `worst`.
    """
    row = spelled_out(row)
    if row.get("completions") is None and (row.get("chosen") is not None or row.get("rejected") is not None):
        return _chosen_rejected(row)
    asked = _name_of_prompt(row)
    question, completions = _column(row, asked), _column(row, "completions")
    if not isinstance(completions, list):
        raise RowError(f"column completions is {kind_of(completions)}; a list of texts is needed")
    if len(completions) < 2:
        raise RowError(f"column completions has K = {len(completions)}; at least 2 are needed for a comparison")
    prompt, texts = _continued(question, {f"completions[{i}]": value for i, value in enumerate(completions)})
    ratings = {"ratings": _ratings(row["ratings"], len(texts))} if row.get("ratings") is not None else {}
    read = {"ranks", "ratings"}
    if row.get("ranks") is None and ratings:
        ranks = rating_ranks(ratings["ratings"])
    elif row.get("ranks") is None and row.get("best") is not None:
        read = {"best", "worst"}
        ranks = best_worst_ranks(_index(row, "best", len(texts)), _index(row, "worst", len(texts)), len(texts))
    else:
        ranks = _ranks(_column(row, "ranks"), len(texts))
        alike, opposite = agreement(ranks, ratings["ratings"]) if ratings else (0, 0)
        if opposite and not alike:
            raise RowError(
                "column ranks says the opposite of column ratings: rank 0 is the best, and so is the highest rating; "
                "leave one out with --columns ignore=ratings"
            )
    if len(set(texts)) == 1:  # nothing to choose between, whatever was said of them
        ranks = [0] * len(texts)
    _refuse_unread(row, "comparisons", asked, "completions", *read)
    return {"prompt": prompt, "completions": texts, "ranks": ranks, **_optional_columns(row), **ratings}


def prompt(row: Row) -> Row:
    """Returns `prompt`; of a conversation, the messages up to the last one of the user.

    The row's demonstration and comparison have the same prompt, so that all stages ask in one way.
    """
    row = spelled_out(row)
    answers = {name: row[name] for name in ("completion", "chosen") if row.get(name) is not None}
    if isinstance(row.get("completions"), list):
        answers |= {f"completions[{i}]": answer for i, answer in enumerate(row["completions"])}
    read = ("prompt", "messages")
    if row.get("rejected") is not None and (row.get("prompt") is None or isinstance(row.get("chosen"), list)):
        asked = _chosen_rejected(row)["prompt"]
    elif row.get("messages") is not None and row.get("completion") is None and row.get("completions") is None:
        messages = _up_to_last("user", check_messages(row["messages"], "messages"))
        asked = check_prompt(messages)
        _check_is_inside(row.get("prompt"), messages, "messages")
    else:
        read = (_name_of_prompt(row),)
        asked = _column(row, read[0])
        if any(isinstance(answer, list | dict) for answer in answers.values()):
            asked, _ = _continued(asked, answers)
        else:
            asked = check_prompt(asked)
    _refuse_unread(row, "prompts", *read, "completion", "completions", "chosen", "rejected")
    return {"prompt": asked, **_optional_columns(row)}


def pretraining(row: Row) -> Row:
    """Returns `text`."""
    text = check_text(_column(row, "text"), "column text")
    _refuse_unread(row, "pretraining", "text")
    return {"text": text}


def check_prompt(value: Any) -> str | Messages:
    """Returns text that is not blank, or messages that end in a user turn that is not blank."""
    if isinstance(value, str):
        return check_text(value, "column prompt")
    messages = check_messages(value, "prompt")
    if messages[-1]["role"] != "user":
        raise RowError(f"column prompt ends in a message of the {messages[-1]['role']}; it must end in the user's")
    check_text(messages[-1]["content"], "the last message of column prompt")
    return messages


def _refuse_unread(row: Row, kind: str, *read: str) -> None:
    refuse_unread(row, {*read, *OPTIONAL_COLUMNS}, kind)


def _column(row: Row, name: str) -> Any:
    value = row.get(name)
    if value is None:
        present = ", ".join(key for key in row if isinstance(key, str) and row[key] is not None)
        raise RowError(
            f"no column {name} (there is {present[:200] or 'none'}); add it or name another with --columns {name}=..."
        )
    return value


def _name_of_prompt(row: Row) -> str:
    """Returns "messages" if these are the question to the answers of other columns."""
    return "messages" if row.get("prompt") is None and row.get("messages") is not None else "prompt"


def _continued(prompt: Any, answers: dict[str, Any], learned: str | None = None) -> tuple[str | Messages, list[str]]:
    """Returns the prompt of all answers, and their texts.

    An answer is text or messages: of these, the last one of the assistant is the answer, and those before it continue
    the prompt, or hold it. Messages after it have no answer and are dropped.

    Args:
        prompt: None if the answers hold it.
        answers: name of each answer, for messages, and its value.
        learned: name of the answer that is learned.
    """
    prompts, texts = [], []
    for name, value in answers.items():
        value = [value] if isinstance(value, dict) else value
        if isinstance(value, list):
            before, text = _before_last_answer(check_messages(value, name), name)
            if name == learned:
                check_is_learned(value, name)
            prompts.append(_joined(prompt, before, name) if before else prompt)
            texts.append(text)
        else:
            if isinstance(value, str) and TRANSCRIPT.match(value):
                raise RowError(f"{name} is a transcript with the prompt in it, beside a prompt; leave one of them out")
            prompts.append(prompt)
            texts.append(check_text(value, f"column {name}" if name in COLUMNS else name))
    if any(one is None for one in prompts):
        raise RowError("no column prompt, and no message of the user before the answer; add it")
    prompts = [check_prompt(one) for one in prompts]
    if any(one != prompts[0] for one in prompts):
        names = " and ".join(answers) if len(answers) == 2 else "completions"
        raise RowError(f"columns {names} differ before the last answer; one common prompt is needed")
    return prompts[0], texts


def _before_last_answer(messages: Messages, name: str) -> tuple[Messages, str]:
    answered = _up_to_last("assistant", messages)
    if not answered:
        raise RowError(f"{name} has {len(messages)} messages of others; text or one message of the assistant is needed")
    return answered[:-1], check_text(answered[-1]["content"], f"the last answer of column {name}")


def _up_to_last(role: str, messages: Messages) -> Messages:
    """Returns the messages up to the last one of a role; none if there is none."""
    return messages[: max((i + 1 for i, message in enumerate(messages) if message["role"] == role), default=0)]


def _joined(prompt: Any, before: Messages, name: str) -> Messages:
    """Returns `before`, the messages before an answer, if they hold the prompt, else the prompt and `before`."""
    if prompt is None:
        if before[0]["role"] == "assistant":
            raise RowError(f"{name} begins with an answer, and there is no column prompt; add the question before it")
        return before
    messages = _as_messages(prompt)
    if _holds(before, messages):
        return before
    if before[0]["role"] == "assistant" or messages[-1]["role"] != "user":
        return [*messages, *before]
    raise RowError(
        f"{name} neither holds the prompt nor continues it with an answer; make its first message one of these"
    )


def _as_messages(prompt: Any) -> Messages:
    if isinstance(prompt, str):
        return [{"role": "user", "content": check_text(prompt, "column prompt")}]
    return check_messages(prompt, "prompt")


def _holds(messages: Messages, part: Messages) -> bool:
    starts = range(len(messages) - len(part) + 1)
    return any(all(_same(a, b) for a, b in zip(messages[i:], part, strict=False)) for i in starts)


def _same(a: dict[str, str], b: dict[str, str]) -> bool:
    return a["role"] == b["role"] and a["content"].strip() == b["content"].strip()


def _check_is_inside(prompt: Any, messages: Messages, name: str) -> None:
    """Raises `RowError` if a prompt beside a conversation is not part of it."""
    if prompt is None:
        return
    if not _holds(messages, _as_messages(prompt)):
        raise RowError(f"column prompt is not in column {name}; leave one of them out with --columns ignore=prompt")


def _split_conversation(value: Any, column: str) -> tuple[Messages, str]:
    """Returns the messages before the last assistant turn, and its text; later turns have no answer and are dropped."""
    messages = _up_to_last("assistant", check_messages(value, column))
    check_is_learned(value, column)
    if len(messages) < 2:
        raise RowError(f"column {column} has no message of the user with the assistant's answer; both are needed")
    before, answer = _before_last_answer(messages, column)
    asked = check_prompt(before)
    assert not isinstance(asked, str)
    return asked, answer


def _chosen_rejected(row: Row) -> Row:
    """Returns the comparison of TRL's pair: with a `prompt` column, or with the prompt at the beginning of both."""
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    _refuse_unread(
        row, "comparisons", "prompt", "messages", "chosen", "rejected", *(n for pair in SCORES for n in pair)
    )
    messages = check_messages(row["messages"], "messages") if row.get("messages") is not None else None
    asked, repeated = row.get("prompt"), messages
    if asked is None and messages is not None and messages[-1]["role"] == "user":
        asked, repeated = messages, None
    if asked is None and isinstance(chosen, str) and isinstance(rejected, str):
        asked = _common_turns(chosen, rejected)
        chosen, rejected = chosen[len(asked) :], rejected[len(asked) :]
    prompt, (better, worse) = _continued(asked, {"chosen": chosen, "rejected": rejected})
    if repeated is not None:
        before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if repeated not in (before, [*before, {"role": "assistant", "content": better}]):
            raise RowError("column messages is not the conversation of column chosen; leave one of them out")
    ranks = [0, 0 if _is_tie(row) or better == worse else 1]
    return {"prompt": prompt, "completions": [better, worse], "ranks": ranks, **_optional_columns(row)}


def _is_tie(row: Row) -> bool:
    """True if the scores of chosen and rejected are equal."""
    for names in SCORES:
        better, worse = (row.get(name) for name in names)
        if better is None or worse is None:
            continue
        if not all(type(score) in (int, float) for score in (better, worse)):
            raise RowError(f"columns {' and '.join(names)} are not two numbers; write numbers")
        if better < worse:
            raise RowError(
                f"{names[0]} is {better} and {names[1]} is {worse}: the rejected answer is rated higher; exchange them"
            )
        if better == worse:
            return True
    return False


def _common_turns(chosen: str, rejected: str) -> str:
    """Returns the text up to the last answer, if both have the same."""
    ends = [[match.end() for match in TURN_BORDER.finditer(text)] for text in (chosen, rejected)]
    if not ends[0] or not ends[1]:
        raise RowError(
            "no column prompt, and no turn of the assistant at which the common beginning of chosen and rejected ends "
            "(as \\n\\nAssistant:); add it, or name the column of the prompt with --columns prompt=..."
        )
    end = ends[0][-1]
    if end != ends[1][-1] or chosen[:end] != rejected[:end]:
        raise RowError("columns chosen and rejected differ before the last answer; one common prompt is needed")
    return chosen[:end]


def _index(row: Row, name: str, k: int) -> int:
    value = integer(_column(row, name))
    if type(value) is not int or not 0 <= value < k:
        raise RowError(f"column {name} is {value!r:.40}; the index of one of the {k} completions, from 0, is needed")
    return value


def _ranks(ranks: Any, k: int) -> list[int]:
    if not isinstance(ranks, list) or len(ranks) != k:
        got = f"{len(ranks)} entries" if isinstance(ranks, list) else kind_of(ranks)
        raise RowError(f"column ranks is {got} for {k} completions; a list of {k} integers is needed")
    ranks = [integer(rank) for rank in ranks]
    for rank in ranks:
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
            raise RowError(f"column ranks holds {rank!r:.40}; integers from 0 (the best) are needed")
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)))}
    return [places[rank] for rank in ranks]


def _ratings(ratings: Any, k: int) -> list[float]:
    numbers = isinstance(ratings, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in ratings)
    if not numbers or len(ratings) != k:
        raise RowError(f"column ratings is not {k} numbers; one for each completion is needed")
    return [float(value) for value in ratings]


def _optional_columns(row: Row) -> dict[str, str]:
    """Returns the optional columns as text: some sources have numbers as ids, others names."""
    values = {n: integer(row[n]) for n in OPTIONAL_COLUMNS if row.get(n) is not None and not is_nan(row[n])}
    for name, value in values.items():
        if not isinstance(value, str | int):
            raise RowError(f"column {name} is {kind_of(value)}; text or an integer is needed")
    return {name: check_text(str(value), f"column {name}", may_be_blank=True) for name, value in values.items()}
