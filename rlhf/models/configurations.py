"""Configurations of models. That of a GGUF file is read once per process, which takes seconds for a real tokenizer."""

import copy
import os
from functools import lru_cache

from transformers import AutoConfig, PreTrainedConfig


def read_config(name: str, revision: str = "main", gguf_file: str | None = None) -> PreTrainedConfig:
    """Returns the configuration of a model, which the caller may change.

    Args:
        name: folder or Hub id.
        gguf_file: name of the file in the folder, if the model is stored in one.

    Raises:
        Exception: of the reader of the format.
    """
    if gguf_file is None:
        return AutoConfig.from_pretrained(name, revision=revision)
    state = os.stat(os.path.join(name, gguf_file))
    return copy.deepcopy(_gguf_config(name, gguf_file, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=2)
def _gguf_config(folder: str, file: str, size: int, modified: int) -> PreTrainedConfig:
    """Reads a file's configuration. Size in bytes and time of change, in ns, tell it from an earlier file."""
    return AutoConfig.from_pretrained(folder, gguf_file=file)
