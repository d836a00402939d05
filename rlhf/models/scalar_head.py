"""The head that turns hidden states into scores or values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScalarHead(nn.Linear):
    """Linear layer from H features to 1.

    Computes in float32 even if DeepSpeed or FSDP has cast its weights to the dtype of the base.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.float(), self.weight.float(), self.bias.float())


def make_scalar_head(hidden_size: int, weight: Tensor | None, bias: float) -> ScalarHead:
    """A head with `weight` [1, H] and `bias`; without a weight, N(0, 1 / (H + 1)) (arXiv 2009.01325)."""
    head = ScalarHead(hidden_size, 1, dtype=torch.float32)
    with torch.no_grad():
        if weight is None:
            nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5)
        else:
            head.weight.copy_(weight)
        head.bias.fill_(bias)
    return head
