"""Statements of a base model or a data set about itself: its id on the Hub, its license, its languages."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HTTPError

from rlhf.runs.gguf_header import general_metadata

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
DATA = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".db")
LICENSE = ("license", "license_name", "license_link")
SANDBOX = {"license": "apache-2.0", "language": ["en"]}  # this project's own


def hub_id(name: str | None) -> str | None:
    """Returns a model's name if it is its id on the Hub; None for a folder, and for the sandbox's base."""
    if not name or is_sandbox(name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or Path(name).exists():
        return None
    return name


def is_hub_id(name: str) -> bool:
    """True for `owner/name`, unless a file or folder has this name, or it ends as a file of data does.

    A run may be uploaded from another folder than the one in which `data/rankings.csv` was read.
    """
    return HUB_ID.fullmatch(name) is not None and not name.endswith(DATA) and not Path(name).exists()


def is_sandbox(name: str) -> bool:
    """True for the name of the sandbox's base and data, and for the folder of its base in any installation."""
    return name == "sandbox" or Path(name).parts[-3:] == ("rlhf", "sandbox", "base")


def gguf_file(name: str) -> str | None:
    """Returns the name of the .gguf file in a folder that holds no other model; None for others."""
    folder = Path(name).expanduser()
    files = [] if not name or (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    return files[0].name if files else None


def metadata_of(name: str, kind: str = "model", revision: str | None = None, online: bool = False) -> dict[str, Any]:
    """Returns the front matter of a card, or what the header of a GGUF file says in its place; {} if it is unknown.

    Args:
        name: folder or Hub id of a model or a data set, or `sandbox`.
        kind: "model" or "dataset".
        revision: commit on the Hub.
        online: ask the Hub; False: look only at what has been downloaded.
    """
    if is_sandbox(name):
        return SANDBOX
    folder = Path(name).expanduser()
    if folder.is_dir():
        file = gguf_file(name)
        general = general_metadata(folder / file) if file else {}
        said = {"license": general.get("general.license"), "language": general.get("general.languages")}
        return {key: value for key, value in said.items() if value} | _front_matter(folder / "README.md")
    if folder.exists() or name.endswith(DATA) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        return {}
    try:
        path = hf_hub_download(name, "README.md", repo_type=kind, revision=revision, local_files_only=not online)
    except (OSError, ValueError, EntryNotFoundError, HTTPError):  # no card, no access, no network
        return {}
    return _front_matter(Path(path))


def license_of(metadata: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a card's license: {"license": "unknown"} if it says none."""
    found = {key: metadata[key] for key in LICENSE if isinstance(metadata.get(key), str)}
    return found if "license" in found else {"license": "unknown"}


def languages_of(sources: list[dict[str, Any]]) -> list[str] | None:
    """Returns the languages of several data sets, by their metadata; None unless each says its own."""
    lists = [[said] if isinstance(said := source.get("language"), str) else said for source in sources]
    known = [language for language in lists if language]
    return sorted({str(name) for each in known for name in each}) if lists and len(known) == len(lists) else None


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        return metadata_load(path) or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or a damaged one
        return {}
