"""Reads the metadata at the beginning of a GGUF file: strings and numbers, up to the tokenizer.

The package gguf reads the whole vocabulary first, which takes seconds to minutes. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import struct
from pathlib import Path
from typing import Any, BinaryIO

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def general_metadata(path: Path) -> dict[str, Any]:
    """Returns the keys that begin with `general.`, such as `general.license`; {} for a file that is not GGUF.

    They come first in the files that llama.cpp writes; those after the first key of the tokenizer are left out.
    """
    found: dict[str, Any] = {}
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return {}
            _, _, count = _unpack(file, "IQQ")  # version, tensors, keys
            for _ in range(count):
                key = _value(file, STRING)
                if key.startswith("tokenizer."):
                    break
                value = _value(file, *_unpack(file, "I"))
                found |= {key: value} if key.startswith("general.") else {}
    except (OSError, struct.error, KeyError, UnicodeDecodeError, MemoryError, OverflowError):
        return found
    return found


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        (length,) = _unpack(file, "Q")
        return bytes(_unpack(file, f"{length}s")[0]).decode()
    if kind == ARRAY:
        item, length = _unpack(file, "IQ")
        return [_value(file, item) for _ in range(length)]
    return _unpack(file, NUMBERS[kind])[0]


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))
