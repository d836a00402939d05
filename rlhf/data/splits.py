"""Held-out splits for sources that have none: by prompt, so that no prompt is trained on and evaluated on."""

import hashlib
from typing import Any

from rlhf.data.encode import prompt_key
from rlhf.errors import InputError

HELD_OUT = ("validation", "test")
SHARE = 0.1  # of the conversations, in each; the paper's share for SFT is 12 %, for the reward model 35 % (table 6)


def conversation_key(row: dict[str, Any]) -> str:
    """What must not be on two sides: all conversations that begin with the same message of the user.

    The continuations of one conversation, the replies in one tree and prompts that repeat, be it with other case or
    spaces, thereby stay together.
    """
    prompt = row["prompt"] if "prompt" in row else row["text"]
    if not isinstance(prompt, str):
        prompt = next(message["content"] for message in prompt if message["role"] == "user")
    return prompt_key(" ".join(prompt.casefold().split()))


def select_split(rows: list[dict], split: str, held_out: set[str], share: float = SHARE) -> list[dict]:
    """Rows of `split` when the splits `held_out` are taken out of the train rows by a hash of the conversation.

    The hash knows only the conversation: its side stays the same when rows are added or reordered, and is the same for
    demonstrations, comparisons and prompts of different files. Only where a split would be empty, the conversation
    with the next hash joins it.

    Args:
        rows: rows of a schema, all of them.
        held_out: subset of {"validation", "test"}.
        share: part of the conversations in each held-out split.

    Raises:
        InputError: fewer different conversations than splits.
    """
    keys = [conversation_key(row) for row in rows]
    sides = _sides(set(keys), [name for name in HELD_OUT if name in held_out], share)
    if split in held_out and not sides:
        raise InputError(
            f"no {split} split can be held out of {len(set(keys))} different prompts; "
            f"give at least {len(held_out) + 1} of them, or a file with {split} in its name."
        )
    side = split if split in held_out else "train"
    return [row for row, key in zip(rows, keys, strict=True) if sides.get(key, "train") == side]


def _sides(keys: set[str], held_out: list[str], share: float) -> dict[str, str]:
    """Held-out keys to their split: held_out[i] has the hashes in [i * share, (i + 1) * share) of [0, 1)."""
    ordered = sorted((_hash(key), key) for key in keys)
    sides, start = {}, 0
    if len(ordered) <= len(held_out):
        return sides
    for i, name in enumerate(held_out):
        end = sum(value < (i + 1) * share for value, _ in ordered)
        others = len(held_out) - i  # the splits after this one and train, one key each
        end = min(max(end, start + 1), len(ordered) - others)
        sides |= {key: name for _, key in ordered[start:end]}
        start = end
    return sides


def _hash(key: str) -> float:
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 16**13
