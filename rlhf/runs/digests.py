"""Digests of what a stage reads: base models, files and rows; 16 hex digits, equal on every machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc  # its functions are made at run time
import torch
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from torch import nn

DIGITS = 16
BLOCK, BLOCKS = 4096, 16  # bytes of a sampled block of weights; blocks of a file
NUMBERS = 64  # at each end of a parameter
UNTRAINED_KEYS = ("_name_or_path", "transformers_version")  # of config.json; they say nothing about the model


def json_digest(value: Any) -> str:
    """Returns a hash of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:DIGITS]


def file_digest(path: Path) -> str:
    """Returns a hash of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]


def base_identity(name: str, revision: str | None = "main") -> dict[str, str | None]:
    """Returns what tells a base model from others, as far as its files are on this machine; downloads nothing.

    Args:
        name: folder, or Hub id whose files are looked for in the Hub's cache.

    Returns:
        `name`, `revision` (the commit of a model of the Hub), `digest` of config.json and a fingerprint of the
        `weights`; None where unknown. A copy of a folder has the same two digests, wherever it lies.
    """
    folder, commit = Path(name).expanduser(), None
    if not folder.is_dir():
        cached = try_to_load_from_cache(name, "config.json", revision=revision or "main")
        if not isinstance(cached, str):
            return {"name": name, "revision": None, "digest": None, "weights": None}
        folder = Path(cached).parent
        commit = folder.name
    return {"name": name, "revision": commit, "digest": _config_digest(folder), "weights": weights_digest(folder)}


def _config_digest(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder with a GGUF file has none
        return None
    return json_digest({key: value for key, value in config.items() if key not in UNTRAINED_KEYS})


def weights_digest(folder: Path) -> str | None:
    """Returns a fingerprint of the weights in a model's folder in milliseconds; None without safetensors or GGUF.

    It covers the size of each file, its beginning (the header of safetensors: names, shapes and dtypes) and blocks
    spread evenly over it. Any training or requantization changes nearly every block.
    """
    files = _weight_files(folder)
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for i in range(BLOCKS):
                file.seek(max(0, size - BLOCK) * i // (BLOCKS - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()[:DIGITS]


def _weight_files(folder: Path) -> list[Path]:
    """Returns the files that transformers loads; other formats in the same folder do not count."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        files = [folder / name for name in sorted(names)]
        return files if all(path.is_file() for path in files) else []
    return sorted(folder.glob("*.gguf"))


@torch.no_grad()
def frozen_digest(model: nn.Module) -> str | None:
    """Returns a fingerprint of the parameters that are not trained, by a few numbers of each; None if all are.

    PEFT's copies of modules that are trained in full are no part of the result, and those of a new head are random.
    """
    frozen = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and ".original_module." not in name
    ]
    digest = hashlib.sha256()
    for name, parameter in frozen:
        flat = parameter.detach().flatten()
        sample = torch.cat([flat[:NUMBERS], flat[-NUMBERS:]]).float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:DIGITS] if frozen else None


def rows_digest(rows: Dataset) -> str:
    """Returns a hash of all rows in their order: names of the columns and values."""
    digest = hashlib.sha256(json.dumps(rows.column_names).encode())
    for table in rows.with_format("arrow").iter(1000):
        for column in table.columns:  # pyright: ignore[reportAttributeAccessIssue]
            _update(digest, column.combine_chunks())
    return digest.hexdigest()[:DIGITS]


def rows_entry(rows: Dataset) -> str:
    """Returns what a contract says of encoded rows."""
    return f"{len(rows)} rows with digest {rows_digest(rows)}"


def _update(digest: Any, array: Any) -> None:
    """Adds an Arrow array to a hash: not its buffers, whose padding and offsets depend on how the array was made."""
    if isinstance(array, pa.ChunkedArray):
        for chunk in array.chunks:
            _update(digest, chunk)
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = pc.fill_null(pc.list_value_length(array), -1)  # pyright: ignore[reportAttributeAccessIssue]
        digest.update(lengths.cast("int64").to_numpy().tobytes())
        _update(digest, array.flatten())
    elif pa.types.is_integer(array.type) and not array.null_count:
        digest.update(array.cast("int64").to_numpy().tobytes())
    else:
        digest.update(json.dumps(array.to_pylist(), sort_keys=True, default=str).encode())
