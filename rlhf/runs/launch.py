"""Choices of a launch with Accelerate on this machine: configuration, number of processes, threads of each."""

import os
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import InputError, first_line
from rlhf.runs.installation import installed_folder


def launch_options(accelerate: str | None) -> list[str]:
    """Returns the options of `accelerate launch` for a configuration.

    Sets ACCELERATE_USE_CPU for a configuration with `use_cpu`: of several processes the launcher forgets it.

    Args:
        accelerate: as for `read_launch`.

    Raises:
        InputError: no such configuration, a malformed one, or one for GPUs on a machine without.
    """
    path, config = read_launch(accelerate)
    options = ["--config_file", str(path)]
    if config.get("use_cpu"):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return [*options, "--num_cpu_threads_per_process", str(threads(config["num_processes"]))]
    if counts_gpus(path, config):
        if not count_gpus():
            raise InputError(f"--accelerate {accelerate} needs a GPU, and torch finds none. Pass --accelerate cpu.")
        options += ["--num_processes", str(config["num_processes"])]
    return options


def read_launch(accelerate: str | None) -> tuple[Path, dict[str, Any]]:
    """Returns the file of a configuration of Accelerate and its keys, with this machine's number of processes.

    Args:
        accelerate: name of a file in accelerate_configs/, or path of a YAML. None: cpu, single_gpu or multi_gpu, by the
            number of GPUs, or multi_node if NNODES is set. A path's `num_processes` is taken as it is; a name's is the
            number of GPUs, if there are any, unless the configuration is for CPUs, one process or several machines.

    Raises:
        InputError: no such configuration, or a malformed one.
    """
    import yaml

    folder = installed_folder("accelerate_configs")
    by_gpus = "multi_node" if names_several_machines() else ("cpu", "single_gpu", "multi_gpu")[min(count_gpus(), 2)]
    name = accelerate or by_gpus
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise InputError(f"--accelerate {name} does not exist. Pass one of {names}, or the path of a YAML.")
    remedy = "Write one with `accelerate config --config_file`."
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--accelerate {path} cannot be read: {error}. {remedy}") from error
    if not isinstance(config, dict) or not isinstance(config.get("num_processes", 1), int):
        raise InputError(f"--accelerate {path} is no configuration of Accelerate. {remedy}")
    if path.parent != folder:
        check_configuration(path, config)
    config.setdefault("num_processes", 1)
    if counts_gpus(path, config) and config["num_processes"] > 1 and count_gpus():
        config["num_processes"] = count_gpus()
    return path, config


def check_configuration(path: Path, config: dict[str, Any]) -> None:
    """Reads a configuration as Accelerate does, whose launcher would end with a traceback.

    Raises:
        InputError: an unknown or a missing key, or a value that is none of its values.
    """
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        load_config_from_file(str(path))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"--accelerate {path} is no configuration of Accelerate: {first_line(error)}. Write one with `accelerate "
            "config --config_file`."
        ) from error
    if config.get("num_processes", 1) < 1:
        raise InputError(f"--accelerate {path} sets num_processes to {config['num_processes']}. Set it to 1 or more.")
    if config.get("mixed_precision", "no") not in (False, "no", "fp16", "bf16", "fp8"):
        raise InputError(
            f"--accelerate {path} sets mixed_precision to {config['mixed_precision']}. Set it to no, fp16, bf16 or fp8."
        )


def launch_sharding(config: dict[str, Any]) -> Literal["ddp", "fsdp", "zero3"]:
    """Returns how a configuration of Accelerate divides a model: whole on each process, by FSDP, or by ZeRO-3."""
    if config.get("distributed_type") == "FSDP":
        return "fsdp"
    stage = (config.get("deepspeed_config") or {}).get("zero_stage")
    return "zero3" if config.get("distributed_type") == "DEEPSPEED" and stage == 3 else "ddp"


def counts_gpus(path: Path, config: dict[str, Any]) -> bool:
    """True for a configuration of the package that is for the GPUs of one machine."""
    packaged = path.parent == installed_folder("accelerate_configs")
    return (
        packaged and not config.get("use_cpu") and config.get("num_machines", 1) == 1 and not names_several_machines()
    )


def names_several_machines() -> bool:
    """True if NNODES names several machines; accelerate_configs/launch.py then sets the number of processes."""
    return os.environ.get("NNODES", "1") not in ("", "0", "1")


def count_gpus() -> int:
    """Returns the number of accelerators that torch sees on this machine."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def threads(processes: int) -> int:
    """Returns the threads of each process on the CPU: OMP_NUM_THREADS, or an equal share of the cores, rounded up."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else -(-count_cores() // processes)


def count_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
