"""Metrics: means over the episodes of all processes, shares of the loss, times, and a few samples to read."""

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.ppo.reward_functions import ScoreTable
from rlhf.ppo.rollout import MicroBatch
from rlhf.statistics import cluster_mean
from rlhf.tensors import as_float64


@torch.no_grad()
def episode_means(
    batches: list[MicroBatch], kl_coef: float, reduce: Callable[[Tensor], Tensor], counted: int | None = None
) -> dict[str, float]:
    """Means over the episodes of all processes.

    `objective/kl`, `entropy` (an estimate, -log pi) and `non_score_reward` are sums over a response, in nats.
    `objective/score` is the output of the reward model and functions, `objective/scores` includes scale, clip and the
    missing-EOS terms, and `rlhf_reward` the KL penalty as well: PPO maximizes it.

    Args:
        reduce: sums a tensor over the processes.
        counted: number of this process's first episodes that are counted; None: all.
    """
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for batch in batches:
        kl = (batch.logprobs - batch.ref_logprobs).sum(1)
        columns["objective/kl"].append(kl)
        columns["objective/entropy"].append(-batch.logprobs.sum(1))
        columns["objective/score"].append(batch.scores)
        columns["objective/scores"].append(batch.shaped_scores)
        columns["objective/non_score_reward"].append(-kl_coef * kl)
        columns["objective/rlhf_reward"].append(batch.shaped_scores - kl_coef * kl)
        columns["rollout/length"].append(batch.response_mask.sum(1))
        columns["rollout/eos_rate"].append(batch.ended)
    rows = torch.tensor([row for batch in batches for row in batch.rows], device=batches[0].scores.device)
    weight = torch.ones_like(rows) if counted is None else rows < counted
    sums = [(as_float64(torch.cat(column)) * weight).sum() for column in columns.values()]
    *sums, episodes = reduce(torch.stack([*sums, as_float64(weight).sum()])).tolist()
    return {name: total / episodes for name, total in zip(columns, sums, strict=True)}


def score_interval(
    batches: list[MicroBatch],
    prompts: list[list[int]],
    gather: Callable[[Tensor], Tensor],
    counted: int | None = None,
) -> dict[str, float]:
    """Ends of the 95 % interval of `objective/score` over the prompts of all processes; {} for a single prompt.

    Episodes of the same prompt are one cluster (`rlhf.statistics.cluster_mean`). The policy is held fixed: another run
    may lie outside. In a log of several rollouts the ends are means over them, so the interval is wider than need be.

    Args:
        prompts: ids of this process's prompts; as many in each process.
        gather: concatenates a tensor of every process.
        counted: as in `episode_means`.
    """
    rows = [row for batch in batches for row in batch.rows]
    scores = torch.cat([batch.scores for batch in batches])
    keys = torch.tensor([_prompt_key(prompts[row]) for row in rows], device=scores.device)
    kept = torch.tensor([counted is None or row < counted for row in rows], device=scores.device)
    scores, keys, kept = (gather(column).cpu().numpy() for column in (scores.float(), keys, kept))
    mean = cluster_mean(scores[kept], keys[kept])
    return {f"objective/score_{end}": value for end in ("low", "high") if (value := getattr(mean, end)) is not None}


def _prompt_key(ids: list[int]) -> int:
    """Returns an int64 that is the same for equal prompts in all processes."""
    return int.from_bytes(hashlib.blake2b(repr(ids).encode(), digest_size=8).digest(), "big", signed=True)


@torch.no_grad()
def function_means(
    table: ScoreTable | None, names: list[str], device: torch.device, reduce: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Mean and standard deviation of the scores of each reward function over all processes, without None."""
    if table is None:
        return {}
    judged, scores = table.judged.to(device), as_float64(table.scores.to(device))
    n, mean = reduce(torch.stack([as_float64(judged.sum(0)), scores.sum(0)]))
    mean = mean / n
    std = (reduce(((scores - mean).square() * judged).sum(0)) / n).sqrt()
    means = {}
    for i, name in enumerate(names):
        if n[i] > 0:
            means |= {f"rewards/{name}/mean": mean[i].item(), f"rewards/{name}/std": std[i].item()}
    return means


def update_shares(
    batch: MicroBatch, logprobs: Tensor, values: Tensor, ratio: Tensor, share: Tensor, clip: float, clip_value: float
) -> dict[str, Tensor]:
    """This micro-batch's shares of the metrics of an update, which are means over response tokens.

    `policy/clipfrac` counts ratios outside the clip range, and `clipfrac_avg`, as in TRL, those whose loss is clipped.
    `policy/entropy_avg` is estimated from the sampled tokens: E[-log pi] = E_old[-ratio log pi].

    Args:
        logprobs, values, ratio: [B, T] of the new policy and value model.
        share: [B, T] weights of the tokens in the mean, 0 outside the mask.
    """
    logprobs, values, ratio = logprobs.detach(), values.detach(), ratio.detach()
    clipped_ratio = ratio.clamp(1 - clip, 1 + clip)
    clipped_values = batch.values + (values - batch.values).clamp(-clip_value, clip_value)
    value_clipped = (clipped_values - batch.returns).square() > (values - batch.returns).square()
    deviation = (ratio * batch.response_mask).sum() / batch.response_mask.sum() - 1
    return {
        "policy/approxkl": (0.5 * (logprobs - batch.logprobs).square() * share).sum(),
        "policy/clipfrac": (((ratio - 1).abs() > clip) * share).sum(),
        "policy/clipfrac_avg": ((-batch.advantages * clipped_ratio > -batch.advantages * ratio) * share).sum(),
        "policy/entropy_avg": (-ratio * logprobs * share).sum(),
        "policy/ratio": (ratio * share).sum(),
        "val/clipfrac_avg": (value_clipped * share).sum(),
        MICRO_BATCHES: torch.ones_like(deviation),
        DEVIATION: deviation,
        SQUARE: deviation.square(),
    }


# Sums over micro-batches, from which `val/ratio_var` is computed: count, and moments of (mean ratio - 1).
MICRO_BATCHES, DEVIATION, SQUARE = "micro_batches", "ratio_deviation", "ratio_square"

# The names of TRL's PPOTrainer for metrics that have another name here.
TRL_NAMES = {
    "loss/policy_avg": "loss/policy",
    "loss/value_avg": "loss/value",
    "policy/approxkl_avg": "policy/approxkl",
    "val/ratio": "policy/ratio",
    "eps": "throughput/episodes_per_s",
}


def with_trl_names(metrics: dict[str, float]) -> dict[str, float]:
    """Adds the metrics that have another name in TRL under that name."""
    return metrics | {theirs: metrics[ours] for theirs, ours in TRL_NAMES.items() if ours in metrics}


class Meter:
    """Collects metrics between two logs."""

    def __init__(self):
        self._rollout: dict[str, list[float]] = defaultdict(list)
        self._loss: dict[str, Tensor] = {}
        self._steps = 0.0
        self._started = self._sampled = self._scored = 0.0
        self._episodes, self._tokens = 0, 0.0

    def rollout_started(self) -> None:
        self._started = time.perf_counter()

    def rollout_sampled(self) -> None:
        self._sampled = time.perf_counter()

    def rollout_scored(self, means: dict[str, float], episodes: int) -> None:
        self._scored = time.perf_counter()
        self._episodes, self._tokens = episodes, means["rollout/length"] * episodes
        self.add(means | {"time/rollout": self._sampled - self._started, "time/score": self._scored - self._sampled})

    def rollout_trained(self) -> None:
        now = time.perf_counter()
        self.add(
            {
                "time/update": now - self._scored,
                "throughput/episodes_per_s": self._episodes / (now - self._started),
                "throughput/tokens_per_s": self._tokens / (now - self._started),
            }
        )

    def loss(self, shares: dict[str, Tensor], steps: float) -> None:
        """Adds this micro-batch's `shares` of means over a minibatch; it is `steps` of an optimizer step."""
        for name, share in shares.items():
            self._loss[name] = self._loss.get(name, 0.0) + share.detach()
        self._steps += steps

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Returns means since the last call. All processes must call it."""
        means = {name: sum(values) / len(values) for name, values in self._rollout.items()}
        if self._loss:
            totals = dict(zip(self._loss, reduce(torch.stack(list(self._loss.values()))).tolist(), strict=True))
            n, deviation, square = (totals.pop(name, 0.0) for name in (MICRO_BATCHES, DEVIATION, SQUARE))
            means |= {name: total / self._steps for name, total in totals.items()}
            means["val/ratio_var"] = max(0.0, (square - deviation**2 / n) / (n - 1)) if n > 1 else 0.0
        self._rollout.clear()
        self._loss, self._steps = {}, 0.0
        return means

    def state_dict(self) -> dict[str, Any]:
        """This process's measurements since the last log; times are in seconds before now."""
        now = time.perf_counter()
        return {
            "rollout": dict(self._rollout),
            "loss": {name: float(share) for name, share in self._loss.items()},
            "steps": self._steps,
            "size": [self._episodes, self._tokens],
            "ago": [now - moment for moment in (self._started, self._sampled, self._scored)],
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        now = time.perf_counter()
        self._rollout = defaultdict(list, state["rollout"])
        self._loss = {name: torch.tensor(share, device=device) for name, share in state["loss"].items()}
        self._steps = state["steps"]
        self._episodes, self._tokens = state["size"]
        self._started, self._sampled, self._scored = (now - seconds for seconds in state["ago"])

    def add_value(self, name: str, value: float) -> None:
        """Adds a value of a reward function (`log_metric`)."""
        self._rollout[name].append(float(value))

    def add(self, values: dict[str, float]) -> None:
        """Adds the values of one rollout; the next log has their means over rollouts."""
        for name, value in values.items():
            self._rollout[name].append(value)


def change_text(logs: list[dict[str, Any]]) -> str:
    """Returns what the run changed, first log to last, for the console."""
    if not logs:
        return "nothing was logged"
    first, last = logs[0], logs[-1]
    text = f"reward {first['objective/score']:.2f} to {last['objective/score']:.2f}"
    if "objective/score_low" in last:
        text += f" (95 % interval {last['objective/score_low']:.2f} to {last['objective/score_high']:.2f})"
    text += f", KL {last['objective/kl']:.2f} nats, length {first['rollout/length']:.0f} to "
    return text + f"{last['rollout/length']:.0f} tokens, {100 * last['rollout/eos_rate']:.0f} % ended"


def append_samples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    responses: list[list[int]],
    batches: list[MicroBatch],
    count: int = 4,
    extra: list[dict[str, Any]] | None = None,
    **columns: int | str,
) -> None:
    """Appends the first `count` episodes to a JSON Lines file; `columns` are added to each, `extra[i]` to the i-th."""
    batch_of = {row: (batch, i) for batch in batches for i, row in enumerate(batch.rows)}
    with path.open("a", encoding="utf-8") as file:
        for row in range(min(count, len(responses))):
            batch, i = batch_of[row]
            sample = {
                "prompt": tokenizer.decode(prompts[row]),
                "response": tokenizer.decode(responses[row], skip_special_tokens=True),
                "score": round(batch.scores[i].item(), 4),
                "kl": round((batch.logprobs[i] - batch.ref_logprobs[i]).sum().item(), 4),
                "length": len(responses[row]),
                "ended": bool(batch.ended[i]),
            }
            row_extra = extra[row] if extra else {}
            file.write(json.dumps(row_extra | columns | sample, ensure_ascii=False, default=str) + "\n")


def drop_samples(path: Path, step: int) -> None:
    """Drops the samples that a run wrote after its checkpoint of `step`; the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut short by a crash
            break
        # If a step has both an evaluation and a new rollout, the checkpoint is written between the two.
        if step > 0 and (row["step"] < step or (row["step"] == step and row["source"] != "train")):
            kept.append(line + "\n")
    path.write_text("".join(kept), encoding="utf-8")
