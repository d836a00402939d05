"""Mappings in the files of a run. No library is loaded."""

import json
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import InputError


def read_object(path: Path) -> dict[str, Any] | None:
    """Returns the mapping in a JSON or YAML file; None without the file.

    Raises:
        InputError: the file is damaged, or holds something else.
        OSError: the file cannot be read.
    """
    form = "YAML" if path.suffix == ".yaml" else "JSON"
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, yaml.CSafeLoader) if form == "YAML" else json.loads(text)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path} is damaged: it is not valid {form} ({error}). Run its stage again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it must hold a {form} object. Run its stage again.")
    return content
