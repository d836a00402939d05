"""Messages of a conversation, in the spellings that files have: role and content, or from and value (ShareGPT)."""

from typing import Any

from rlhf.data.checks import RowError, check_text, is_empty, kind_of
from rlhf.data.columns import refuse_unread

Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
# Keys of a message that say whether its text is learned.
LEARNED = ("weight", "train", "train_detail", "training", "loss")


def check_messages(value: Any, column: str) -> Messages:
    """Returns at least one {"role", "content"}, with one of system, user and assistant as role and text as content.

    Keys that say nothing are dropped. A key that may change the meaning, as tool_calls, is refused.
    """
    if not isinstance(value, list):
        needed = "a list of messages" if column == "messages" else "text or a list of messages"
        raise RowError(f"column {column} is {kind_of(value)}; {needed} is needed")
    if not value:
        raise RowError(f"column {column} is an empty list; at least one message is needed")
    return [_message(message, f"{column}[{i}]") for i, message in enumerate(value)]


def check_is_learned(value: Any, column: str) -> None:
    """Raises `RowError` if the last answer is marked as one not to learn, or with a weight other than 1."""
    roles = [str(message.get("role") or message.get("from")).lower() for message in value]
    last = max((i for i, role in enumerate(roles) if ROLES.get(role) == "assistant"), default=None)
    for key in LEARNED if last is not None else ():
        mark = value[last].get(key)
        if not is_empty(mark) and mark != 1:  # True == 1
            raise RowError(
                f"the last answer of column {column} has {key} {mark!r:.40}; only answers to learn can be read"
            )


def with_system(messages: Messages, system: Any, column: str) -> Messages:
    """Returns the messages after the text of a system column, which may be empty."""
    if is_empty(system):
        return messages
    text = check_text(system, f"column {column}")
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"].strip() == text.strip():
            return messages
        raise RowError(f"column {column} is not the system message that the conversation begins with; leave one out")
    return [{"role": "system", "content": text}, *messages]


def previous_turns(value: Any, column: str) -> Messages:
    """Returns the messages of a history: messages, or pairs of a question and its answer."""
    if is_empty(value):
        return []
    if not isinstance(value, list):
        raise RowError(f"column {column} is {kind_of(value)}; a list of messages or of [question, answer] is needed")
    if isinstance(value[0], dict) and not {"input", "output"} <= value[0].keys():
        turns = check_messages(value, column)
    else:
        turns = []
        for i, pair in enumerate(value):
            pair = [pair.get("input"), pair.get("output")] if isinstance(pair, dict) else pair
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError(f"{column}[{i}] is not a pair of a question and its answer; write [question, answer]")
            texts = [check_text(text, f"{column}[{i}]") for text in pair]
            turns += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    if turns[-1]["role"] != "assistant":
        raise RowError(f"column {column} ends in a message of the {turns[-1]['role']}; it must end in an answer")
    return turns


def _message(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RowError(f"{name} is not a message; an object with role and content is needed")
    keys = ("role", "content") if message.get("role") is not None else ("from", "value")
    if message.get(keys[0]) is None or keys[1] not in message:
        raise RowError(f"{name} is not a message; an object with role and content is needed")
    role = message[keys[0]]
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise RowError(f"{name} has the role {role!r:.40}; one of system, user, assistant is needed")
    try:
        refuse_unread(message, {"role", "content", "from", "value", *LEARNED}, "demonstrations")
    except RowError as error:
        key = str(error).split()[1]
        raise RowError(f"{name} has {key}, which may change what the message means; leave it out") from error
    return {"role": ROLES[role.lower()], "content": _content(message[keys[1]], f"content of {name}")}


def _content(value: Any, name: str) -> str:
    """Returns text, or the text of a list of parts {"type": "text", "text": ...}."""
    if not isinstance(value, list):
        return check_text(value, name, may_be_blank=True)
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            part_type = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise RowError(f"{name} is a list with {part_type!r:.40}; only parts of the type text can be read")
        others = {key for key, value in part.items() if key not in ("type", "text") and not is_empty(value)}
        if others:
            raise RowError(f"{name} is a list with {', '.join(sorted(map(str, others))):.60}; only text can be read")
        texts.append(check_text(part.get("text"), name, may_be_blank=True))
    return "".join(texts)
