"""Prints memory per device and hours of each stage of a recipe by arithmetic, before anything is loaded.

    rlhf plan llama-3.2-1b --gpu h100
    rlhf plan mine --accelerate fsdp --gpus 8 --gpu a100
    rlhf plan smollm2-135m --stages sft --model_name_or_path path/to/smollm2 --max_length 384

Reads the YAMLs of sft, reward and ppo as the stages do, and the model's config.json (a folder, a GGUF or the Hub); no
weights. Lengths of rows are read from local data, else they are the limits of the recipe. Memory is by the formulas of
rlhf/models/memory.py, time by the FLOPs of rlhf/models/flops.py and the share of a matmul's speed that each stage
reached where it was measured. Other options are those of the stages; name one with --stages for options that not all
have.
"""

import dataclasses
import sys
from dataclasses import dataclass, field

from rlhf.cli import parse, run
from rlhf.errors import InputError, require_at_least
from rlhf.plan.devices import Device, Launch, find_device
from rlhf.plan.stages import STAGES, plan_stage
from rlhf.plan.text import UNCOUNTED, plan_text
from rlhf.runs.installation import find_recipe
from rlhf.runs.launch import launch_sharding, read_launch


@dataclass
class PlanArguments:
    recipe: str = field(metadata={"help": "Name of a recipe, or folder with the YAMLs of the stages."})
    stages: list[str] | None = field(
        default=None, metadata={"help": "Stages to plan: sft, reward, ppo. None: all that the recipe has."}
    )
    gpu: str | None = field(
        default=None,
        metadata={"help": "GPU to plan for: h200, h100, a100, a100-40, l40s, 4090, a10, l4. None: this machine."},
    )
    gpus: int | None = field(
        default=None, metadata={"help": "Number of GPUs. None: the launch's on this machine, or 1 with gpu."}
    )
    accelerate: str | None = field(
        default=None, metadata={"help": "Launch, as for a stage. None: by the number of GPUs."}
    )
    mean_response: int | None = field(
        default=None, metadata={"help": "Tokens of PPO's responses on average. None: response_length, the most."}
    )

    def __post_init__(self):
        require_at_least(self, 1, "gpus", "mean_response")
        for stage in self.stages or ():
            if stage not in STAGES:
                raise InputError(f"{stage} is not a stage with a plan. Choose from {', '.join(STAGES)}.")


def main() -> None:
    own, others = split_options(sys.argv[1:])
    (args,) = parse(PlanArguments, args=own, positional="recipe")
    recipe = find_recipe(args.recipe)
    _, config = read_launch(args.accelerate)
    named = args.gpu is not None
    processes = args.gpus or (config["num_processes"] if args.accelerate or not named else 1)
    use_cpu = not named and bool(config.get("use_cpu"))
    device = find_device(args.gpu, use_cpu, processes)
    launch = Launch(launch_sharding(config) if processes > 1 else "ddp", processes, device)
    print(f"{recipe.name} on {processes} x {device.name}: {described(device)}\n")
    for stage in args.stages or STAGES:
        if (recipe / f"{stage}.yaml").is_file():
            print(plan_text(plan_stage(stage, recipe, launch, others, args.mean_response), device) + "\n", flush=True)
        elif args.stages:
            raise InputError(f"Recipe {recipe.name} has no {stage}.yaml. Leave {stage} out of --stages.")
    print(UNCOUNTED)


def described(device: Device) -> str:
    speeds = ", ".join(f"{speed / 1e12:.3g} TFLOP/s in {name}" for name, speed in device.matmul.items())
    return f"{device.memory / 1e9:.0f} GB, {speeds}, {device.bandwidth / 1e9:,.0f} GB/s ({device.source})"


def split_options(args: list[str]) -> tuple[list[str], list[str]]:
    """Divides the command line into the options of the plan and those of the stages, each with its values."""
    names = {f"--{each.name}" for each in dataclasses.fields(PlanArguments)} | {"-h", "--help", "--help-all"}
    own, others, mine = [], [], True
    for arg in args:
        if arg.startswith("-"):
            mine = arg.partition("=")[0] in names
        (own if mine else others).append(arg)
    return own, others


if __name__ == "__main__":
    run(main)
