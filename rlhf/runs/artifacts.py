"""Files that every run writes into its folder: config.yaml, environment.json, metrics.jsonl, result.json."""

import dataclasses
import json
import logging
import math
import os
import platform
import re
import subprocess
import sys
import time
from enum import Enum
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from rlhf.errors import InputError
from rlhf.runs.batches import AUTO, ROWS
from rlhf.runs.installation import config_of
from rlhf.runs.objects import read_object

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "bitsandbytes", "numpy")
SECRET_FIELDS = re.compile(r"^token$|(hub|auth|access)_token$|(api_key|password|secret)$")  # not eos_token
SECRET_VALUES = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/@\s]+(?=@)")


def start_run(output_dir: str | Path, *configs: Any, stage: str) -> None:
    """Creates the run's folder and writes `config.yaml` and `environment.json` (first process only).

    Args:
        output_dir: the stage's folder, e.g. `runs/sandbox/sft`.
        configs: the dataclass instances that `rlhf.cli.parse` returned.
        stage: "sft", "reward", "ppo", ..., written into `environment.json`.
    """
    if not is_first_process():
        return
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = {name: value for config in configs for name, value in resolved_config(config).items()}
    header = f"# Resolved configuration of this {stage} run; use it again with --config.\n"
    (folder / "config.yaml").write_text(header + yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    config = config_of(sys.argv)  # recipes/mine/sft.yaml
    recipe = config.absolute().parent.name if config and config.stem.startswith(stage) else None
    start = {"stage": stage, "recipe": recipe, "started": round(time.time())}
    _write_json(folder / "environment.json", start | environment())


def record_option(output_dir: str | Path, name: str, value: Any) -> None:
    """Writes the value that was chosen for an option that is `auto` into `config.yaml`, if there is one."""
    path = Path(output_dir) / "config.yaml"
    if is_first_process() and path.is_file():
        text = re.sub(rf"^{name}: {AUTO}$", f"{name}: {value}", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        path.write_text(text, encoding="utf-8")


def resolved_config(config: Any) -> dict[str, Any]:
    """Returns the fields of one dataclass that determine the run, given the package versions; without secrets.

    A field that this project defines is always included. A field of a library's config (learning_rate, lora_r) is
    included if its value differs from the library's default, or from this project's own default for it. A field that
    was computed from others (named in `config.computed`) is left out; of the rows of a pass it says `auto`.
    """
    resolved, computed = {}, getattr(config, "computed", ())
    for field in dataclasses.fields(config):
        value = _plain(getattr(config, field.name))
        if field.name == ROWS and ROWS in computed:
            resolved[ROWS] = AUTO
        if not field.init or field.name in computed or SECRET_FIELDS.search(field.name) or value is _NOT_PLAIN:
            continue
        if any(value != default for default in _defaults(type(config), field.name)):
            resolved[field.name] = value
    return resolved


def option_defaults(config: Any) -> dict[str, Any]:
    """Returns the default of each field of a dataclass, in types of YAML; without those that have no plain one."""
    defaults = {field.name: _default(field) for field in dataclasses.fields(config) if field.init}
    return {name: value for name, value in defaults.items() if value is not _NOT_PLAIN}


def environment() -> dict[str, Any]:
    """Returns versions, platform, devices and, if the package runs from a git checkout, its commit."""
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "accelerators": devices,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


class MetricsCallback(TrainerCallback):
    """Appends each log of a Trainer to `metrics.jsonl`: one JSON object per line with step, epoch, seconds, metrics.

    `seconds` is the training time since the first step, across resumptions. A new run replaces the file. A run resumed
    at step k first drops the lines after k, so that the file reads as if the run had never stopped. Values that are not
    finite are written as null, because JSON has no NaN.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / "metrics.jsonl"
        self.started = time.monotonic()

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        rows = [row for row in read_metrics(self.path.parent) if row["step"] <= state.global_step]
        if state.global_step == 0:
            rows = []
        self.started = time.monotonic() - (rows[-1]["seconds"] if rows else 0.0)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        row = {"step": state.global_step, "epoch": state.epoch, "seconds": round(time.monotonic() - self.started, 3)}
        row |= {key: _finite(value) for key, value in logs.items() if key not in row}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(output_dir: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's `metrics.jsonl`, [] without one. Drops a last line that a crash cut short."""
    path = Path(output_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_result(output_dir: str | Path, result: dict[str, Any]) -> None:
    """Writes the stage's final numbers, "seconds" among them, to `result.json` (first process only)."""
    if is_first_process():
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        _write_json(Path(output_dir) / "result.json", result)


def read_result(output_dir: str | Path) -> dict[str, Any]:
    """Returns the stage's final numbers.

    Raises:
        InputError: the stage has not finished in that folder, or the file is damaged.
    """
    path = Path(output_dir) / "result.json"
    result = read_object(path)
    if result is None:
        raise InputError(f"{path} is missing. Run the stage that writes {output_dir} to its end.")
    return result


def is_first_process() -> bool:
    """True in the process that writes the run's files. Launchers set RANK to the number of the process."""
    return os.environ.get("RANK", "0") == "0"


@cache
def say_once(message: str, level: int) -> None:
    """Logs a message once per process, from the first process of the launch."""
    if is_first_process():
        logger.log(level, "%s", message)


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    """Returns the value in types of YAML, or `_NOT_PLAIN` for a callable, a tensor or a library's object."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str):
        return SECRET_VALUES.sub("***", value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple | set):
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if _NOT_PLAIN in items else items
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items() if not SECRET_FIELDS.search(str(key))}
        return _NOT_PLAIN if _NOT_PLAIN in items.values() else items
    return _NOT_PLAIN


def _defaults(config_type: type, name: str) -> list[Any]:
    """Returns two defaults of a field: that of the class, and that of the nearest base class of a library."""
    library = [cls for cls in config_type.__mro__ if cls.__module__.split(".")[0] not in ("rlhf", "__main__")]
    fields = [getattr(cls, "__dataclass_fields__", {}).get(name) for cls in (config_type, *library)]
    known = [field for field in fields if field is not None]
    return [_default(known[0]), _default(known[1]) if len(known) > 1 else _NOT_PLAIN]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return _NOT_PLAIN if field.default is dataclasses.MISSING else _plain(field.default)


def _finite(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package; a repository further up is another project's
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=_finite) + "\n", encoding="utf-8")
