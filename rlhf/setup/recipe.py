"""The text of a recipe's YAMLs, and the folder that gets them."""

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from rlhf.errors import InputError
from rlhf.runs.installation import recipe_names
from rlhf.setup.settings import Facts, Setting
from rlhf.setup.stages import READS, STAGES, TITLES, stages_of

WIDTH = 120  # columns


def check_name(name: str) -> Path:
    """Returns the folder of a new recipe, which does not exist.

    Raises:
        InputError: the name cannot be one of a folder, or there is such a recipe.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise InputError(f"Recipe name {name!r} has other characters than letters, digits, points, _ and -. Change it.")
    folder = Path("recipes", name)
    if name in recipe_names() or folder.exists():
        raise InputError(f"There is a recipe {name} already, which is never overwritten. Choose another name.")
    return folder


def render(facts: Facts, stage: str) -> str:
    """Returns the YAML of a stage: a head, then each setting with its reason."""
    found, model = facts.data[READS[stage]], facts.model
    title = TITLES[stage].format(model=model.name, data=found.args.dataset_name)
    command = f"  rlhf {stage} {facts.name}"
    head = [*_wrapped(title), "", command, f"{command} --smoke    # first: in under a minute", ""]
    head += _wrapped(f"Written by `rlhf new` for {facts.machine}. Expected result: not yet measured.")
    if stage in ("sft", "reward"):
        template = "its own chat template" if model.brings_template else "the short default template (it has none)"
        head += _wrapped(f"Prompts in {template}. LoRA on {', '.join(model.layers)}.")
    lines = [f"# {line}".rstrip() for line in head]
    return "\n".join([*lines, *map(setting_line, STAGES[stage](facts))]) + "\n"


def setting_line(setting: Setting) -> str:
    """Returns `option: value  # reason`."""
    name, value, reason = setting
    line = f"{name}: {scalar(value)}"
    return f"{line}  # {reason}" if reason else line


def scalar(value: Any) -> str:
    """Returns a value as YAML writes it in one line."""
    if isinstance(value, float):  # YAML 1.1 reads 1e-4 as text
        return f"{value:.1e}".replace("e-0", "e-") if 0 < value < 0.01 else str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, break_on_hyphens=False, break_long_words=False)


def write_recipe(facts: Facts, folder: Path) -> list[Path]:
    """Writes the YAMLs of all stages for which there is data; returns their paths.

    Raises:
        InputError: the folder cannot be written.
    """
    texts = {f"{stage}.yaml": render(facts, stage) for stage in stages_of(facts)}
    try:
        folder.mkdir(parents=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}. Run in a folder of your own.") from error
    return [folder / name for name in texts]
