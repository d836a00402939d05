"""Folders of recipes and of Accelerate's configurations: in a checkout, or inside the installed package."""

import difflib
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rlhf.errors import InputError

PACKAGE = Path(__file__).resolve().parent.parent


def installed_folder(name: str) -> Path:
    """Returns the folder `recipes` or `accelerate_configs`.

    A wheel holds both under rlhf/_package/; in a checkout they are beside rlhf/.
    """
    packaged = PACKAGE / "_package" / name
    return packaged if packaged.is_dir() else PACKAGE.parent / name


def recipe_names(stage: str = "*") -> list[str]:
    """Returns the recipes that have a YAML of `stage`, in ./recipes and among the installed ones."""
    folders = (Path("recipes"), installed_folder("recipes"))
    return sorted({path.parent.name for folder in folders for path in folder.glob(f"*/{stage}.yaml")})


def find_recipe(name: str, stage: str = "*") -> Path:
    """Returns the folder of a recipe: the path of one, or its name in ./recipes or among the installed recipes.

    Raises:
        InputError: there is none, or it has no YAML of `stage`.
    """
    folders = [Path("recipes", name), installed_folder("recipes") / name]
    if os.path.basename(name) != name or name in (".", ".."):
        folders = [Path(name)]
    for folder in folders:
        if any(folder.glob(f"{stage}.yaml")):
            return folder
    known = recipe_names(stage)
    if any(any(folder.glob("*.yaml")) for folder in folders):
        raise InputError(f"Recipe {name} has no {stage}.yaml. Add it, or choose from {', '.join(known)}.")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Choose from {', '.join(known)}, or pass a recipe's folder."
    raise InputError(f"There is no recipe {name}. {hint}")


def recipe_argument(folder: Path) -> str:
    """Returns what a person types for a recipe's folder: its name, if `find_recipe` finds it by that, else its path."""
    try:
        found = find_recipe(folder.name)
    except InputError:
        return str(folder)
    return folder.name if found.resolve() == folder.resolve() else str(folder)


def find_config(name: str, stage: str) -> Path:
    """Returns the YAML of a stage: `name` itself if it is one, else <stage>.yaml of the recipe `name`.

    Raises:
        InputError: there is none.
    """
    if not name.endswith((".yaml", ".yml")):
        return find_recipe(name, stage) / f"{stage}.yaml"
    if not Path(name).is_file():
        raise InputError(f"Config file {name} does not exist. Check its path.")
    return Path(name)


def config_of(argv: Sequence[str]) -> Path | None:
    """Returns the YAML that a command line names after `--config`; None without one."""
    return next((Path(value) for name, value in pairwise(argv) if name == "--config"), None)
