"""Reads common names of columns as ours: question and answer, system and history, responses, chosen_response, ...

`spelled_out` applies to rows of no published format. It renames what has one meaning alone; what is left over is for
`rlhf.data.columns.refuse_unread`.

| column | names, the first that is not empty |
|---|---|
| `prompt` | prompt, question, instruction (with input as a second paragraph), query, problem, input |
| `completion` | completion, response, answer, output, solution |
| `completions` | completions, responses, answers, outputs, candidates, generations, if they are lists |
| `ratings` | ratings, scores, rating, if they are lists |
| `messages` | messages, conversations, conversation, dialogue, dialog, if they are lists |
| `chosen`, `rejected` | also chosen_response, response_chosen, and the same with answer, completion, output |

A column named prompt stays text or messages as it is. A question, by any other name, is a message of the user, and so
is a prompt beside a column for a system message or for previous turns.
"""

from typing import Any

from rlhf.data.checks import Row, RowError, check_text, is_empty
from rlhf.data.messages import check_is_learned, check_messages, previous_turns, with_system

QUESTIONS = ("question", "instruction", "query", "problem", "input")
COMPLETIONS = ("response", "answer", "output", "solution")
LISTS = ("responses", "answers", "outputs", "candidates", "generations")
CONVERSATIONS = ("conversations", "conversation", "dialogue", "dialog")
SYSTEMS = ("system", "system_prompt", "system_message", "system_instruction")
HISTORY = "history"
NOUNS = ("response", "answer", "completion", "output")
PAIR = {
    verdict: tuple(name for noun in NOUNS for name in (f"{verdict}_{noun}", f"{noun}_{verdict}"))
    for verdict in ("chosen", "rejected")
}
# Ratings from which chosen and rejected were taken; equal ones are a tie.
SCORES = [
    pair
    for noun in ("score", "rating")
    for joint in ("_", "-")
    for pair in (
        (f"{noun}{joint}chosen", f"{noun}{joint}rejected"),
        (f"chosen{joint}{noun}", f"rejected{joint}{noun}"),
    )
]
NAMES = (
    *QUESTIONS,
    *COMPLETIONS,
    *LISTS,
    *CONVERSATIONS,
    *SYSTEMS,
    HISTORY,
    *PAIR["chosen"],
    *PAIR["rejected"],
    "scores",
)


def spelled_out(row: Row) -> Row:
    """Returns the row with our names; columns that are folded into others are gone.

    Raises:
        RowError: a system message or a history that cannot be put before the prompt.
    """
    row = dict(row)
    _take(row, "messages", CONVERSATIONS, list)
    _take(row, "completions", LISTS, list)
    _take(row, "ratings", ("scores", "rating"), list)
    _take(row, "completion", COMPLETIONS)
    if all(any(not is_empty(row.get(name)) for name in (verdict, *names)) for verdict, names in PAIR.items()):
        for verdict, names in PAIR.items():
            _take(row, verdict, names)
    if isinstance(row.get("messages"), list) and row["messages"] and _is_pairs(row["messages"]):
        row["messages"] = previous_turns(row["messages"], "messages")
    if is_empty(row.get("prompt")):
        question = _take(row, "prompt", QUESTIONS)
        if question is not None and isinstance(row["prompt"], str):
            text = check_text(row["prompt"], f"column {question}")
            if question == "instruction" and isinstance(row.get("input"), str):
                text = "\n\n".join([text, row.pop("input")] if row["input"].strip() else [text])
            row["prompt"] = [{"role": "user", "content": text}]
    return _with_turns_before(row)


def _take(row: Row, name: str, others: tuple[str, ...], kind: type = object) -> str | None:
    """Renames the first of the other names that is not empty, if the row has no column `name`; returns that name."""
    if not is_empty(row.get(name)):
        return None
    for other in others:
        if not is_empty(row.get(other)) and isinstance(row[other], kind):
            row[name] = row.pop(other)
            return other
    return None


def _is_pairs(value: list[Any]) -> bool:
    return all(isinstance(item, dict) and {"input", "output"} <= item.keys() for item in value)


def _with_turns_before(row: Row) -> Row:
    """Puts system message and history before the prompt, and before the conversations that hold it."""
    systems = [name for name in SYSTEMS if name in row]
    if not systems and HISTORY not in row:
        return row
    filled = [name for name in systems if not is_empty(row[name])]
    if len({str(row[name]).strip() for name in filled}) > 1:
        raise RowError(f"columns {' and '.join(filled)} are two system messages; leave one out")
    before = previous_turns(row.get(HISTORY), HISTORY)
    targets = [name for name in ("prompt", "messages") if not is_empty(row.get(name))]
    targets += [name for name in ("completion", "chosen", "rejected") if _holds_prompt(row.get(name))]
    if not targets:
        return row  # no prompt: the schema says so
    for name in targets:
        value = row[name]
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else check_messages(value, name)
        if isinstance(value, list) and name != "rejected":
            check_is_learned(value, name)
        start = 1 if messages[0]["role"] == "system" else 0
        messages = [*messages[:start], *before, *messages[start:]]
        row[name] = with_system(messages, row[filled[0]], filled[0]) if filled else messages
    return {key: value for key, value in row.items() if key not in systems and key != HISTORY}


def _holds_prompt(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and check_messages(value, "of messages")[0]["role"] != "assistant"
