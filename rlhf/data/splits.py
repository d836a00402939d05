"""Decides whether a conversation is for training, validation or test, by its first message of the user alone.

Each split has a fixed range of a hash. So a conversation has the same split in demonstrations, comparisons and prompts,
in every file, source and command, and keeps it when rows are added. The ranges are never shifted, even if a split of a
small source is empty.

    train       what a stage learns from
    validation  what choices are made on: epochs, calibration, coefficients
    test        what `evaluate` asks, for the numbers that are reported
"""

import hashlib
import re
import unicodedata
from typing import Any, Literal, get_args

from rlhf.data.encode import prompt_key

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
# Ranges [low, high) of the hash. The paper holds out 12 % of SFT's prompts and 35 % of the reward model's (table 6).
RANGES: dict[Split, tuple[float, float]] = {"validation": (0.0, 0.1), "test": (0.1, 0.2), "train": (0.2, 1.0)}

# Names of files and splits: test, TestSet, held-out
WORDS: dict[Split, str] = {
    "train": "train|training",
    "validation": "validation|validate|valid|val|dev|development",
    "test": "tests?|testing|evals?|evaluate|evaluation|held[-_ ]?out|hold[-_ ]?out|unseen|benchmarks?",
}

# Transcripts in a text
TURN = re.compile(  # "###" begins a turn even within a line, as in openassistant-guanaco
    r"(?:^[ \t]*|###+ *)(?:(human|user)|(?:assistant|ai|bot|gpt)) *:|###+ *(?:(instruction)|response) *:",
    re.IGNORECASE | re.MULTILINE,
)
MARKED_TURN = re.compile(  # as chat templates write it
    r"(?:<\|im_start\|>user|<\|start_header_id\|>user<\|end_header_id\|>|<\|user\|>|<start_of_turn>user|\[INST\])"
    r"(?:\s*<<SYS>>.*?<</SYS>>)?(.*?)"
    r"(?:<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<\|assistant\|>|</s>|<end_of_turn>|\[/INST\]|\Z)",
    re.DOTALL,
)
INPUT = re.compile(r"^### Input:", re.MULTILINE)  # of Alpaca: the second part of the user's turn
BLANK_LINE = re.compile(r"\n[ \t\r]*\n\Z")


def split_of(row: dict[str, Any]) -> Split:
    """Returns the split of a row's conversation."""
    return split_of_id(conversation_id(row))


def split_of_id(conversation: int) -> Split:
    """Returns the split of a `conversation_id`."""
    place = conversation / 16**13
    return next(split for split, (low, high) in RANGES.items() if low <= place < high)


def conversation_id(row: dict[str, Any]) -> int:
    """Returns a number of 52 bits, the same on every machine for all rows of a conversation."""
    return int(hashlib.sha256(conversation_key(row).encode()).hexdigest()[:13], 16)


def conversation_key(row: dict[str, Any]) -> str:
    """Returns a key that is equal for all conversations that begin with the same message of the user.

    These have equal keys: continuations of a conversation, replies in a tree, a prompt as text, as a message and as a
    transcript ("User: ..."), with or without a system message, in other case, spaces or forms of the same characters.

    Args:
        row: a row of any schema, with `prompt` or with `text`.
    """
    prompt = row["prompt"] if "prompt" in row else row["text"]
    if not isinstance(prompt, str):
        asked = (message["content"] for message in prompt if message["role"] == "user")
        prompt = next((text for text in asked if text.strip()), "")
    text = first_turn(prompt)
    text = unicodedata.normalize("NFKC", prompt if text is None else text)
    return prompt_key(" ".join(text.casefold().split()))


def first_turn(text: str) -> str | None:
    """Returns the user's first turn of a transcript; None if the text is none.

    A transcript begins with the user's turn ("User:", "Human:", "### Instruction:", or the marks of a chat template).
    A system message may come first, if it is followed by turns of both sides.
    """
    if ("<" in text or "[INST]" in text) and (marked := MARKED_TURN.search(text)):
        return marked[1] if marked[1].strip() else None
    if not any(word in text.lower() for word in ("human", "user", "instruction")):  # most texts, in little time
        return None
    turns = list(TURN.finditer(text))
    asks = next((turn for turn in turns if turn[1] or turn[2]), None)
    if asks is None:
        return None
    later = [turn for turn in turns if turn.start() > asks.start()]
    answers = [turn.start() for turn in later if not (turn[1] or turn[2])]
    if text[: asks.start()].strip() and not answers:
        return None
    # Where turns are paragraphs, a line that only looks like the beginning of a turn is a part of one.
    ends = [turn.start() for turn in later if BLANK_LINE.search(text, max(0, turn.start() - 9), turn.start())]
    turn = INPUT.sub("\n", text[asks.end() : next(iter(ends or answers), None)])
    return turn if turn.strip() else None


def split_of_name(name: str, whole: bool = False) -> Split | None:
    """Returns the split that a file or a source's own split is named after; None if it names none.

    Args:
        whole: the name must be nothing but such a word: "test", not "test_sft".
    """
    before, after = ("^", "$") if whole else ("(?<![a-z])", "(?![a-z])")
    name = re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    for split, words in WORDS.items():
        if re.search(f"{before}({words})([-_ ]?(set|split|data))?{after}", name):
            return split
    return None
