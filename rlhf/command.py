"""The command `rlhf`: finds the script of a command and starts it, training stages through Accelerate.

    rlhf sft mine --accelerate multi_gpu --learning_rate 1e-4

is `accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sft.py --config recipes/mine/sft.yaml
--learning_rate 1e-4`. All other options are those of the scripts. A library is imported only when a script starts.
"""

import difflib
import os
import re
import runpy
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import rlhf
from rlhf.errors import InputError
from rlhf.help_page import docstring, stored_page, wrapped
from rlhf.runs.installation import find_config, installed_folder, recipe_names
from rlhf.runs.launch import launch_options

# Commands in the order in which a person meets them. Scripts that are not listed follow.
HEADINGS = {
    "Start": ("demo", "new", "doctor", "data", "label", "check", "plan"),
    "Train": ("sft", "reward", "choose", "ppo", "pretrain"),
    "Measure": ("evaluate", "benchmark", "runs", "report", "inspect"),
    "Use": ("chat", "compare", "merge", "export", "push"),
}
LAUNCHED = ("sft", "reward", "choose", "ppo", "evaluate", "benchmark", "pretrain", "demo")  # in several processes
READ_YAML = ("data", "sft", "reward", "choose", "ppo", "evaluate", "pretrain")  # recipes/<recipe>/<command>.yaml
HELP = {"-h", "--help", "--help-all"}

USAGE = """\
usage: rlhf <command> [recipe or folder of a run] [--option value ...]

    rlhf demo                       # the whole recipe on a toy model, in ten minutes on two CPU cores
    rlhf ppo mine --kl_coef 0.05    # a stage of ./recipes/mine or of a recipe of the package
    rlhf ppo --help                 # options of a command
"""
ACCELERATE = """\
Stages take --accelerate NAME as well: {names}, or the path of a YAML of `accelerate config`. Without it they run in \
one process on the CPU or on the GPU, or in one process on each of several GPUs. Stages that train take \
--sweep kl_coef=0.02,0.05 seed=0,1 as well: a run for each point of the grid, in a folder of its own.
"""


def main() -> None:
    """Runs a command."""
    with_one_line_errors(lambda: run(sys.argv[1:]))


def with_one_line_errors(function: Callable[[], None]) -> None:
    """Calls a function. A mistake of the user is one line and exit code 2; Ctrl-C is exit code 130."""
    try:
        function()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # rlhf --help | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: list[str]) -> None:
    """Runs `rlhf <args>`.

    Raises:
        InputError: unknown command, recipe or configuration of the launch.
    """
    if not args or args[0] in HELP:
        print(overview(), end="", flush=True)
        return
    if args[0] == "--version":
        print(rlhf.__version__)
        return
    command, *args = args
    script = find_script(command)
    page = stored_page(command)
    if page and {"-h", "--help"} & set(args):
        print(wrapped(page), end="", flush=True)
    elif command not in LAUNCHED or HELP & set(args):
        start(script, with_config(command, args))
    elif any(arg.partition("=")[0] == "--sweep" for arg in args):
        sweep(command, script, args)
    else:
        accelerate, args = take_option(args, "--accelerate")
        args = with_config(command, args)
        options = launch_options(accelerate or ("multi_cpu" if command == "demo" else None))
        folder = installed_folder("accelerate_configs")
        start(folder / "launch.py", [*options, str(folder / "start.py"), str(script), *args])


def sweep(command: str, script: Path, args: list[str]) -> None:
    """Runs a stage once for each point of a grid: `rlhf ppo mine --sweep kl_coef=0.02,0.05 seed=0,1`."""
    from rlhf.runs.sweep import run_sweep, take_sweep  # not at the top: `rlhf --help` needs no YAML

    words, args = take_sweep(args)
    accelerate, own = take_option(args, "--accelerate")
    options = with_config(command, own)
    launch_options(accelerate)  # refuses what cannot be launched
    run_sweep(command, script, options, words, [sys.executable, "-m", "rlhf.command", command, *args])


def start(script: Path, args: list[str]) -> None:
    """Runs a script in this process, as `python script args` would."""
    sys.argv = [str(script), *args]
    runpy.run_path(str(script), run_name="__main__")


def with_config(command: str, args: list[str]) -> list[str]:
    """Returns the arguments with a recipe, if they begin with one, as the option of its YAML.

    Raises:
        InputError: no such recipe, or neither a recipe nor an option is given.
    """
    if command not in READ_YAML or (args and args[0].startswith("-")):
        return args
    if not args:
        known = ", ".join(recipe_names(command))
        raise InputError(f"A recipe is missing. Name one, such as {known}, or its folder: rlhf {command} <recipe>.")
    return ["--config", str(find_config(args[0], command)), *args[1:]]


def take_option(args: list[str], name: str) -> tuple[str | None, list[str]]:
    """Returns the value of an option, given as `--name value` or `--name=value`, and the other arguments.

    Raises:
        InputError: the option has no value.
    """
    value, others, rest = None, [], iter(args)
    for arg in rest:
        if arg == name or arg.startswith(f"{name}="):
            value = arg.partition("=")[2] or next(rest, "")
            if not value or value.startswith("-"):
                raise InputError(f"{name} needs a value. Pass one after it, such as {name} cpu.")
        else:
            others.append(arg)
    return value, others


# ---- Commands


def find_scripts() -> dict[str, Path]:
    """Returns {command: its script}, one for each script of recipes/."""
    return {path.stem: path for path in sorted(installed_folder("recipes").glob("[a-z]*.py"))}


def find_script(command: str) -> Path:
    """Returns the script of a command.

    Raises:
        InputError: there is none.
    """
    scripts = find_scripts()
    if command not in scripts:
        close = difflib.get_close_matches(command, scripts, n=1)
        hint = f"Did you mean rlhf {close[0]}?" if close else "Run `rlhf --help` for the list."
        raise InputError(f"{command} is not a command. {hint}")
    return scripts[command]


def overview() -> str:
    """Returns the text of `rlhf --help`: each command with the first line of its script, the recipes, the launch."""
    scripts, width = find_scripts(), shutil.get_terminal_size().columns
    listed = {name for names in HEADINGS.values() for name in names}
    blocks = [USAGE]
    for heading, names in {**HEADINGS, "More": [name for name in scripts if name not in listed]}.items():
        lines = [_filled(f"  {name:<10} ", summary(scripts[name]), width) for name in names if name in scripts]
        if lines:
            blocks.append("\n".join([heading, *lines, ""]))
    blocks.append(f"Recipes\n{_filled('  ', ', '.join(recipe_names()), width)}\n")
    launches = sorted(path.stem for path in installed_folder("accelerate_configs").glob("*.yaml"))
    blocks.append(_filled("", ACCELERATE.format(names=", ".join(launches)), width) + "\n")
    return "\n".join(blocks)


def summary(script: Path) -> str:
    """Returns the first line of a script's docstring, without reference and full stop."""
    return re.sub(r" \(arXiv[^)]*\)", "", docstring(script).partition("\n")[0]).rstrip(".")


def _filled(start: str, text: str, width: int) -> str:
    return textwrap.fill(text, width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False)


if __name__ == "__main__":
    main()
