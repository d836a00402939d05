"""The bias that gives labeler demonstrations mean score 0 (arXiv 2203.02155, section 3.5)."""

import torch
from torch import nn

from rlhf.reward.collator import pad_right


@torch.no_grad()
def score_sequences(model: nn.Module, sequences: list[list[int]], pad_token_id: int, batch_size: int) -> torch.Tensor:
    """Raw scores [N] float32, on the CPU, of N lists of token ids (prompt, completion, EOS).

    Args:
        model: a sequence classifier on which `pool_at_last_token` was called.
        batch_size: sequences in one forward; they are sorted by length first.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    scores = torch.empty(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = pad_right([sequences[i] for i in rows], pad_token_id)
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False)
        scores[rows] = output.logits.squeeze(-1).float().cpu()
    model.train(training)
    return scores


def calibration(scores: torch.Tensor) -> dict[str, float]:
    """From the raw scores [N] of demonstrations: `bias`, which is subtracted from every score, `std` and `n`.

    The loss fixes scores up to a constant. With this one, a score of 0 means "as good as a demonstration".
    """
    return {"bias": scores.mean().item(), "std": scores.std(correction=0).item(), "n": len(scores)}
