"""FLOPs of a PPO update, and their share of the speed of a large matmul on the same GPU; see ppo_vs_trl.py."""

import statistics

import torch
from transformers import PreTrainedModel

from rlhf.models.flops import model_flops
from rlhf.models.machine_speed import matmul_flops_per_s as measured_matmul
from rlhf.models.model_sizes import shape_of


def update_flops(lm: PreTrainedModel, response_lengths: dict[tuple[int, ...], int]) -> float:
    """Model FLOPs of the update of one rollout: policy and value pass all tokens, the policy has logits of responses.

    Args:
        response_lengths: prompt -> tokens of its response.
    """
    shape, responses = shape_of(lm.config), sum(response_lengths.values())
    tokens = responses + sum(map(len, response_lengths))
    return model_flops(shape, 2 * tokens, responses)


def matmul_flops_per_s() -> float | None:
    """FLOPs per second of a large matmul in bfloat16; None without a GPU."""
    return measured_matmul(torch.device("cuda"), torch.bfloat16) if torch.cuda.is_available() else None


def gpu_figures(runs: list[dict]) -> dict:
    """Speed of our update on a GPU, absolute and as a share of the matmul's; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    speeds = [run["update_flops"] / run["seconds"]["update"] for run in runs]
    shares = [speed / run["gpu_flops_per_s"] for speed, run in zip(speeds, runs, strict=True)]
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_tflops_per_s": statistics.median(run["gpu_flops_per_s"] for run in runs) / 1e12,
        "update_tflops_per_s": statistics.median(speeds) / 1e12,
        "update_peak_fraction": statistics.median(shares),
    }
