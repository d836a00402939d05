"""PPO of this library beside TRL's own PPOTrainer: same models, prompts, lengths, batches and optimizer steps.

    python benchmarks/ppo_vs_trl.py
    python benchmarks/ppo_vs_trl.py --shapes smollm2-135m --smollm2 models/SmolLM2-135M --repeats 3

Both sides take turns, and each run is a process of its own, so that its peak memory is its own. Policy and value are
LoRA adapters on all linear layers on both sides. TRL's reference is the policy without its adapter, which is the least
memory that TRL can use; it has two more full models, reward and value. Ours has one base for all four. Weights and
arithmetic are float32, or in `llama-1b` and with `--dtype bfloat16` bfloat16 with float32 adapters (TRL's trainer
ignores `bf16`; its models are in bfloat16 nevertheless). `--dtype bfloat16 --trl_dtype float32` compares what each side
takes by default on a CPU that has bfloat16 (AVX512-BF16, AMX): `rlhf new` writes it, TRL's ModelConfig float32.

Each prompt has a fixed response length, equal on both sides: an EOS replaces the token sampled there. Lengths are those
of a policy that ends with the same probability after each token, on average a quarter of `response_length` (the
sandbox's recipe: 20 of 72). With `--lengths full` all responses have `response_length`, so that leaving out padding
gains nothing. TRL gets the whole rollout as one device batch, because with accumulation it skips optimizer steps, and
its update passes a whole minibatch at once. Ours passes a minibatch in four micro-batches, as the recipes do (they have
1 to 32), or in micro-batches of `--micro_batch` rows; that changes no step. Optimizer steps, response tokens and
parameters of the adapters are counted on both sides and must be equal.

On a GPU (`--shapes llama-1b` has the size of Llama 3.2 1B), memory is the peak of PyTorch's allocator, models included.
`update_peak_fraction` is our update's share of the speed of a large matmul measured in the same process; it counts
model FLOPs only (benchmarks/flops.py).

Progress is printed first; the last line is JSON, one object per shape. `speedup` is the ratio of episodes per second
(medians over all rollouts but the first of each run). `memory_ratio` is ours over TRL's growth of peak memory over the
process's memory before it made the models; `raw_memory_ratio` includes Python and the libraries.
"""

import argparse
import copy
import dataclasses
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from flops import gpu_figures, matmul_flops_per_s, update_flops
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
    set_seed,
)
from trl import ModelConfig

from rlhf.models.loading import load_base
from rlhf.models.machine_speed import synchronize
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.ppo.trl_baseline import require_trl_ppo, trl_ppo_config

PAD, LORA_R = 0, 16


@dataclass(frozen=True)
class Shape:
    """A model and its work. Prompts have between `prompt_length` / 2 and `prompt_length` tokens."""

    name: str
    model: str | dict  # `sandbox`, a folder, or the fields of a LlamaConfig for random weights
    prompt_length: int
    response_length: int
    batch: int  # episodes per rollout
    minibatches: int
    rollouts: int = 3  # per run; the first is not timed
    micro_batch: int | None = None  # rows that pass our update at a time; None: the minibatch
    lengths: str = "varied"
    dtype: str = "float32"
    trl_dtype: str | None = None  # None: the same


SMOLLM2_135M = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)  # fmt: skip
VOCAB_49K = dict(vocab_size=49152, hidden_size=256, intermediate_size=688, num_hidden_layers=4,
                 num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True)  # fmt: skip
LLAMA_1B = dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True)  # fmt: skip
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("sandbox", "sandbox", 32, 72, batch=128, minibatches=4, micro_batch=8),
        Shape("vocab49k", VOCAB_49K, 64, 64, batch=32, minibatches=4, micro_batch=2),
        Shape("smollm2-135m", SMOLLM2_135M, 32, 48, batch=16, minibatches=2, micro_batch=2, rollouts=2),
        Shape("llama-1b", LLAMA_1B, 256, 256, batch=64, minibatches=4, micro_batch=4, dtype="bfloat16"),
    )
}


def main() -> None:
    args = parse_arguments()
    if args.side:
        shape = Shape(**json.loads(args.shape))
        if args.side == "trl" and shape.trl_dtype:
            shape = dataclasses.replace(shape, dtype=shape.trl_dtype)
        print(json.dumps(measure(args.side, shape)))
        return
    options = {name: getattr(args, name) for name in ("lengths", "dtype", "trl_dtype", "micro_batch")}
    options = {name: value for name, value in options.items() if value}
    shapes = [dataclasses.replace(SHAPES[name], **options) for name in args.shapes]
    if args.smollm2:
        shapes = [dataclasses.replace(s, model=args.smollm2) if s.name == "smollm2-135m" else s for s in shapes]
    print(json.dumps([compare(shape, args.repeats) for shape in shapes]))


def compare(shape: Shape, repeats: int) -> dict:
    """Both sides in turns, `repeats` runs each."""
    runs = {"ours": [], "trl": []}
    for turn in range(repeats):
        for side in ("ours", "trl") if turn % 2 == 0 else ("trl", "ours"):
            runs[side].append(in_own_process(side, shape))
            last = runs[side][-1]
            print(f"{shape.name} {side}: {shape.batch / statistics.median(last['rollouts_s']):.3g} episodes/s, "
                  f"{last['memory_mb'] - last['memory_before_mb']:.0f} MB", flush=True)  # fmt: skip
    return summary(shape, runs)


def summary(shape: Shape, runs: dict[str, list[dict]]) -> dict:
    """Figures of a shape; refuses to compare sides that did different work."""

    def median(side: str, value) -> float:
        return statistics.median(value(run) for run in runs[side])

    def each(value) -> dict[str, float]:
        return {side: median(side, value) for side in runs}

    for name in ("optimizer_steps", "response_tokens", "adapter_parameters"):
        if len({run[name] for side in runs.values() for run in side}) > 1:
            raise SystemExit(f"{shape.name}: the sides differ in {name}: {runs}")
    seconds = {side: statistics.median(s for run in side_runs for s in run["rollouts_s"])
               for side, side_runs in runs.items()}  # fmt: skip
    memory = each(lambda run: run["memory_mb"] - run["memory_before_mb"])
    raw = each(lambda run: run["memory_mb"])
    timed = [s / statistics.median(run["rollouts_s"]) for side in runs.values() for run in side
             for s in run["rollouts_s"]]  # fmt: skip
    return {
        "shape": shape.name,
        "speedup": seconds["trl"] / seconds["ours"],
        "memory_ratio": memory["ours"] / memory["trl"],
        "raw_memory_ratio": raw["ours"] / raw["trl"],
        "episodes_per_s": {side: shape.batch / s for side, s in seconds.items()},
        "peak_memory_mb": memory,
        "raw_peak_memory_mb": raw,
        "seconds": {part: each(lambda run, part=part: run["seconds"][part]) for part in ("rollout", "score", "update")},
        "optimizer_steps_per_rollout": shape.minibatches,
        "spread": max(timed) / min(timed),
        **gpu_figures(runs["ours"]),
        "weights": "random" if isinstance(shape.model, dict) else "pretrained",
        "threads": runs["ours"][0]["threads"],
        "work": {k: v for k, v in dataclasses.asdict(shape).items() if k not in ("name", "model")},
    }


def in_own_process(side: str, shape: Shape) -> dict:
    command = [sys.executable, __file__, "--side", side, "--shape", json.dumps(dataclasses.asdict(shape))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{shape.name}, {side}:\n{result.stderr[-4000:]}")
    return json.loads(result.stdout.splitlines()[-1])


# ---- One side --------------------------------------------------------------------------------------------------------


def measure(side: str, shape: Shape) -> dict:
    """One run of one side: seconds of each rollout but the first and their parts, and memory before and at its peak."""
    before = memory(peak=False)
    set_seed(0)
    clock, steps = Clock(), []
    trainer, lengths = (our_trainer if side == "ours" else trl_trainer)(shape, clock)
    adapters = [p.numel() for name, p in trainer.model.named_parameters() if p.requires_grad and "lora_" in name]
    reset_peak()
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(1))
    trainer.train()
    hook.remove()
    return {
        "rollouts_s": [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)],
        "seconds": clock.parts() if side == "trl" else logged_parts(trainer),
        "memory_before_mb": before,
        "memory_mb": memory(peak=True),
        "optimizer_steps": len(steps),
        "response_tokens": lengths.tokens,
        "adapter_parameters": sum(adapters),
        "threads": torch.get_num_threads(),
        "update_flops": update_flops(trainer.model.language_model, lengths.of) if side == "ours" else None,
        "gpu_flops_per_s": matmul_flops_per_s(),
    }


class Clock(TrainerCallback):
    """Takes the times at which rollouts end and, for TRL's trainer, at which sampling and update begin."""

    def __init__(self):
        self.ends: list[float] = []
        self.sampled: list[tuple[float, float]] = []
        self.updates: list[float] = []
        self.response_tokens = 0

    def on_step_end(self, args, state, control, **kwargs):
        steps = getattr(args, "steps_per_rollout", 1)  # TRL's trainer calls this once a rollout
        if state.global_step % steps == 0:
            synchronize()
            self.ends.append(time.perf_counter())

    def parts(self) -> dict[str, float]:
        """Medians over all rollouts but the first."""
        rows = list(zip(self.sampled, self.updates, self.ends, strict=True))[1:]
        return {
            "rollout": statistics.median(sampled - start for (start, sampled), _, _ in rows),
            "score": statistics.median(update - sampled for (_, sampled), update, _ in rows),
            "update": statistics.median(end - update for _, update, end in rows),
        }

    def watch(self, trainer) -> None:
        """Takes the time of TRL's `batch_generation`, and of the first training forward after it."""
        module = sys.modules[type(trainer).__module__]
        generate = module.batch_generation

        def timed(*args):
            start = time.perf_counter()
            output = generate(*args)
            synchronize()
            self.sampled.append((start, time.perf_counter()))
            return output

        def forward(*_):
            if len(self.updates) < len(self.sampled):
                synchronize()
                self.updates.append(time.perf_counter())

        module.batch_generation = timed
        trainer.model.register_forward_pre_hook(forward)


class Lengths:
    """The fixed response length of each prompt, and the number of tokens sampled at these lengths."""

    def __init__(self, shape: Shape, prompts: list[list[int]], eos: int):
        longest, n = shape.response_length, len(prompts)
        order = random.Random(1).sample(range(n), n)
        quantiles = [-math.log(1 - (k + 0.5) / n) * longest / 4 for k in order]  # of an exponential distribution
        lengths = [longest if shape.lengths == "full" else min(longest, math.ceil(q)) for q in quantiles]
        self.of = {tuple(prompt): length for prompt, length in zip(prompts, lengths, strict=True)}
        self.eos, self.tokens = eos, 0

    def look_up(self, prompts: list[list[int]], device: torch.device) -> torch.Tensor:
        """Lengths [B] of the responses to prompts, which may be padded; no prompt contains PAD."""
        lengths = [self.of[tuple(i for i in row if i != PAD)] for row in prompts]
        self.tokens += sum(lengths)
        return torch.tensor(lengths, device=device)

    def in_ours(self) -> None:
        """Puts the EOS at its position while sampling, so that the row may leave the batch."""
        module = sys.modules["rlhf.generation.sampler"]

        def forcing(decode):
            def due(lm, prompts, choose, *args, **kwargs):
                lengths = self.look_up(prompts, lm.device)

                def forced(logits, rows, step):
                    ids = choose(logits, rows, step)
                    ids = torch.where(ids == self.eos, 1, ids)
                    return torch.where(lengths[rows] == step + 1, self.eos, ids)

                return decode(lm, prompts, forced, *args, **kwargs)

            return due

        module.decode_in_batches = forcing(module.decode_in_batches)
        module.decode_continuously = forcing(module.decode_continuously)

    def in_trl(self) -> None:
        """Puts the EOS at its position after sampling: `generate` keeps ended rows, so the work is equal."""
        module = sys.modules["trl.experimental.ppo.ppo_trainer"]
        generate = module.batch_generation

        def due(model, queries, *args):
            sequences, logits = generate(model, queries, *args)
            responses = sequences[:, queries.shape[1] :]  # a view
            position = torch.arange(1, responses.shape[1] + 1, device=responses.device)
            lengths = self.look_up(queries.tolist(), queries.device)[:, None]
            responses[(responses == self.eos) | (responses == PAD)] = 1
            responses[position == lengths] = self.eos
            responses[position > lengths] = PAD
            return sequences, logits

        module.batch_generation = due


def logged_parts(trainer: PPOTrainer) -> dict[str, float]:
    logs = [row for row in trainer.state.log_history if "time/update" in row][1:]
    return {part: statistics.median(row[f"time/{part}"] for row in logs) for part in ("rollout", "score", "update")}


def our_trainer(shape: Shape, clock: Clock) -> tuple[PPOTrainer, Lengths]:
    base = SharedBase(language_model(shape))
    base.add_adapter("sft", lora_config=lora())
    base.add_adapter("reward", lora_config=lora(), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    vocabulary = base.config.vocab_size
    data = prompts(shape, vocabulary)
    lengths = Lengths(shape, data, vocabulary - 1)
    lengths.in_ours()
    trainer = PPOTrainer(
        args=config(shape, shape.micro_batch),
        processing_class=tokenizer(vocabulary),
        model=base,
        train_dataset=Dataset.from_dict({"input_ids": data}),
        callbacks=[clock],
    )
    return trainer, lengths


def trl_trainer(shape: Shape, clock: Clock):
    _, trainer_class = require_trl_ppo()
    policy = language_model(shape)
    vocabulary = policy.config.vocab_size
    reward, value = (classifier(policy) for _ in range(2))
    data = prompts(shape, vocabulary)
    trainer = trainer_class(
        args=trl_ppo_config(config(shape)),
        processing_class=tokenizer(vocabulary),
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=get_peft_model(value, lora(task_type="SEQ_CLS")),
        train_dataset=Dataset.from_dict({"input_ids": data}),
        peft_config=lora(task_type="CAUSAL_LM"),
        callbacks=[clock],
    )
    lengths = Lengths(shape, data, vocabulary - 1)
    lengths.in_trl()
    clock.watch(trainer)
    return trainer, lengths


def config(shape: Shape, micro_batch: int | None = None) -> PPOConfig:
    return PPOConfig(
        output_dir=tempfile.mkdtemp(),
        batch_size=shape.batch,
        mini_batch_size=shape.batch // shape.minibatches,
        per_device_train_batch_size=micro_batch or shape.batch // shape.minibatches,
        local_rollout_forward_batch_size=min(64, shape.batch),
        total_episodes=shape.batch * shape.rollouts,
        response_length=shape.response_length,
        ema_decay=None,  # TRL's trainer has none
        num_sample_generations=0,
        gradient_checkpointing=False,
        bf16=shape.dtype == "bfloat16",
        use_cpu=device() == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def lora(**kwargs) -> LoraConfig:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=LORA_R, lora_alpha=2 * LORA_R, target_modules=linear, **kwargs)


def language_model(shape: Shape):
    if isinstance(shape.model, dict):
        config = LlamaConfig(**shape.model)
        with torch.device(device()):  # a CPU takes long to draw a billion weights
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    else:
        model = load_base(ModelConfig(model_name_or_path=shape.model, dtype=shape.dtype))
    model.config.pad_token_id = PAD
    model.config.eos_token_id = model.generation_config.eos_token_id = model.config.vocab_size - 1
    return model


def classifier(policy):
    """The policy's body with a random score head."""
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    with torch.device(device()):
        model = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    getattr(model, model.base_model_prefix).load_state_dict(getattr(policy, policy.base_model_prefix).state_dict())
    return model


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Never used on text. Its EOS is the last id."""
    words = {"<pad>": PAD, **{str(i): i for i in range(1, vocabulary - 1)}, "<eos>": vocabulary - 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="1")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def prompts(shape: Shape, vocabulary: int) -> list[list[int]]:
    rng = random.Random(0)
    lengths = [rng.randint(shape.prompt_length // 2, shape.prompt_length) for _ in range(shape.batch)]
    return [[rng.randrange(1, vocabulary - 1) for _ in range(n)] for n in lengths]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- Memory ----------------------------------------------------------------------------------------------------------


def memory(peak: bool) -> float:
    """MB of this process: of the GPU's allocator, or resident in main memory."""
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM" if peak else "VmRSS"].split()[0]) / 1024


def reset_peak() -> None:
    """Starts the peak anew, so that loading the models does not count."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cpus = [name for name in SHAPES if name != "llama-1b"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=on_cpus)
    parser.add_argument("--repeats", type=int, default=2, help="runs of each side")
    parser.add_argument("--lengths", choices=("varied", "full"), default="varied", help="of the responses")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of models and arithmetic; default: the shape's"
    )
    parser.add_argument("--trl_dtype", choices=("float32", "bfloat16"), help="of TRL's models; default: as ours")
    parser.add_argument("--micro_batch", type=int, help="rows that pass our update at a time; default: the shape's")
    parser.add_argument("--smollm2", help="folder or Hub id of SmolLM2-135M; without it, random weights of its shape")
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)  # of the processes it starts
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
