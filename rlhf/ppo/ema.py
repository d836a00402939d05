"""Exponential moving average of the policy's weights: the model that InstructGPT ships (arXiv 2203.02155, app. C.4)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlhf.models.sharding import local_shard, release, shard_of


def decay_of_run(decay: float, steps: int) -> float:
    r"""Returns the decay of a run of `steps` optimizer steps: min(decay, (1 + steps) / (10 + steps)).

    The average reaches back over 1 / (1 - decay) steps. The paper's 0.992 reaches back over 125 of about 4,000; in a
    run of 240 it would leave 14.5 % of the SFT weights and be 106 steps old on average. The limit is a ninth of the
    run: the share of the SFT weights, decay^steps, is then 18, 6 and 3 % in runs of one, two and three steps,
    below 2 % in longer ones, and in 240 steps 0.02 %, at an age of 27 steps.
    """
    return min(decay, (1 + steps) / (10 + steps))


class EMA:
    r"""shadow <- decay shadow + (1 - decay) parameter, in float32, after each optimizer step.

    Args:
        parameters: (name, parameter) pairs; checkpoints keep the average under these names.
        decay: 0 keeps only the last weights.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float):
        self.parameters = dict(parameters)
        self.decay = decay
        self.shadow: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def rebind(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Rebinds to the parameters that replaced the first ones when the model was sharded, and keeps local shards."""
        self.parameters = dict(parameters)
        for name, parameter in self.parameters.items():
            if self.shadow[name].shape != local_shard(parameter).shape:
                self.shadow[name] = shard_of(self.shadow[name], parameter)
            self.shadow[name] = self.shadow[name].to(local_shard(parameter).device)

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(local_shard(parameter).float(), 1 - self.decay)

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """Context in which the parameters hold the average, to save or evaluate it."""
        raw = {name: local_shard(parameter).clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            local_shard(parameter).copy_(self.shadow[name])
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                local_shard(parameter).copy_(raw[name])


@contextmanager
def averaged(model: nn.Module, ema: EMA | None) -> Iterator[None]:
    """Context in which the policy of `model` is its average; without `ema` nothing changes."""
    if ema is None:
        yield
        return
    with ema.swapped_in():
        release(model)
        yield
    release(model)
