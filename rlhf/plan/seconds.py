"""Seconds of a stage's work: its FLOPs, divided by a measured share of a matmul's speed; decoding by bytes."""

from dataclasses import dataclass, field

from rlhf.models.model_sizes import Layout
from rlhf.models.pass_limits import CPU_LIMITS
from rlhf.plan.devices import Device


@dataclass(frozen=True)
class Share:
    """Share of a large matmul's speed that a part of a stage reached where it was measured.

    It counts all that is computed (rlhf/models/flops.py): padding, attention, adapters, what is computed twice.
    """

    value: float
    source: str


H200 = "H200, Llama 3.2 1B in bfloat16, 36adca4"
CPU = "two cores, SmolLM2-135M in float32"
# Scoring took .62 and .77 of the seconds in float32, the update .66 and .72, and the rollout .74 and .85, where a large
# matmul took .45 (benchmarks/ppo_vs_trl.py, shape smollm2-135m, and two rollouts of the recipe smollm2-135m-sentiment).
CPU16 = "two cores with AVX512-BF16, SmolLM2-135M in bfloat16 beside float32"
# SFT and reward reached .04 of the matmul peak in FLOPs of the model, on OpenAssistant's trees, 8 rows a pass with
# activation checkpointing. With 2.25 tokens computed for each of the data, and 6 FLOPs for 4, that is .04 x 2.25 x 1.5;
# the reward model has no padding. The measured update had neither.
SHARES: dict[tuple[str, str], Share] = {
    ("gpu", "sft"): Share(0.135, H200),
    ("gpu", "reward"): Share(0.06, H200),
    ("gpu", "update"): Share(0.185, H200),
    ("gpu", "score"): Share(0.185, f"as the update; {H200}"),
    ("gpu", "prefill"): Share(0.185, f"as the update; {H200}"),
    ("cpu", "sft"): Share(0.58, f"as the update; {CPU}"),
    ("cpu", "reward"): Share(0.58, f"as the update; {CPU}"),
    ("cpu", "update"): Share(0.58, CPU),
    ("cpu", "score"): Share(0.6, CPU),
    ("cpu", "prefill"): Share(0.6, CPU),
    ("cpu", "decode"): Share(0.6, CPU),
    ("cpu, 16 bits", "sft"): Share(0.38, f"as the update; {CPU16}"),
    ("cpu, 16 bits", "reward"): Share(0.38, f"as the update; {CPU16}"),
    ("cpu, 16 bits", "update"): Share(0.38, CPU16),
    ("cpu, 16 bits", "score"): Share(0.39, CPU16),
    ("cpu, 16 bits", "prefill"): Share(0.39, f"as scoring; {CPU16}"),
    ("cpu, 16 bits", "decode"): Share(0.2, CPU16),
}
# A step of decoding on a GPU takes this long for each layer beside the bytes that it moves: its kernels are short. 64,
# 256 and 512 slots took 4.8, 8.5 and 13.8 ms, which is 3.5 ms and .02 ms a slot; 16 layers.
GPU_LAYER_SECONDS = 1.9e-4


@dataclass
class Work:
    """Work of one device in a step of SFT or of the reward model, or in a rollout of PPO.

    Attributes:
        flops: part -> FLOPs; parts are the names in `SHARES`.
        pass_tokens: tokens of a pass.
        decode_steps: steps of decoding, each of which takes one token of a batch of rows through the model.
        decode_flops, decode_bytes: of one such step.
    """

    flops: dict[str, float] = field(default_factory=dict)
    pass_tokens: float = 1
    decode_steps: float = 0
    decode_flops: float = 0
    decode_bytes: float = 0


def share_of(part: str, device: Device, layout: Layout) -> Share | None:
    """Returns the share of a part's FLOPs; None for a rollout, which is more than one part."""
    kind = "cpu, 16 bits" if device.kind == "cpu" and layout.product == 2 else device.kind
    return SHARES.get((kind, part))


def seconds_of_work(work: Work, device: Device, layout: Layout, layers: int) -> dict[str, float]:
    """Returns {part: seconds}; PPO's prefill and decoding are its `rollout`.

    FLOPs / (share x matmul)
    decoding on a GPU  steps (layers GPU_LAYER_SECONDS + bytes / bandwidth)
    decoding on a CPU  steps (FLOPs / (share x matmul) + bytes / bandwidth)
    """
    speed = device.matmul["float32" if layout.product == 4 else "bfloat16"]
    start = 1 + CPU_LIMITS[1] / work.pass_tokens if device.kind == "cpu" else 1

    def by_share(part: str, flops: float) -> float:
        share = share_of(part, device, layout)
        assert share is not None, part
        return flops / (speed * share.value)

    seconds = {part: start * by_share(part, flops) for part, flops in work.flops.items()}
    if work.decode_steps:
        step = work.decode_bytes / device.bandwidth
        if device.kind == "cpu":
            step += by_share("decode", work.decode_flops)
        else:
            step += layers * GPU_LAYER_SECONDS
        seconds["rollout"] = seconds.pop("prefill") + work.decode_steps * step
    return seconds
