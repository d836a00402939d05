"""The plan of a stage: its memory and its work, from its configs and the lengths of its rows."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from rlhf.data.lengths import shorter
from rlhf.errors import InputError
from rlhf.models.fitting import EVERY, Divisions, choose_division, divisions, in_process, tokens_wanted
from rlhf.models.loading import context_length, load_config, load_tokenizer
from rlhf.models.memory import Memory
from rlhf.models.model_sizes import Layout, shape_of
from rlhf.models.recomputation import OPTIONS
from rlhf.plan.devices import Launch
from rlhf.plan.lengths import quietly, stage_rows
from rlhf.plan.seconds import seconds_of_work
from rlhf.plan.work import Found, Inputs, ppo_work, reward_work, row_tokens, sft_work, tokens_of_a_pass
from rlhf.ppo.config import TRL_MODEL
from rlhf.ppo.rollout import longest_prompt
from rlhf.runs.batches import ROWS, divide_batch
from rlhf.runs.installation import installed_folder
from rlhf.runs.launch import count_gpus
from rlhf.runs.parsed_options import parsed_options

STAGES = {"sft": sft_work, "reward": reward_work, "ppo": ppo_work}


@dataclass(frozen=True)
class StagePlan:
    """Memory and time of a stage on each device.

    Attributes:
        rows: what the lengths of rows are from.
        passes: rows in a micro-batch, in words.
        seconds: part -> seconds of a step, in PPO of a rollout.
        steps: steps or rollouts of the stage; None if the number of rows is not known.
        notes: what the plan takes for granted.
    """

    stage: str
    model: str
    layout: Layout
    rows: str
    passes: str
    memory: Memory
    seconds: dict[str, float]
    steps: int | None
    notes: list[str]

    @property
    def hours(self) -> float | None:
        return None if self.steps is None else self.steps * sum(self.seconds.values()) / 3600


def plan_stage(
    stage: str, recipe: Path, launch: Launch, options: list[str], mean_response: int | None = None
) -> StagePlan:
    """Returns the plan of one stage of a recipe.

    Args:
        options: of the stage, after the YAML.
        mean_response: tokens of PPO's responses on average; None: response_length.

    Raises:
        InputError: an option that the stage would refuse, no configuration of the model or one of an unknown form.
    """
    values = stage_values(stage, recipe / f"{stage}.yaml", options)
    name = values["model_name_or_path"]
    if name is None and (recipe / "sft.yaml").is_file():  # that of the adapter
        name = stage_values("sft", recipe / "sft.yaml")["model_name_or_path"]
    if not name:
        raise InputError(f"{stage}.yaml has no model_name_or_path. Set it, or pass --model_name_or_path.")
    try:
        config = load_config(name, values["model_revision"])
    except InputError as error:
        raise InputError(f"{error} A plan needs its config.json: pass --model_name_or_path with a folder.") from error
    shape = shape_of(config)
    adapter = adapter_options(stage, values, recipe)
    dropout = stage != "ppo" and adapter["lora_dropout"] > 0
    layout = layout_of(values, config, launch, adapter["lora_r"], dropout)
    try:
        with quietly():
            tokenizer = load_tokenizer(name, values["model_revision"])
    except InputError:
        tokenizer = None
    if stage == "ppo":
        limit = longest_prompt(config, values["max_prompt_length"], values["response_length"])
    else:
        limit = shorter(values["max_length"], context_length(config))
    if limit is None:
        raise InputError(f"{stage}.yaml has no limit of the length, and neither has the model. Set one.")
    rows = stage_rows(stage, values["data_args"], tokenizer, limit)

    args = values["args"]
    inputs = Inputs(shape, layout, values, rows, launch, mean_response, args.per_device_train_batch_size)

    @cache
    def planned(most: int, every: int) -> Found:
        found = STAGES[stage](replace(inputs, layout=replace(layout, checkpointing=every), most=most))
        return replace(found, memory=in_process(found.memory, launch.device.kind))

    every = EVERY if args.computed >= OPTIONS else (layout.checkpointing,)  # gradient_checkpointing: auto
    choices = open_divisions(stage, inputs) if ROWS in args.computed else Divisions([inputs.most], [])
    most, chosen = choose_division(lambda *choice: planned(*choice).memory, choices, launch.device.memory, every)
    found, layout = planned(most, chosen), replace(layout, checkpointing=chosen)
    seconds = seconds_of_work(found.work, launch.device, layout, shape.layers)
    return StagePlan(
        stage, name, layout, rows.source, found.passes, found.memory, seconds, found.steps, found.notes
    )  # fmt: skip


def open_divisions(stage: str, inputs: Inputs) -> Divisions:
    """Returns the rows of a pass of which `per_device_train_batch_size: auto` chooses."""
    option = "mini_batch_size" if stage == "ppo" else "batch_size"
    share, _ = divide_batch(inputs.values[option], inputs.launch.processes, inputs.values[option], option)
    padded = stage == "sft" and not inputs.layout.packed
    wanted = tokens_wanted(tokens_of_a_pass(inputs), inputs.launch.device.kind, padded)
    return divisions(share, row_tokens(stage, inputs), wanted)


def stage_values(stage: str, path: Path, options: list[str] | None = None) -> dict[str, Any]:
    """Returns the fields of all configs of a stage, `args` (the trainer's) and `data_args`."""
    elsewhere = [] if count_gpus() else ["--use_cpu", "true"]  # or options for GPUs would be refused here
    script = installed_folder("recipes") / f"{stage}.py"
    configs = parsed_options(script, ["--config", str(path), *(options or ()), *elsewhere])
    values = {name: value for config in configs for name, value in vars(config).items()}
    values["args"] = next(config for config in configs if hasattr(config, "per_device_train_batch_size"))
    values["data_args"] = next(config for config in configs if hasattr(config, "dataset_name"))
    return values


def layout_of(values: dict[str, Any], config: Any, launch: Launch, rank: int, dropout: bool) -> Layout:
    """Returns how a stage computes, with adapters of `rank`, with dropout or without.

    Raises:
        InputError: weights in 8 bits.
    """
    if values["load_in_8bit"]:
        raise InputError("The memory of load_in_8bit is not known, only that of load_in_4bit. Measure a short run.")
    dtype = str(values["dtype"] or "auto").removeprefix("torch.")
    if dtype == "auto":
        dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    base = "float32" if dtype == "float32" else "bfloat16"  # float16 has as many bytes
    if values["load_in_4bit"]:
        base = "nf4-nested" if values["use_bnb_nested_quant"] else "nf4"
    args = values["args"]
    autocast, checkpointing = args.bf16 or args.fp16, args.gradient_checkpointing
    layout = Layout(base, launch.sharding, launch.processes, autocast, checkpointing, rank)
    return layout.on(launch.device.kind, dropout)


def adapter_options(stage: str, values: dict[str, Any], recipe: Path) -> dict[str, Any]:
    """Returns lora_r and lora_dropout: a stage's own, or those of the SFT adapter from which it starts."""
    path = values.get("sft_model_path")
    if stage == "sft" or path in (None, "", TRL_MODEL):
        return values
    config = Path(str(path)) / "adapter_config.json"
    if config.is_file():
        stored = json.loads(config.read_text(encoding="utf-8"))
        return {"lora_r": stored["r"], "lora_dropout": stored["lora_dropout"]}
    return stage_values("sft", recipe / "sft.yaml") if (recipe / "sft.yaml").is_file() else values
