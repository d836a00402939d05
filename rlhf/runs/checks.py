"""Finds, before a model is loaded, what the Trainer would find after it, or at its end."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.training_args import OptimizerNames
from trl import ModelConfig

from rlhf.errors import InputError, first_line, require_at_least
from rlhf.runs.trackers import check_tracker

logger = logging.getLogger(__name__)


def check_training(args: TrainingArguments) -> None:
    """Makes what a Trainer makes of its options, and drops it: reporters, optimizer, learning rates, output folder.

    Raises:
        InputError: a package is missing, values do not fit together, or the folder cannot be written.
    """
    check_values(args)
    check_reporters(args.report_to)
    with _as_input_error(f"optim {OptimizerNames(args.optim).value}"):
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer_class([nn.Parameter(torch.zeros(1))], **settings)
    schedule, options = SchedulerType(args.lr_scheduler_type).value, args.lr_scheduler_kwargs
    with _as_input_error(f"lr_scheduler_type {schedule} with lr_scheduler_kwargs {options}"):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        get_scheduler(args.lr_scheduler_type, optimizer, args.get_warmup_steps(100), 100, options)  # pyright: ignore[reportArgumentType]
    if args.save_strategy == "best" and (args.eval_strategy == "no" or args.metric_for_best_model is None):
        raise InputError("save_strategy best needs an eval_strategy and metric_for_best_model. Set both.")
    if getattr(args, "activation_offloading", False) and args.device.type == "cpu":
        raise InputError(
            "activation_offloading moves activations from a GPU to the CPU, and there is no GPU. Unset it."
        )
    check_writable(str(args.output_dir))


def check_values(args: TrainingArguments) -> None:
    """Checks the ranges of numbers that the Trainer reads late, or with which it does nothing.

    Raises:
        InputError: a value out of range, or None where there must be a number.
    """
    for name in ("learning_rate", "max_grad_norm", "seed"):
        if getattr(args, name) is None:
            raise InputError(f"{name} is empty; give a number, or leave it out.")
    require_at_least(
        args, 0, "learning_rate", "weight_decay", "max_grad_norm", "seed", "data_seed", "dataloader_num_workers",
        "eval_delay",
    )  # fmt: skip
    require_at_least(args, 1, "per_device_eval_batch_size", "eval_accumulation_steps", "save_total_limit")
    for name in ("neftune_noise_alpha", "center_rewards_coefficient"):
        if hasattr(args, name):
            require_at_least(args, 0, name)
    for name in ("pad_to_multiple_of", "dataset_num_proc"):
        if hasattr(args, name):
            require_at_least(args, 1, name)
    if max(args.seed, args.data_seed or 0) >= 2**32:
        raise InputError("seed and data_seed must be below 2**32.")
    if args.num_train_epochs <= 0 and args.max_steps <= 0 and getattr(args, "total_episodes", None) is None:
        raise InputError(f"num_train_epochs is {args.num_train_epochs}, so no step would be taken. Make it positive.")
    for name in ("save", "eval", "logging"):
        steps, strategy = getattr(args, f"{name}_steps"), getattr(args, f"{name}_strategy")
        if strategy == "steps" and steps is not None and steps <= 0:
            raise InputError(f"{name}_steps is {steps:g}; it must be positive. For never, set {name}_strategy to no.")
    if args.dataloader_persistent_workers and args.dataloader_num_workers == 0:
        raise InputError("dataloader_persistent_workers needs dataloader_num_workers of at least 1. Set both.")
    given = [name for name in ("hub_model_id", "hub_private_repo", "hub_revision") if getattr(args, name) is not None]
    if given and not args.push_to_hub:
        logger.warning("%s without push_to_hub: nothing will be uploaded", " and ".join(given))


def check_reporters(names: list[str] | str | None) -> None:
    """Makes each reporter's callback, which looks for its package.

    Raises:
        InputError: an unknown name, or a package that is not installed.
    """
    for name in [names] if isinstance(names, str) else names or ():
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"report_to {name} is unknown. Choose from none, {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            )
        check_tracker(name)
        with _as_input_error(f"report_to {name}"):
            INTEGRATION_TO_CALLBACK[name]()


def check_model_options(model_args: ModelConfig) -> None:
    """Looks for the packages that loading a model with these options needs.

    Raises:
        InputError: one is missing, or an unknown attention.
    """
    attention = model_args.attn_implementation or ""
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if attention and "/" not in attention and attention.removeprefix("paged|") not in known:
        names = ", ".join(sorted(name for name in known if "|" not in name))
        raise InputError(f"attn_implementation {attention} is unknown. Choose from {names}, or leave it out.")
    packages = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
    package = "kernels" if "/" in attention else packages.get(attention)
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"attn_implementation {attention} needs the package {package}, which is not installed. Leave it out, or "
            "install the package."
        )
    if (model_args.load_in_4bit or model_args.load_in_8bit) and find_spec("bitsandbytes") is None:
        bits = 4 if model_args.load_in_4bit else 8
        raise InputError(f"load_in_{bits}bit needs the package bitsandbytes. Install it: pip install bitsandbytes.")


def check_writable(folder: str | Path, option: str = "output_dir") -> None:
    """Writes a file into the folder, or the nearest one above it that exists, and deletes the file.

    Raises:
        InputError: that is not possible.
    """
    if not str(folder).strip():
        raise InputError(f"{option} is empty. Set it to a folder.")
    path = Path(folder).absolute()
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        with tempfile.NamedTemporaryFile(dir=nearest) as file:
            file.write(bytes(1000))
            file.flush()
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written: {error.strerror}. Choose another.") from error


@contextmanager
def _as_input_error(option: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any package behind the option
        raise InputError(
            f"{option} cannot be used: {first_line(error)}. Change the option, or leave it out."
        ) from error
