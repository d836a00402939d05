"""OpenAssistant's conversation trees, as published in the `*.trees.jsonl.gz` files of oasst1 and oasst2.

One line is one tree: {"message_tree_id", "tree_state", "prompt": message}, where a message has "message_id", "text",
"role" (prompter or assistant), "lang", "deleted", "review_result", "rank" and "replies", a list of messages of the
other role. Labelers ranked sibling replies; rank 0 is the best.

What never reaches training: trees that are not `ready_for_export`, and with all their replies, messages that were
deleted or that reviewers rejected or have not reviewed.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.schemas import RowError, check_text

Row = dict[str, Any]
ROLES = {"prompter": "user", "assistant": "assistant"}
OTHER = {"prompter": "assistant", "assistant": "prompter"}


def is_tree(row: Row) -> bool:
    """Whether this is a line of a trees file and certainly nothing else."""
    return "message_tree_id" in row and isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def is_flat_message(row: Row) -> bool:
    """Whether this is a row of oasst1's or oasst2's table of messages, in which a tree is spread over many rows."""
    return {"message_id", "parent_id", "message_tree_id", "text", "role"} <= row.keys()


def demonstrations(tree: Row, language: str | None = None) -> Iterator[Row]:
    """One row for each reply that labelers ranked first, with the conversation before it as the prompt."""
    for prompt, replies in _turns(tree, language):
        for reply in replies:
            if reply.get("rank") == 0:
                yield {"prompt": prompt, "completion": [{"role": "assistant", "content": reply["text"]}]}


def comparisons(tree: Row, language: str | None = None) -> Iterator[Row]:
    """One row for each prompter's message with at least two ranked replies."""
    for prompt, replies in _turns(tree, language):
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len(ranked) >= 2:
            texts, ranks = [reply["text"] for reply in ranked], [reply["rank"] for reply in ranked]
            yield {"prompt": prompt, "completions": texts, "ranks": ranks}


def prompts(tree: Row, language: str | None = None) -> Iterator[Row]:
    """One row for each prompter's message, answered or not, with the conversation before it."""
    for prompt, _ in _turns(tree, language):
        yield {"prompt": prompt}


def _turns(tree: Row, language: str | None) -> Iterator[tuple[list[Row], list[Row]]]:
    """(conversation that ends in a prompter's message, the usable replies to it), from the root downwards."""
    if not is_tree(tree):
        raise RowError("not an OpenAssistant tree; message_tree_id and a prompt with replies are needed")
    if tree.get("tree_state", "ready_for_export") != "ready_for_export":
        return
    root = _checked(tree["prompt"], "prompter")
    if not _is_usable(root) or language not in (None, root.get("lang")):
        return
    stack = [([], root)]  # not recursion: a tree may be as deep as its author likes
    while stack:
        before, message = stack.pop()
        conversation = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        replies = [_checked(reply, OTHER[message["role"]]) for reply in message["replies"]]
        replies = [reply for reply in replies if _is_usable(reply)]
        if message["role"] == "prompter":
            yield conversation, replies
        stack.extend((conversation, reply) for reply in reversed(replies))


def _is_usable(message: Row) -> bool:
    return not message.get("deleted") and message.get("review_result", True) is True


def _checked(message: Any, role: str) -> Row:
    if not isinstance(message, dict) or not isinstance(message.get("replies"), list):
        raise RowError("a message is not an object with replies; each needs text, role and replies")
    name = f"message {message.get('message_id')!s:.40}"
    if message.get("role") != role:
        raise RowError(f"{name} has the role {message.get('role')!r:.40}; {role} is needed at its place in the tree")
    rank = message.get("rank")
    if rank is not None and (type(rank) is not int or rank < 0):
        raise RowError(f"{name} has the rank {rank!r:.40}; an integer from 0, or none, is needed")
    if _is_usable(message):  # of a deleted message often nothing is left
        check_text(message.get("text"), f"text of {name}")
    return message
