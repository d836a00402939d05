"""OpenAssistant's conversations (oasst1, oasst2), as trees and as a table with one message per row.

A row is a tree: {"message_tree_id", "tree_state", "prompt": message}. A message has "message_id", "text",
"role" (prompter or assistant), "lang", "deleted", "review_result", "rank" and "replies", a list of messages of the
other role. Labelers ranked sibling replies; rank 0 is the best.

The table (the Hub's Parquet files, and
`*.messages.jsonl.gz`) has the same messages with "parent_id" and "message_tree_id" instead of "replies".

Left out are trees that are not `ready_for_export`, and messages that were deleted, rejected by reviewers or not yet
reviewed, with all their replies.
"""

from collections.abc import Iterator
from typing import Any

from rlhf.data.checks import integer, truth_value
from rlhf.data.formats.base import Format, Row
from rlhf.data.schemas import RowError, check_text

ROLES = {"prompter": "user", "assistant": "assistant"}
OTHER = {"prompter": "assistant", "assistant": "prompter"}


def is_tree(row: Row) -> bool:
    """True for a line of a trees file, and for nothing else."""
    return "message_tree_id" in row and isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]


def is_message(row: Row) -> bool:
    """True for a row of the table of messages."""
    return {"message_id", "message_tree_id", "text", "role"} <= row.keys()  # a root's line may lack parent_id


def demonstrations(tree: Row) -> Iterator[Row]:
    """Yields a row for each reply that labelers ranked first, with the conversation before it as the prompt."""
    for prompt, replies in _turns(tree):
        for reply in replies:
            if reply.get("rank") == 0:
                yield {"prompt": prompt, "completion": [{"role": "assistant", "content": reply["text"]}]}


def comparisons(tree: Row) -> Iterator[Row]:
    """Yields a row for each prompter's message with at least two ranked replies."""
    for prompt, replies in _turns(tree):
        ranked = [reply for reply in replies if reply.get("rank") is not None]
        if len(ranked) >= 2:
            texts, ranks = [reply["text"] for reply in ranked], [reply["rank"] for reply in ranked]
            yield {"prompt": prompt, "completions": texts, "ranks": ranks}


def prompts(tree: Row) -> Iterator[Row]:
    """Yields a row for each prompter's message, answered or not, with the conversation before it."""
    for prompt, _ in _turns(tree):
        # The user who began the conversation: a split by user must keep its continuations together.
        yield {"prompt": prompt, "user_id": tree["prompt"].get("user_id")}


def tree_of(messages: list[Row]) -> Row:
    """Returns the tree of the messages with one `message_tree_id`, in any order.

    Replies to a message that is not in the table are left out.
    """
    nodes = {message["message_id"]: message | {"replies": []} for message in messages}
    if len(nodes) < len(messages):
        raise RowError("two messages of the tree have the same message_id; give each its own")
    roots = []
    for node in nodes.values():
        siblings = roots if node.get("parent_id") is None else nodes.get(node["parent_id"], {}).get("replies")
        if siblings is not None:
            siblings.append(node)
    if len(roots) != 1:
        raise RowError(f"the tree has {len(roots)} messages without parent_id; one, its root, is needed")
    state = {"tree_state": messages[0]["tree_state"]} if messages[0].get("tree_state") is not None else {}
    return {"message_tree_id": messages[0]["message_tree_id"], "prompt": roots[0], **state}


def tree_id(message: Row) -> str:
    """Returns the key of the tree of a message in the table."""
    for column in ("message_id", "message_tree_id"):
        if not isinstance(message.get(column), str):
            raise RowError(f"column {column} is not text; the id of the message or of its tree is needed")
    if not isinstance(message.get("parent_id"), str | None):
        raise RowError("column parent_id is not text; the id of a message, or null for the root, is needed")
    if not isinstance(message.get("role"), str) or message["role"] not in ROLES:
        raise RowError(f"column role is {message.get('role')!r:.40}; prompter or assistant is needed")
    _checked(message | {"replies": []}, message["role"])
    return message["message_tree_id"]


def _turns(tree: Row) -> Iterator[tuple[list[Row], list[Row]]]:
    """Yields (conversation that ends in a prompter's message, usable replies to it), from the root downwards."""
    root = _checked(_root(tree), "prompter")
    if tree.get("tree_state", "ready_for_export") != "ready_for_export" or not _is_usable(root):
        return
    stack = [([], root)]  # no recursion: trees may be deeper than Python's stack
    while stack:
        before, message = stack.pop()
        conversation = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        replies = [_checked(reply, OTHER[message["role"]]) for reply in message["replies"]]
        replies = [reply for reply in replies if _is_usable(reply)]
        if message["role"] == "prompter":
            yield conversation, replies
        stack.extend((conversation, reply) for reply in reversed(replies))


def _root(tree: Row) -> Row:
    if not is_tree(tree):
        raise RowError("not an OpenAssistant tree; message_tree_id and a prompt with replies are needed")
    return tree["prompt"]


def _is_usable(message: Row) -> bool:
    """True for a message that was not deleted, and that reviewers accepted, or did not have to review."""
    if message.get("deleted") is not None and truth_value(message["deleted"], "deleted"):
        return False
    if "review_result" not in message:
        return True
    return message["review_result"] is not None and truth_value(message["review_result"], "review_result")


def _checked(message: Any, role: str) -> Row:
    if not isinstance(message, dict) or not isinstance(message.get("replies"), list):
        raise RowError("a message is not an object with replies; each needs text, role and replies")
    name = f"message {message.get('message_id')!s:.40}"
    if message.get("role") != role:
        raise RowError(f"{name} has the role {message.get('role')!r:.40}; {role} is needed at its place in the tree")
    rank = integer(message.get("rank"))
    if rank is not None and (type(rank) is not int or rank < 0):
        raise RowError(f"{name} has the rank {rank!r:.40}; an integer from 0, or none, is needed")
    if _is_usable(message):  # deleted messages often have no text
        check_text(message.get("text"), f"text of {name}")
    return message | {"rank": rank}


TREES = Format(
    title="OpenAssistant trees",
    matches=is_tree,
    columns=("prompt",),
    kinds={"demonstrations": demonstrations, "comparisons": comparisons, "prompts": prompts},
    language=lambda tree: _root(tree).get("lang"),
)
MESSAGES = Format(
    title="OpenAssistant messages",
    matches=is_message,
    columns=("text", "role", "rank", "labels", "deleted", "review_result", "synthetic", "detoxify", "emojis"),
    kinds={
        "demonstrations": lambda messages: demonstrations(tree_of(messages)),
        "comparisons": lambda messages: comparisons(tree_of(messages)),
        "prompts": lambda messages: prompts(tree_of(messages)),
    },
    assemble_by=tree_id,
    language=lambda messages: next((one.get("lang") for one in messages if one.get("parent_id") is None), None),
)
