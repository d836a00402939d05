"""The rows of gpu.py: each builds its models from random weights, and times a stage or a part of one."""

import gc
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import torch
import transformers
import trl
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
)

from rlhf.generation.sampler import sample
from rlhf.models.flops import causal_pairs, decode_bytes, model_flops, training_flops
from rlhf.models.machine_speed import copied_bytes_per_s, matmul_flops_per_s, median_seconds, synchronize
from rlhf.models.memory import adapter_weights, base_bytes
from rlhf.models.model_sizes import Layout, Shape, shape_of
from rlhf.models.shared_base import SharedBase
from rlhf.ppo import PPOConfig, PPOTrainer
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer
from rlhf.sft.trainer import SFTArguments, SFTTrainer

RECIPE = Path(__file__).parent.parent / "recipes" / "llama-3.2-1b"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, STEPS, WARM_UP = 16, 5, 2
COMMON: dict[str, Any] = dict(vocab_size=128256, num_attention_heads=32, num_key_value_heads=8)
LLAMA_1B = COMMON | dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, tie_word_embeddings=True)
LLAMA_8B = COMMON | dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32)
TOY = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
           num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
# Natural logarithms of lengths in tokens: mean and standard deviation of 100 English OpenAssistant trees.
DEMONSTRATION, PROMPT, COMPLETION = (5.81, 0.66), (4.80, 0.95), (4.71, 1.07)
COMPLETIONS = {2: 45, 3: 93, 4: 19, 5: 2, 6: 6}  # of those trees, number of replies: prompts
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32


def machine(tiny: bool) -> dict[str, Any]:
    """Returns the device, the versions, and the speed of a matmul and of a copy."""
    return {
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "versions": {each.__name__: each.__version__ for each in (torch, transformers, trl, peft, bnb)},
        "matmul_tflops_per_s": matmul_flops_per_s(DEVICE, DTYPE, 256 if tiny else None) / 1e12,
        "copied_tb_per_s": copied_bytes_per_s(DEVICE, 2**20 if tiny else None) / 1e12,
    }


def finished(result: dict[str, Any], machine: dict[str, Any]) -> dict[str, Any]:
    """Adds speeds and shares to a row's seconds, FLOPs and bytes."""
    seconds, peak = result["seconds"], machine["matmul_tflops_per_s"]
    if "model_flops" in result:
        result["tflops_per_s"] = result["model_flops"] / seconds / 1e12
        result["share"] = result["tflops_per_s"] / peak
        result["computed_share"] = result["computed_flops"] / seconds / 1e12 / peak
    if "bytes" in result:
        result["roofline_share"] = result["bytes"] / machine["copied_tb_per_s"] / 1e12 / result["step_seconds"]
    if CUDA:
        result["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return result | {"matmul_tflops_per_s": peak}


def free_memory() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# ---- Models


def language_model(sizes: dict[str, Any], tiny: bool) -> LlamaForCausalLM:
    config = LlamaConfig(**(TOY if tiny else sizes), pad_token_id=0, eos_token_id=1)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return LlamaForCausalLM._from_config(config, dtype=DTYPE).eval()


def lora(task: str = "CAUSAL_LM", dropout: float = 0.0) -> LoraConfig:
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, lora_dropout=dropout, task_type=task)


def shared_base(lm: LlamaForCausalLM) -> SharedBase:
    base = SharedBase(lm)
    base.add_adapter("sft", lora_config=lora())
    base.add_adapter("reward", lora_config=lora(), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    return base


def quantized(lm: LlamaForCausalLM) -> LlamaForCausalLM:
    """Puts the linear layers of the decoder into nf4 with nested quantization, as `load_in_4bit` does."""
    for layer in lm.model.layers:
        for name in LINEAR:
            parent, old = next((m, getattr(m, name)) for m in (layer.self_attn, layer.mlp) if hasattr(m, name))
            new = bnb.nn.Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=torch.bfloat16,
                                    compress_statistics=True, quant_type="nf4", device="meta")  # fmt: skip
            new.weight = bnb.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4",
                                           compress_statistics=True, module=new)  # fmt: skip
            setattr(parent, name, new.to(DEVICE))
    lm.is_loaded_in_4bit = True
    return lm


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Never used on text."""
    words = {"<pad>": 0, "<eos>": 1, **{str(i): i for i in range(2, vocabulary)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="2")), pad_token="<pad>", eos_token="<eos>"
    )


def autocast():
    return torch.autocast("cuda", torch.bfloat16) if CUDA else nullcontext()


# ---- What is measured of a training step


class Clock(TrainerCallback):
    """Takes the time at each optimizer step, and counts the tokens that enter the layers in passes with gradients."""

    def __init__(self, lm: nn.Module):
        self.ends: list[float] = []
        self.tokens: list[int] = []  # that have entered by the end of each step
        self.entered = 0
        lm.get_input_embeddings().register_forward_hook(self.count)  # pyright: ignore

    def count(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.entered += inputs[0].numel() if torch.is_grad_enabled() else 0

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())
        self.tokens.append(self.entered)

    def seconds(self) -> float:
        """Median of the steps after the warm-up."""
        return statistics.median(b - a for a, b in zip(self.ends[WARM_UP - 1 :], self.ends[WARM_UP:], strict=False))

    def tokens_per_step(self) -> float:
        return (self.tokens[-1] - self.tokens[WARM_UP - 1]) / (len(self.tokens) - WARM_UP)


def trained(
    shape: Shape, tokens: int, logits: int, lengths: list[int], computed: float, checkpointing: float
) -> dict[str, Any]:
    """FLOPs of a step on `tokens` of the data, of which `computed` with padding pass the layers."""
    flops = training_flops(shape, computed, logits, causal_pairs(lengths), RANK, checkpointing)
    return {"model_flops": model_flops(shape, tokens, logits), "computed_flops": sum(flops.values()),
            "tokens": tokens, "computed_tokens": computed}  # fmt: skip


def recomputed(args: TrainingArguments, shape: Shape) -> float:
    """Returns the share of the layers that backward computes again, as the trainer has decided."""
    every = (args.activation_checkpointing_kwargs or {}).get("every_n_layers", 1)  # pyright: ignore
    return Layout(checkpointing=every * bool(args.activation_checkpointing)).recomputed(shape.layers) / shape.layers


def recipe(stage: str, fields: Any) -> dict[str, Any]:
    """Returns the options of the recipe's YAML that are fields of the stage's config."""
    options = yaml.safe_load((RECIPE / f"{stage}.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in options.items() if name in fields.__dataclass_fields__}


def quiet() -> dict[str, Any]:
    return dict(output_dir=tempfile.mkdtemp(), report_to="none", save_strategy="no", eval_strategy="no",
                logging_strategy="no", disable_tqdm=True, bf16=CUDA, use_cpu=not CUDA)  # fmt: skip


def lengths_of(quantity: tuple[float, float], rng: random.Random, most: int) -> int:
    return min(most, max(4, round(math.exp(rng.gauss(*quantity)))))


# ---- The stages


def sft(tiny: bool) -> dict[str, Any]:
    """A step of the recipe: one epoch of as many demonstrations as a step has, so that all steps have the same rows."""
    lm, rng = language_model(LLAMA_1B, tiny), random.Random(0)
    options = recipe("sft", SFTArguments) | quiet() | {"num_train_epochs": STEPS}
    options |= {"batch_size": 4, "per_device_train_batch_size": 2, "max_length": 64} if tiny else {}
    args, vocabulary = SFTArguments(**options), lm.config.vocab_size
    assert args.batch_size and args.max_length
    lengths = [lengths_of(DEMONSTRATION, rng, args.max_length) for _ in range(args.batch_size)]
    rows = [{"input_ids": [rng.randrange(2, vocabulary) for _ in range(n)],
             "completion_mask": [int(i >= n // 2) for i in range(n)]} for n in lengths]  # fmt: skip
    clock = Clock(lm)
    trainer = SFTTrainer(lm, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(vocabulary),
                         peft_config=lora(dropout=0.2), callbacks=[clock])  # fmt: skip
    free_memory()
    trainer.train()
    seconds, responses = clock.seconds(), sum(n - n // 2 for n in lengths)
    flops = trained(
        shape_of(lm.config),
        sum(lengths),
        responses,
        lengths,
        clock.tokens_per_step(),
        recomputed(args, shape_of(lm.config)),
    )
    return {"seconds": seconds, "tokens_per_s": sum(lengths) / seconds, **flops,
            "flops": "4 L W N + 4 V H U; N = tokens of the rows, U = response tokens"}  # fmt: skip


def reward(tiny: bool) -> dict[str, Any]:
    """A step of the recipe, as in `sft`; the completions of a prompt share it."""
    rng = random.Random(0)
    options = recipe("reward", KWiseRewardConfig) | quiet()
    options |= {"num_train_epochs": STEPS, "sft_model_path": None}
    options |= {"batch_size": 4, "per_device_train_batch_size": 2, "max_length": 64} if tiny else {}
    args = KWiseRewardConfig(**options)
    config = LlamaConfig(**(TOY if tiny else LLAMA_1B), num_labels=1, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        classifier = LlamaForSequenceClassification._from_config(config, dtype=DTYPE)
    rows, lengths, tokens, pairs = [], [], 0, []
    assert args.batch_size and args.max_length
    for number in range(args.batch_size):
        prompt = lengths_of(PROMPT, rng, args.max_length // 2)
        k = rng.choices(list(COMPLETIONS), list(COMPLETIONS.values()))[0]
        answers = [lengths_of(COMPLETION, rng, args.max_length // 2) for _ in range(k)]
        ids = [rng.randrange(2, config.vocab_size) for _ in range(prompt)]
        completions = [ids + [rng.randrange(2, config.vocab_size) for _ in range(n)] for n in answers]
        rows.append({"completions_ids": completions, "ranks": list(range(k)), "prompt_length": prompt,
                     "prompt_id": number, "labeler_id": "", "labeler_group": ""})  # fmt: skip
        tokens += prompt + sum(answers)
        lengths += [prompt + n for n in answers]
        pairs += [prompt] * (k - 1)
    model = get_peft_model(classifier, lora("SEQ_CLS", dropout=0.2))
    clock = Clock(classifier)
    trainer = KWiseRewardTrainer(model, args, train_dataset=Dataset.from_list(rows),
                                 processing_class=tokenizer(config.vocab_size), callbacks=[clock])  # fmt: skip
    free_memory()
    trainer.train()
    seconds = clock.seconds()
    flops = trained(shape_of(config), tokens, 0, lengths, clock.tokens_per_step(), recomputed(args, shape_of(config)))
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, **flops,
            "flops": "4 L W N; N = tokens, each prompt once"}  # fmt: skip


def ppo(tiny: bool, full: bool = False, sizes: dict | None = None, batch: int = 64, rows: int = 16) -> dict[str, Any]:
    """The update of a rollout; its responses are made up, so nothing is sampled.

    Args:
        full: prompts and responses of 256 tokens; else prompts of 128 to 256, and responses that end with equal
            probability after each token, after 64 tokens on average.
        batch, rows: episodes of a rollout, and of an optimizer step, which are one micro-batch.
    """
    lm = language_model(sizes or LLAMA_1B, tiny)
    checkpointing = sizes is not None
    lm = quantized(lm) if checkpointing else lm
    rng, length, vocabulary = random.Random(0), 16 if tiny else 256, lm.config.vocab_size
    batch, rows = (4, 2) if tiny else (batch, rows)
    prompts = [length if full else rng.randint(length // 2, length) for _ in range(batch)]
    drawn = [math.ceil(rng.expovariate(4 / length)) for _ in range(batch)]
    responses = [length if full else min(length, max(1, n)) for n in drawn]
    args = PPOConfig(
        **quiet() | {"logging_strategy": "steps"}, batch_size=batch, mini_batch_size=rows, logging_steps=1,
        per_device_train_batch_size=rows, total_episodes=STEPS * batch, response_length=length, ema_decay=None,
        num_sample_generations=0, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    ids = [[rng.randrange(2, vocabulary) for _ in range(n)] for n in prompts]
    clock, base = Clock(lm), shared_base(lm)
    trainer = PPOTrainer(args, tokenizer(vocabulary), base, train_dataset=Dataset.from_dict({"input_ids": ids}),
                         callbacks=[clock])  # fmt: skip
    answers = {tuple(p): [rng.randrange(2, vocabulary) for _ in range(n)] for p, n in zip(ids, responses, strict=True)}
    trainer.sample = lambda prompts, uniforms, progress: [answers[tuple(prompt)] for prompt in prompts]
    free_memory()
    trainer.train()
    logs = [row["time/update"] for row in trainer.state.log_history if "time/update" in row]
    seconds, per_rollout = statistics.median(logs[WARM_UP:]), batch // rows
    lengths = [p + r for p, r in zip(prompts, responses, strict=True)]
    passed = clock.tokens[-1] / STEPS
    flops = trained(shape_of(lm.config), 2 * sum(lengths), sum(responses), 2 * lengths, passed, checkpointing)
    return {"seconds": seconds, "steps": per_rollout, "tokens_per_s": sum(lengths) / seconds, **flops,
            "flops": "4 L W N + 4 V H U; N = tokens, for policy and value; U = response tokens"}  # fmt: skip


# ---- Parts


def layers(tiny: bool) -> dict[str, Any]:
    """Two adapters pass the layers together, forward and backward, without the unembedding."""
    lm = language_model(LLAMA_1B, tiny)
    base, ids = shared_base(lm).train(), random_ids(lm, tiny, halved=True)

    def work() -> None:
        with autocast():
            hidden = base.hidden_states(("policy", "value"), ids)
        hidden.float().sum().backward()

    return of_layers(work, lm, 2 * ids.numel(), ids.shape[1])


def with_peft(tiny: bool, float32: bool) -> dict[str, Any]:
    """One adapter by PEFT's own layers: float32 under autocast, or in the base's bfloat16 without."""
    lm = language_model(LLAMA_1B, tiny)
    model, ids = get_peft_model(lm, lora(), autocast_adapter_dtype=float32).train(), random_ids(lm, tiny)

    def work() -> None:
        with autocast() if float32 else nullcontext():
            hidden = lm.model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.float().sum().backward()

    assert any(p.requires_grad for p in model.parameters())
    return of_layers(work, lm, ids.numel(), ids.shape[1])


def base_alone(tiny: bool, compiled: bool) -> dict[str, Any]:
    """The frozen base without adapters; backward is to the embeddings. `compiled`: each layer by torch.compile."""
    lm = language_model(LLAMA_1B, tiny).requires_grad_(False)
    ids = random_ids(lm, tiny)
    embedded = lm.get_input_embeddings()(ids).requires_grad_()
    for layer in lm.model.layers if compiled else ():
        layer.compile(backend="eager" if tiny else "inductor")

    def work() -> None:
        lm.model(inputs_embeds=embedded, use_cache=False).last_hidden_state.float().sum().backward()

    return of_layers(work, lm, ids.numel(), ids.shape[1], rank=0)


def random_ids(lm: LlamaForCausalLM, tiny: bool, halved: bool = False) -> torch.Tensor:
    """[32, 512] ids, or half the rows."""
    rows, length = (4, 16) if tiny else (32, 512)
    return torch.randint(2, lm.config.vocab_size, (rows // (1 + halved), length), device=DEVICE)


def of_layers(
    work: Callable[[], None], lm: LlamaForCausalLM, tokens: int, length: int, rank: int = RANK
) -> dict[str, Any]:
    free_memory()
    seconds = median_seconds(work, STEPS, WARM_UP + 1)
    shape = shape_of(lm.config)
    pairs = causal_pairs([length] * (tokens // length))
    return {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / seconds,
            "model_flops": model_flops(shape, tokens),
            "computed_flops": sum(training_flops(shape, tokens, 0, pairs, rank).values()),
            "flops": "4 L W N; N = tokens of all adapters"}  # fmt: skip


def rollout(tiny: bool, slots: int) -> dict[str, Any]:
    """Prompts of 256 tokens and 256 new tokens each, one prompt in each slot."""
    lm = language_model(LLAMA_1B, tiny)
    base, length = shared_base(lm), 8 if tiny else 256
    slots = slots // 64 if tiny else slots
    prompts = torch.randint(2, lm.config.vocab_size, (slots, length)).tolist()

    def work() -> None:
        with base.use("policy"), autocast():
            sample(base.lm, prompts, torch.rand(slots, length), temperature=1.0, stop_ids=[-1], pad_id=0,
                   batch_size=slots)  # fmt: skip

    free_memory()
    seconds, shape = median_seconds(work, 1, 1), shape_of(lm.config)
    weights = base_bytes(shape, "bfloat16") + 4 * adapter_weights(shape, RANK)
    return {"seconds": seconds, "step_seconds": seconds / length, "tokens_per_s": slots * length / seconds,
            "bytes": decode_bytes(shape, weights, slots, 1.5 * length, 2, repeated=False),
            "flops": "bytes of a step: weights + slots x 384 x 2 L K e"}  # fmt: skip


MEASURES: dict[str, Callable[[bool], dict[str, Any]]] = {
    "sft": sft,
    "reward": reward,
    "ppo-varied": ppo,
    "ppo-full": partial(ppo, full=True, rows=32),
    "layers": layers,
    "peft-float32": partial(with_peft, float32=True),
    "peft-bfloat16": partial(with_peft, float32=False),
    "base-eager": partial(base_alone, compiled=False),
    "base-compiled": partial(base_alone, compiled=True),
    **{f"rollout-{slots}": partial(rollout, slots=slots) for slots in (64, 256, 512)},
    "nf4-8b": partial(ppo, full=True, sizes=LLAMA_8B, batch=8, rows=8),
}
