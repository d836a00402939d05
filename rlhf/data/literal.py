"""Contents that spell special tokens, such as `</s>` in HTML or `<|im_end|>` in a question about chat templates.

They are encoded as ordinary characters: only the chat template writes tokens that begin or end a turn. A row without
such strings does not pass this module's encoding, and has the ids that transformers gives it.
"""

import logging
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlhf.errors import InputError
from rlhf.models.chat_template import THINK_TAG
from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.artifacts import say_once

NO_MATCH = re.compile(r"(?!)")
FIRST_MARK = 0xF0000  # private-use characters, two of which surround a special token in a content
PROBES = (["system", "user", "assistant", "user"], ["user", "assistant", "user"], ["user"])


class Literal:
    """Marks the special tokens that contents spell, and encodes a rendered text with such marks.

    Args:
        contents: all contents of a row, which the marks must not occur in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, contents: Iterable[str]):
        contents = list(contents)
        self.tokenizer = tokenizer
        self.pattern = special_tokens(tokenizer)
        found = {match[0] for content in contents for match in self.pattern.finditer(content)}
        for token in sorted(found):
            say_once(
                f"some contents spell the special token {token}; it is encoded as ordinary characters there",
                logging.WARNING,
            )
        code = FIRST_MARK
        while any(chr(code) in content or chr(code + 1) in content for content in contents):
            code += 2
        self.begin, self.end = chr(code), chr(code + 1)
        self.is_needed = bool(found)

    def mark(self, content: str) -> str:
        """Returns the content with its special tokens between marks."""
        return self.pattern.sub(f"{self.begin}\\g<0>{self.end}", content) if self.is_needed else content

    def is_marked(self, text: str) -> bool:
        return self.is_needed and (self.begin in text or self.end in text)

    def encode(self, text: str, encode_start: Callable[[str], list[int]]) -> list[int]:
        """Returns the ids of a text with marks: what is between two of them is encoded as ordinary characters.

        Args:
            encode_start: returns the ids of the text before the first mark, or of a text without marks.
        """
        # A template that cuts contents may separate a pair of marks; a single one still divides the text.
        pieces = re.split(f"{self.begin}([^{self.begin}{self.end}]*){self.end}|[{self.begin}{self.end}]", text)
        ids = list(encode_start(pieces[0]))
        for i, piece in enumerate(pieces[1:], 1):
            if piece:
                ids += character_ids(self.tokenizer, piece) if i % 2 else _continued(self.tokenizer, piece)
        return ids


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Returns a pattern of the tokens that only the template may write: special tokens, stop tokens, marks of turns.

    Tags of thoughts are none of them: an answer may begin with thoughts.
    """
    return _special_tokens(tokenizer, len(tokenizer), str(tokenizer.chat_template), tuple(stop_token_texts(tokenizer)))


@lru_cache(maxsize=16)
def _special_tokens(
    tokenizer: PreTrainedTokenizerBase, size: int, template: str, stops: tuple[str, ...]
) -> re.Pattern[str]:
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    rendered = _rendered_probe(tokenizer)
    tokens = {text for text, special in added.items() if special or text in stops or text in rendered}
    tokens |= {str(token) for token in tokenizer.all_special_tokens}
    tokens = {text for text in tokens if text.strip() and not THINK_TAG.fullmatch(text)}
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else NO_MATCH


def _rendered_probe(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a conversation in the template, in the first order of roles that it takes; "" without a template."""
    for roles in PROBES if tokenizer.chat_template is not None else ():
        messages = [{"role": role, "content": "0"} for role in roles]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (TemplateError, ValueError):
            continue
    return ""


@lru_cache(maxsize=1024)
def character_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Returns the ids of a special token's spelling as ordinary characters.

    Raises:
        InputError: the tokenizer has no other ids for it.
    """
    pattern = special_tokens(tokenizer)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if pattern.fullmatch(token.content)}
    special |= set(tokenizer.all_special_ids) - {cast(int | None, tokenizer.unk_token_id)}
    for parts in ([text], list(text)):  # letter by letter if the vocabulary has the spelling as one token
        ids = [i for part in parts for i in _without_added_tokens(tokenizer, part)]
        if not special & set(ids):
            return tuple(ids)
    raise InputError(f"The tokenizer cannot encode {text} as ordinary characters. Remove it from the rows.")


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return _after_newline(
            tokenizer, text, lambda t: tokenizer.encode(t, add_special_tokens=False, split_special_tokens=True)
        )
    backend = tokenizer.backend_tokenizer

    def encode(text: str) -> list[int]:
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        splits = [text]
        if backend.pre_tokenizer is not None:
            splits = [split for split, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for split in splits for token in backend.model.tokenize(split)]

    return _after_newline(tokenizer, text, encode)


def _continued(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return _after_newline(tokenizer, text, lambda t: tokenizer.encode(t, add_special_tokens=False))


def _after_newline(tokenizer: PreTrainedTokenizerBase, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """Encodes text that continues another: after a newline, at which SentencePiece's space of a beginning stays."""
    newline = tokenizer.encode("\n", add_special_tokens=False)
    ids = encode("\n" + text)
    return ids[len(newline) :] if newline and ids[: len(newline)] == newline else encode(text)
