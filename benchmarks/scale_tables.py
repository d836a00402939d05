"""Prints the tables of docs/scale.md: which layout fits which model on which GPUs, by rlhf/models/memory.py alone.

python benchmarks/scale_tables.py
"""

from collections.abc import Callable
from functools import partial

from rlhf.models.fitting import fits
from rlhf.models.memory import Memory, ppo_memory, reward_memory, sft_memory
from rlhf.models.model_sizes import Layout, Shape

MODELS = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "Qwen3-14B": Shape(40, 5120, 17408, 40, 8, 128, 151936, qk_norm=True),
    "Qwen3-32B": Shape(64, 5120, 25600, 64, 8, 128, 151936, qk_norm=True),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128, 128256),
}
GPUS = (24, 48, 80, 141)  # GB = 10^9 bytes
RANK = 32
LAYOUTS = {
    "bf16": Layout("bfloat16", rank=RANK),
    "4-bit": Layout("nf4-nested", rank=RANK),
    **{f"FSDP {n}": Layout("bfloat16", "fsdp", n, rank=RANK) for n in (2, 4, 8, 16, 32)},
}
ROWS = (16, 8, 4, 2, 1)
StageMemory = Callable[[Shape, Layout, int], Memory]
STAGES: dict[str, StageMemory] = {
    "SFT": partial(sft_memory, tokens=2048),
    "Reward model": lambda shape, layout, rows: reward_memory(shape, layout, rows, 4, 512, 512, per_forward=16),
    "PPO": lambda shape, layout, rows: ppo_memory(shape, layout, rows, 1024, 512, slots=4 * rows),
}


def main() -> None:
    print("\n\n".join(tables()))


def tables() -> list[str]:
    """Returns the tables in Markdown: one for each stage, and the terms of one model."""
    return [*(fitting(name, stage) for name, stage in STAGES.items()), terms(MODELS["Llama-3.1-8B"])]


def fitting(name: str, stage: StageMemory) -> str:
    """Returns the first layout that fits each GPU, with the largest number of rows that do."""
    rows = [[name, *(f"{gpu} GB" for gpu in GPUS)]]
    rows += [[model, *(first_that_fits(stage, shape, gpu) for gpu in GPUS)] for model, shape in MODELS.items()]
    return markdown(rows)


def first_that_fits(stage: StageMemory, shape: Shape, gpu: int) -> str:
    for name, layout in LAYOUTS.items():
        for rows in ROWS:
            if fits(stage(shape, layout, rows), gpu * 10**9):
                return f"{name}: {rows}"
    return "none"


def terms(shape: Shape) -> str:
    """Returns the bytes of each term, in GB, of the three stages on a 4-bit base with 2 rows."""
    memories = {name: stage(shape, LAYOUTS["4-bit"], 2) for name, stage in STAGES.items()}
    names = list(dict.fromkeys(name for memory in memories.values() for name in memory.resident))
    rows = [["GB", *memories]]
    rows += [[name, *(gigabytes(memory.resident[name]) for memory in memories.values())] for name in names]
    phases = list(dict.fromkeys(phase for memory in memories.values() for phase in memory.phases))
    for phase in phases:
        found = [memory.phases.get(phase) for memory in memories.values()]
        parts = list(dict.fromkeys(part for terms in found for part in terms or ()))
        rows += [[f"{phase}: {part}", *(gigabytes(terms[part]) if terms and part in terms else "" for terms in found)]
                 for part in parts]  # fmt: skip
    rows.append(["**peak**", *(f"**{gigabytes(memory.peak)}**" for memory in memories.values())])
    return markdown(rows)


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f}"


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    main()
