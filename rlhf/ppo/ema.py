"""Exponential moving average of the policy's weights, the model that InstructGPT ships (arXiv 2203.02155, app. C.4)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    r"""shadow <- decay shadow + (1 - decay) parameter, in float32, after each optimizer step.

    Args:
        parameters: (name, parameter) pairs; the names are those under which checkpoints keep the average.
        decay: 0 keeps the last weights only.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float):
        self.parameters = dict(parameters)
        self.decay = decay
        self.shadow: dict[str, Tensor] = {n: p.detach().float().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        for name, parameter in self.parameters.items():
            self.shadow[name].lerp_(parameter.detach().float(), 1 - self.decay)

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within it the parameters hold the average, to save or evaluate it."""
        raw = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            parameter.copy_(self.shadow[name])
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.copy_(raw[name])
