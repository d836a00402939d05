"""Holds splits out of sources that have none: by prompt, so that no prompt is trained on and evaluated on."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf.data.encode import prompt_key
from rlhf.errors import InputError

HELD_OUT = ("validation", "test")
SHARE = 0.1  # of the conversations, in each; the paper's share for SFT is 12 %, for the reward model 35 % (table 6)


def conversation_key(row: dict[str, Any]) -> str:
    """Returns a key that is equal for all conversations that begin with the same message of the user.

    Conversations with equal keys are in one split: continuations of a conversation, replies in a tree, and repeated
    prompts, even with other case or spaces.
    """
    prompt = row["prompt"] if "prompt" in row else row["text"]
    if not isinstance(prompt, str):
        prompt = next(message["content"] for message in prompt if message["role"] == "user")
    elif prompt.startswith("\n\nHuman:"):  # a transcript as hh-rlhf writes them
        prompt = prompt.split("\n\nAssistant:")[0]
    return prompt_key(" ".join(prompt.casefold().split()))


def conversation_id(row: dict[str, Any]) -> int:
    """Returns a number of 52 bits, the same for all rows of a conversation, in every file and split."""
    return _hash(conversation_key(row))


def conversation_hash(row: dict[str, Any]) -> float:
    """Returns a number in [0, 1), the same for all rows of a conversation. A split needs only these 8 bytes per row."""
    return hash_share(conversation_key(row))


def split_indices(
    hashes: Sequence[float], split: str, held_out: set[str], name: str, share: float = SHARE
) -> np.ndarray:
    """Returns the rows of `split` if `held_out` are held out of the train rows by a hash of the conversation.

    The hash depends on the conversation alone. So a conversation keeps its split when rows are added or reordered, and
    has the same split in demonstrations, comparisons and prompts of different files. Only if a split would be empty,
    the conversation with the next hash joins it.

    Args:
        hashes: [rows] `conversation_hash` of all rows of the source.
        held_out: subset of {"validation", "test"}.
        name: name of the source, for messages.
        share: share of the conversations in each held-out split: held_out[i] has the hashes in
            [i * share, (i + 1) * share).

    Returns:
        [rows of the split] int64, ascending.

    Raises:
        InputError: fewer different conversations than splits.
    """
    names = [name for name in HELD_OUT if name in held_out]
    places = np.asarray(hashes, dtype=np.float64)
    different = np.unique(places)
    if split in held_out and len(different) <= len(names):
        raise InputError(
            f"{name}: no {split} split can be held out of {len(different)} different prompts. "
            f"Give at least {len(held_out) + 1} of them, or a file with {split} in its name."
        )
    ends = _ends(different, len(names), share) if len(different) > len(names) else []
    splits = np.searchsorted(different[ends], places, side="right")  # 0 is the first held-out split, len(names) train
    number = names.index(split) if split in names else len(ends)
    return np.flatnonzero(splits == number)


def hash_share(key: str) -> float:
    """Returns a number in [0, 1) from a hash of the key, the same on every machine."""
    return _hash(key) / 16**13


def _hash(key: str) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16)


def _ends(different: np.ndarray, count: int, share: float) -> list[int]:
    """Returns the index of the first hash after each held-out split; each split, and train, gets at least one hash."""
    ends = []
    for i in range(count):
        end = int(np.searchsorted(different, (i + 1) * share))
        others = count - i  # the splits after this one and train, one key each
        ends.append(min(max(end, (ends[-1] if ends else 0) + 1), len(different) - others))
    return ends
