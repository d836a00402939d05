"""Help of a command: its own options in groups, with unit and default. The Trainer's others are behind --help-all.

The text is made from the parser of the script, whose libraries take seconds to load. rlhf/help/<command>.txt holds it
for `rlhf <command> --help`. `make format` writes these files, and a test compares them with the parsers.
"""

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
from argparse import Action
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAGES = Path(__file__).resolve().parent / "help"
LIBRARIES = ("trl", "transformers")
LORA = re.compile(r"lora_.*|use_(rslora|dora|peft)")
INDENT = " " * 6  # of a help text, and of nothing else in a page

# Options of TRL's and transformers' configs that most runs set. All others are in --help-all only.
TRAINING = (
    "output_dir", "max_length", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps",
    "weight_decay", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "gradient_checkpointing", "bf16", "seed", "logging_steps", "report_to", "eval_strategy", "eval_steps",
    "save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint", "push_to_hub", "hub_model_id",
)  # fmt: skip


def docstring(script: str | Path) -> str:
    """Returns the docstring of a script, or "" if there is no such file."""
    path = Path(script)
    if path.suffix != ".py" or not path.is_file():
        return ""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def stored_page(command: str) -> str | None:
    """Returns the stored help of a command, not wrapped, or None."""
    path = PAGES / f"{command}.txt"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def wrapped(page: str, width: int | None = None) -> str:
    """Returns a page with its help texts wrapped to `width` columns, by default the terminal's, at most 100."""
    width = width or min(shutil.get_terminal_size().columns, 100)
    return "".join(
        textwrap.fill(line, width, subsequent_indent=INDENT, break_on_hyphens=False) + "\n"
        if line.startswith(INDENT)
        else line + "\n"
        for line in page.splitlines()
    )


def help_page(
    script: str, types: Sequence[type], actions: Iterable[Action], hidden: Iterable[str] = (), more: str = ""
) -> str:
    """Returns the help of a script, not wrapped.

    Args:
        script: its file; the page begins with its docstring.
        types: the dataclasses of its options.
        actions: one for each option, in the order of the page.
        hidden: options without effect.
        more: options that no dataclass has, described.
    """
    by_name = {action.dest: action for action in reversed(list(actions))}
    command, hidden, others = Path(script).stem, set(hidden), 0
    own = command.upper() if command in ("sft", "ppo") else command.capitalize()
    groups: dict[str, list[str]] = {"Data": [], "Model": [], "LoRA": [], own: [], "Training": []}
    for kind in types:
        for field in dataclasses.fields(kind):
            if not field.init or field.name in hidden or field.name not in by_name:
                continue
            group = group_of(kind, field.name)
            others += group is None
            if group is not None:
                groups[group or own].append(described(by_name[field.name]))
    groups["Training"].sort(key=lambda text: TRAINING.index(text.split()[0].removeprefix("--")))
    if not groups["Training"]:
        groups = {own: groups.pop(own), **groups}
    blocks = [docstring(script)]
    blocks += [f"{title} options:\n" + "\n".join(options) for title, options in groups.items() if options]
    blocks.append("  --config FILE\n      YAML with any of these options. The command line overrides it.")
    blocks.append(more)
    if others:
        blocks.append(f"{others} more options of the Trainer: rlhf {command} --help-all")
    return "\n\n".join(block for block in blocks if block) + "\n"


def group_of(kind: type, name: str) -> str | None:
    """Returns the group of a dataclass's option, "" for the command's own, None for one that only --help-all shows."""
    owner = next(base for base in kind.__mro__ if name in inspect.get_annotations(base))
    if "lora_r" in {field.name for field in dataclasses.fields(kind)}:
        return "LoRA" if LORA.fullmatch(name) else "Model"
    if kind.__module__.startswith("rlhf.data."):
        return "Data"
    if name in TRAINING:
        return "Training"
    return None if owner.__module__.partition(".")[0] in LIBRARIES else ""


def described(action: Action) -> str:
    """Returns an option in two lines: its name and values; its help and default."""
    text = " ".join(((action.help or "") % vars(action)).split())
    stop = "" if text.endswith((".", "!", "?")) else "."
    default = "Required." if action.required else f"Default: {plain(action.default)}."
    if action.default is None and takes_auto(action):
        default = "Default: auto."
    elif action.default is None and not action.required and re.search(r"\bNone\b", text):
        default = ""  # the text says what None does
    return f"  {action.option_strings[0]} {values(action)}\n{INDENT}{text}{stop} {default}".rstrip()


def values(action: Action) -> str:
    """Returns the values that an option takes: a type in capitals, or the choices."""
    kind = getattr(action.type, "__name__", "")
    text = {"int": "INT", "float": "FLOAT", "string_to_bool": "true|false"}.get(kind, "TEXT")
    choices = "|".join(map(str, action.choices or ()))
    text = choices if 0 < len(choices) <= 60 else f"{text}|auto" if takes_auto(action) else text
    return f"{text} ..." if action.nargs == "+" else text


def takes_auto(action: Action) -> bool:
    """True for a truth value or whole number that may be left to the program, as its help says."""
    return getattr(action.type, "__name__", "") in ("string_to_bool", "int") and "auto: " in (action.help or "")


def plain(value: Any) -> str:
    """Returns a value as it is typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(plain, value))
    return str(getattr(value, "value", value)) if value != "" else '""'
