"""How a merged model agrees with its adapter."""

from dataclasses import dataclass

import torch
from trl import ModelConfig

# Largest difference of two logits over the largest one.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Agreement:
    """How a merged model differs from its adapter on a few texts.

    Attributes:
        difference: largest absolute difference of logits, or of scores of a reward model.
        mean: root of the mean squared difference.
        effect: the same of the adapter and the bare base; 0 for a reward model, whose base has no head.
        scale: largest absolute logit, at least 1.
        dtype: of the merged weights.
    """

    difference: float
    mean: float
    effect: float
    scale: float
    dtype: torch.dtype

    @property
    def problem(self) -> str | None:
        """Returns why the merged model is not the adapter's; None if it is."""
        if not self.difference <= TOLERANCE[self.dtype] * self.scale:
            return f"differs by up to {self.difference:.2g}, of logits up to {self.scale:.2g}"
        if self.effect and self.mean > self.effect / 2:
            return f"differs by {self.mean:.2g} on average, and the adapter changes its base only by {self.effect:.2g}"
        return None


def bits(model_args: ModelConfig) -> int | None:
    """Returns the bits of a base that was quantized; None for others."""
    return 4 if model_args.load_in_4bit else 8 if model_args.load_in_8bit else None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
