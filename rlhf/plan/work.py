"""Memory and work of each stage on one device: what the trainers do with a micro-batch, a step and a rollout."""

import math
from dataclasses import dataclass
from typing import Any

from rlhf.data.lengths import largest_batch, longest_rows
from rlhf.models.flops import causal_pairs, decode_bytes, forward_flops, training_flops
from rlhf.models.memory import Memory, adapter_weights, base_bytes, ppo_memory, reward_memory, sft_memory
from rlhf.models.model_sizes import Layout, Shape
from rlhf.models.pass_limits import GPU_TOKENS, cpu_limits
from rlhf.plan.devices import Launch
from rlhf.plan.lengths import Rows, padded
from rlhf.plan.seconds import Work
from rlhf.ppo.config import TRL_MODEL
from rlhf.ppo.ptx import block_length, resolve_ptx_coef
from rlhf.runs.batches import divide_batch
from rlhf.runs.launch import threads


@dataclass(frozen=True)
class Inputs:
    """Origin of a stage's plan; `values` are the fields of the stage's configs, and `most` is the rows of a pass."""

    shape: Shape
    layout: Layout
    values: dict[str, Any]
    rows: Rows
    launch: Launch
    mean_response: int | None
    most: int


@dataclass(frozen=True)
class Found:
    """Memory, work of a step or rollout, and their number; see `rlhf.plan.stages.StagePlan`."""

    memory: Memory
    work: Work
    passes: str
    steps: int | None
    notes: list[str]


def per_device(inputs: Inputs, option: str = "batch_size") -> tuple[int, int]:
    """Returns rows of a micro-batch and micro-batches of an optimizer step, on each device."""
    args = inputs.values["args"]
    if option == "batch_size" and "gradient_accumulation_steps" not in args.computed:
        return args.per_device_train_batch_size, args.gradient_accumulation_steps
    return divide_batch(inputs.values[option], inputs.launch.processes, inputs.most, option)


def row_tokens(stage: str, inputs: Inputs) -> float:
    """Returns the tokens of a row in a pass, on average, by which a trainer divides an optimizer step."""
    rows, layout = inputs.rows, inputs.layout
    if stage != "ppo":
        return (sum(rows.prompts) + sum(map(sum, rows.completions))) / len(rows.prompts)
    together = 2 if layout.sharding == "ddp" and not layout.quantized else 1  # policy and value
    return together * (sum(rows.prompts) / len(rows.prompts) + inputs.values["response_length"])


def optimizer_steps(inputs: Inputs, rows_per_step: int) -> int | None:
    """Returns the optimizer steps of a stage that counts epochs; None if its rows are not known."""
    args, number = inputs.values["args"], inputs.rows.number
    if args.max_steps > 0:
        return args.max_steps
    return None if number is None else math.ceil(math.ceil(number / rows_per_step) * args.num_train_epochs)


def numbered(number: int, one: str, many: str) -> str:
    """Returns a number and its noun."""
    return f"{number:,} {one if number == 1 else many}"


# ---- SFT


def sft_work(inputs: Inputs) -> Found:
    """Rows are padded to the longest of their micro-batch, or packed."""
    shape, layout, rows = inputs.shape, inputs.layout, inputs.rows
    per_pass, passes = per_device(inputs)
    lengths = rows.lengths
    by_length = inputs.values["train_sampling_strategy"] == "group_by_length"
    if layout.packed:
        one, pairs = (per_pass * number / len(lengths) for number in (sum(lengths), causal_pairs(lengths)))
    else:
        one = padded(lengths, per_pass, by_length)
        pairs = one * one / per_pass  # the mask makes attention compute all pairs of a padded row
    most = longest_rows(lengths, per_pass, layout.packed, by_length)
    answers = per_pass * sum(row[0] for row in rows.completions) / len(lengths)
    twice = layout.sharding != "ddp"  # the loss is TRL's
    again = layout.recomputed(shape.layers) / shape.layers
    flops = training_flops(shape, one, answers, pairs, layout.rank, again, logits_twice=twice)
    ratio = one * len(lengths) / per_pass / sum(lengths)
    notes = ["rows are packed" if layout.packed else f"{ratio:.2f} tokens are computed for each of the data"]
    longest = f"{per_pass * most:,.0f} tokens in all" if layout.packed else f"{most:,} tokens"
    if inputs.values["pretrain_mix"]:
        notes.append("pretrain_mix is not counted")
    return Found(
        sft_memory(shape, layout, per_pass, most),
        Work({"sft": passes * sum(flops.values())}, one),
        f"{per_pass} rows of up to {longest} a pass, {numbered(passes, 'pass', 'passes')} a step",
        optimizer_steps(inputs, per_pass * passes * inputs.launch.processes),
        notes,
    )


# ---- Reward model


def reward_work(inputs: Inputs) -> Found:
    """The completions of a prompt share it, in rows without padding."""
    shape, layout, rows, values = inputs.shape, inputs.layout, inputs.rows, inputs.values
    per_pass, passes = per_device(inputs)
    sizes = [(p, len(row), sum(row)) for p, row in zip(rows.prompts, rows.completions, strict=True)]
    prompt, k, completion = largest_batch(sizes, per_pass)
    number = passes * per_pass / len(sizes)  # in a step, of each row that was read
    tokens = number * sum(p + c for p, _, c in sizes)
    seen = sum(p * p + sum(c * (p + c) for c in row) for p, row in zip(rows.prompts, rows.completions, strict=True))
    flops = training_flops(shape, tokens, 0, number * seen, layout.rank, layout.recomputed(shape.layers) / shape.layers)
    notes = ["the completions of a prompt share it"]
    if values["shuffled_pairs"] or values["cross_validate"]:
        notes.append("shuffled_pairs and cross_validate are not counted")
    most = per_pass * (prompt + k * completion)
    return Found(
        reward_memory(shape, layout, per_pass, k, prompt, completion, values["completions_per_forward"]),
        Work({"reward": sum(flops.values())}, tokens / passes),
        f"{per_pass} prompts with up to about {most:,.0f} tokens a pass, {numbered(passes, 'pass', 'passes')} a step",
        optimizer_steps(inputs, per_pass * passes * inputs.launch.processes),
        notes,
    )


# ---- PPO


def ppo_work(inputs: Inputs) -> Found:
    """A rollout: sampling, scoring by four adapters, and the update of policy and value."""
    shape, layout, rows, values = inputs.shape, inputs.layout, inputs.rows, inputs.values
    per_pass, passes = per_device(inputs, "mini_batch_size")
    episodes = per_pass * passes * (values["batch_size"] // values["mini_batch_size"])
    longest, slots = values["response_length"], min(values["local_rollout_forward_batch_size"], episodes)
    text = pretraining_tokens(values) > 0
    memory = ppo_memory(
        shape, layout, per_pass, rows.longest_prompt, longest, slots, reward_adapters(values),
        values["ema_decay"] is not None, tokens_of_a_pass(inputs), block_length(values["args"], None) if text else 0,
    )  # fmt: skip
    response = min(inputs.mean_response or longest, longest)
    notes = [f"responses are taken to have {response} tokens on average"]
    notes += ["policy and value share a pass"] if layout.sharding == "ddp" and not layout.quantized else []
    length = sum(rows.prompts) / len(rows.prompts) + response
    one_pass = min(tokens_of_a_pass(inputs), 2 * per_pass * length)
    work = Work(rollout_flops(inputs, episodes, response), one_pass, episodes * response / slots)
    position = length - response / 2
    weights = base_bytes(shape, layout.base) + 4 * adapter_weights(shape, layout.rank)
    work.decode_flops = sum(forward_flops(shape, slots, slots, slots * position, layout.rank).values())
    if inputs.launch.device.kind == "cpu":  # a batch decodes until its longest response ends; no other takes its place
        weights = round(weights * longest / response)
    work.decode_bytes = decode_bytes(shape, weights, slots, position, layout.product)
    one = f"{per_pass} episodes of up to {rows.longest_prompt:,} + {longest:,} tokens a pass"
    one += f", {numbered(passes, 'pass', 'passes')} a step"
    return Found(memory, work, f"{one}; {slots} responses sampled at a time", rollouts(inputs), notes)


def reward_adapters(values: dict[str, Any]) -> int:
    paths = (values["reward_model_path"], *(values["reward_ensemble_paths"] or ()))
    return len([path for path in paths if path and path != TRL_MODEL])


def tokens_of_a_pass(inputs: Inputs) -> int:
    """Returns the largest number of tokens of a pass, as `rlhf.models.pass_limits` does."""
    if inputs.launch.device.kind != "cpu":
        return GPU_TOKENS
    return cpu_limits(inputs.shape.layer_weights, threads(inputs.launch.processes))[0]


def rollout_flops(inputs: Inputs, episodes: int, response: float) -> dict[str, float]:
    """Returns the FLOPs of a rollout's prefill, its scoring, and the update of all PPO epochs.

    Scoring passes policy and value, reference and reward model; the update passes policy and value.
    """
    shape, layout, prompts, values = inputs.shape, inputs.layout, inputs.rows.prompts, inputs.values
    rank, mean = layout.rank, sum(prompts) / len(prompts)
    each = episodes / len(prompts)  # of a prompt that was read
    pairs = each * sum((p + response) * (p + response + 1) / 2 for p in prompts)
    both: dict[str, Any] = dict(
        tokens=2 * episodes * (mean + response), logits=episodes * response, pairs=2 * pairs, rank=rank
    )
    forward, again = sum(forward_flops(shape, **both).values()), layout.recomputed(shape.layers) / shape.layers
    update = sum(training_flops(shape, **both, checkpointing=again).values())
    text = pretraining_tokens(values) * episodes
    if text:
        block = block_length(values["args"], None)
        one = training_flops(shape, text, text, text * block / 2, rank, again)
        update += sum(one.values())
    prefill = forward_flops(shape, episodes * mean, 0, each * causal_pairs(prompts), rank)
    # Without a reward model the reference passes alone.
    alone = forward_flops(shape, episodes * (mean + response), episodes * response, pairs, rank)
    scored = 2 * forward if reward_adapters(values) else forward + sum(alone.values())
    return {"prefill": sum(prefill.values()), "score": scored, "update": values["num_ppo_epochs"] * update}


def pretraining_tokens(values: dict[str, Any]) -> int:
    """Returns the tokens of pretraining text for each episode."""
    if not resolve_ptx_coef(values["ptx_coef"], has_text=values["pretrain_dataset_name"] is not None):
        return 0
    return values["ptx_examples_per_episode"] * block_length(values["args"], None)


def rollouts(inputs: Inputs) -> int | None:
    """Returns the rollouts of the stage; None if its prompts decide and are not known."""
    args, number = inputs.values["args"], inputs.rows.number
    if args.max_steps > 0:
        return math.ceil(args.max_steps / args.steps_per_rollout)
    episodes = args.total_episodes or (None if number is None else args.num_train_epochs * number)
    return None if episodes is None else max(1, math.ceil(episodes / inputs.values["batch_size"]))
