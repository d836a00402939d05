"""Console of a stage: a title, facts before the training, the result and the next command.

Lines go to stdout, from the first process only; `rlhf.runs.progress` adds the table between them. Names are colored on
a terminal, unless NO_COLOR is set (no-color.org). Elsewhere the lines are plain.
"""

import json
import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import nn
from tqdm.auto import tqdm

from rlhf.runs.artifacts import is_first_process
from rlhf.runs.installation import config_of, recipe_argument
from rlhf.runs.stage_report import write_stage_report

SKIPPED = "skipped_rows.jsonl"
NAME_WIDTH = 10  # columns of the names of facts
STAGES = ("sft", "reward", "choose", "ppo", "evaluate")
SHOW_NEXT = True  # at the end of a stage, the command of the next one, which `rlhf demo` starts by itself


def show_title(stage: str, folder: str | Path) -> None:
    """Prints the stage's name and the folder it writes to."""
    say("", paint(stage, "1") + f"  {folder}")


def show(name: str, text: str, code: str = "") -> None:
    """Prints one fact: its name, and the text beside it, wrapped to the terminal and painted with `code`."""
    width = min(110, shutil.get_terminal_size((110, 24)).columns) - NAME_WIDTH
    lines = [part for line in text.split("\n") for part in textwrap.wrap(line, max(width, 40)) or [""]]
    first, *rest = [paint(line, code) if code else line for line in lines]  # wrapped without the codes
    say(paint(f"{name:<{NAME_WIDTH}}", "36") + first, *(" " * NAME_WIDTH + line for line in rest))


def say(*lines: str) -> None:
    """Prints lines on stdout, from the first process of the launch; a character that stdout cannot write becomes ?."""
    if is_first_process():
        encoding = sys.stdout.encoding or "utf-8"
        with tqdm.external_write_mode():  # a bar that is shown moves below the lines
            print(*(line.encode(encoding, "replace").decode(encoding) for line in lines), sep="\n", flush=True)


def paint(text: str, code: str) -> str:
    """Returns the text in a color (an SGR code, "1" is bold) if stdout is a terminal that shows colors."""
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\033[{code}m{text}\033[0m" if colored else text


# ---- Facts before the training --------------------------------------------------------------------------------------


def show_rows(source: str, train: int, held_out: int, lengths: Sequence[int], limit: int | None, folder: str) -> None:
    """Prints numbers of rows, why others were skipped, and the longest row.

    Args:
        source: dataset_name.
        lengths: [train] tokens of the training rows.
        limit: tokens of the longest row that is allowed; None is no limit.
        folder: the run's folder, which may list skipped rows.
    """
    others = f", {held_out:,} held out" if held_out else ""
    most = f"{max(lengths):,} at most" + ("" if limit is None else f" (limit {limit:,})")
    show("rows", f"{train:,} to train on{others}; {sum(lengths) / train:,.0f} tokens on average, {most}; from {source}")
    if skipped := skipped_rows(Path(folder) / SKIPPED):
        show("skipped", skipped)


def skipped_rows(path: Path) -> str:
    """Returns how many rows a run skipped and the most frequent reasons; "" without any."""
    if not path.exists():
        return ""
    reasons = [json.loads(line)["reason"] for line in path.read_text(encoding="utf-8").splitlines()]
    example: dict[str, str] = {}
    for reason in reasons:
        example.setdefault(re.sub(r"\d+", "0", reason), reason)  # the same reason with other numbers
    counts = Counter(re.sub(r"\d+", "0", reason) for reason in reasons).most_common(3)
    texts = [f"{count} because of: {example[kind]}" for kind, count in counts]
    return f"{len(reasons):,} rows ({path})\n" + "\n".join(texts)


def show_model(name: str, model: nn.Module) -> None:
    """Prints the numbers of parameters, in all and trained."""
    total, trained = parameters(model)
    share = f" ({100 * trained / total:.1f} %)" if total else ""
    show("model", f"{name}: {amount(total)} parameters, {amount(trained)} of them trained{share}")


def parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the numbers of all and of trained parameters, those of 4-bit and of ZeRO-3 counted in full."""
    total = trained = 0
    for parameter in model.parameters():
        size = parameter.numel() or getattr(parameter, "ds_numel", 0)
        if type(parameter).__name__ == "Params4bit":  # packed, two weights a byte
            size *= 2 * parameter.element_size()
        total += size
        trained += size if parameter.requires_grad else 0
    return total, trained


def show_device(device: torch.device, processes: int) -> None:
    """Prints the device, the number of processes, and the memory in use."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else device.type.upper()
    threads = "" if cuda else f" of {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    if cuda:
        free, total = torch.cuda.mem_get_info(device)
        memory = f"{gigabytes(total - free)} of {gigabytes(total)} GB"
    else:
        used = psutil.Process().memory_info().rss
        memory = f"{gigabytes(used)} GB by this process, {gigabytes(psutil.virtual_memory().available)} GB free"
    show("device", f"{name}, {processes} process{'es' * (processes > 1)}{threads}; memory: {memory}")


# ---- The end --------------------------------------------------------------------------------------------------------


def show_end(result: str, folder: str | Path, seconds: float, stage: str) -> None:
    """Draws report.html, and prints result, time, memory, where the files are, and the command of the next stage."""
    if is_first_process():
        write_stage_report(folder, stage)
    show("result", result, "1")
    peak = f"; at most {gigabytes(torch.cuda.max_memory_allocated())} GB" if torch.cuda.is_initialized() else ""
    show("time", f"{duration(seconds)}{peak}")
    what = "the model" if stage == "pretrain" else "the adapter"
    show("files", f"{folder}: {what}, report.html, result.json, metrics.jsonl with all numbers")
    if command := next_command(stage, sys.argv):
        show("next", command)


def next_command(stage: str, argv: Sequence[str]) -> str | None:
    """Returns the command of the stage that follows in the recipe, which is the folder of the YAML in `argv`.

    None for a run in another folder than the recipe's, such as a point of a sweep: the next stage would not read it.
    """
    config = config_of(argv) if SHOW_NEXT else None
    if config is None or stage not in STAGES or any(arg.partition("=")[0] == "--output_dir" for arg in argv):
        return None
    recipe = config.parent
    following = [name for name in STAGES[STAGES.index(stage) + 1 :] if (recipe / f"{name}.yaml").exists()]
    named = recipe_argument(recipe)
    smoke = " --smoke" if "--smoke" in argv else ""
    return f"rlhf {following[0]} {shlex.quote(named)}{smoke}" if following else None


# ---- Numbers --------------------------------------------------------------------------------------------------------


def amount(number: int) -> str:
    """Returns a large number in three digits: 135 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f}"


def duration(seconds: float) -> str:
    """Returns 45 s, 12 min or 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds_from_now: float) -> str:
    """Returns the time of day, with the weekday if it is not today."""
    then = time.localtime(time.time() + seconds_from_now)
    today = then.tm_yday == time.localtime().tm_yday
    return time.strftime("%H:%M" if today else "%A %H:%M", then)
