"""Seconds of PPO's training pass with eager and with compiled layers (`--compile true`), and of the compilation.

    python benchmarks/compiled_layers.py --shapes sandbox --rows 4 16
    python benchmarks/compiled_layers.py --shapes llama-1b

A pass is forward and backward of policy and value on rows of the longest prompt and response, at the shapes of
`ppo_vs_trl.py`. torch keeps compiled kernels in a folder ($TORCHINDUCTOR_CACHE_DIR): the first run of a shape measures
an empty cache, the second a full one. Elapsed and CPU seconds are medians; `first` is the pass that compiles. The last
line is JSON.
"""

import argparse
import json
import statistics
import time

import psutil
import torch
from ppo_vs_trl import SHAPES, Shape, language_model, lora
from torch._dynamo.utils import counters

from rlhf.models.compiled_layers import compile_layers
from rlhf.models.machine_speed import synchronize
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.layouts import SharedActorCritic


def main() -> None:
    args = parse_arguments()
    print(json.dumps([measure(SHAPES[name], rows, args.repeats) for name in args.shapes for rows in args.rows]))


def measure(shape: Shape, rows: int, repeats: int) -> dict:
    """Returns [elapsed, CPU] seconds of a pass, eager, compiled and first compiled, for one number of rows."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = SharedBase(language_model(shape))
    for name, head in (("sft", False), ("reward", True)):
        base.add_adapter(name, lora_config=lora(), head=head)
    for name, source in (("policy", "sft"), ("value", "reward")):
        base.add_adapter(name, copy_of=source, trainable=True, head=name == "value")
    networks = SharedActorCritic(base).to(device).train()
    ids = torch.randint(2, base.config.vocab_size, (rows, shape.prompt_length + shape.response_length), device=device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "response_mask": torch.ones(rows, shape.response_length, dtype=torch.bool, device=device),
    }

    def seconds() -> tuple[float, float]:
        elapsed, cpu = time.perf_counter(), cpu_seconds()
        logprobs, values = networks("policy_and_value", **inputs)
        (logprobs.sum() + values.sum()).backward()
        synchronize()
        return time.perf_counter() - elapsed, cpu_seconds() - cpu

    def median() -> list[float]:
        return [statistics.median(column) for column in zip(*(seconds() for _ in range(repeats)), strict=True)]

    seconds()
    eager = median()
    compile_layers(base.lm)
    base.compiled = True
    result = {"shape": shape.name, "rows": rows, "eager": eager, "first": seconds(), "compiled": median()}
    print(result, flush=True)
    return {**result, "graphs": counters["stats"]["unique_graphs"], "threads": torch.get_num_threads()}


def cpu_seconds() -> float:
    """CPU seconds of this process and of the compilers that it has started."""
    times = psutil.Process().cpu_times()
    return sum(times[:4])  # user, system, and those of children that have ended


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["sandbox"])
    parser.add_argument("--rows", nargs="+", type=int, default=[4, 16], help="Rows of a micro-batch.")
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
