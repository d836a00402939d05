"""The K-wise loss against a plain loop over pairs and against hand-worked numbers."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.reward.loss import center_penalty, kwise_loss, ranked_pairs


def loop_loss(scores, ranks, completions_per_prompt):
    """The paper's equation, one pair at a time."""
    losses, start = [], 0
    for k in completions_per_prompt.tolist():
        total = 0.0
        for i, j in combinations(range(start, start + k), 2):
            if ranks[i] != ranks[j]:
                winner, loser = (i, j) if ranks[i] < ranks[j] else (j, i)
                total = total - F.logsigmoid(scores[winner] - scores[loser])
        losses.append(total / math.comb(k, 2))
        start += k
    return sum(losses) / len(losses)


@st.composite
def batches(draw):
    sizes = draw(st.lists(st.integers(2, 9), min_size=1, max_size=6))
    ranks = [draw(st.lists(st.integers(0, k - 1), min_size=k, max_size=k)) for k in sizes]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(sum(sizes), generator=generator) * 3
    return scores, torch.tensor([rank for prompt_ranks in ranks for rank in prompt_ranks]), torch.tensor(sizes)


@settings(deadline=None, max_examples=50)
@given(batches())
def test_loss_and_gradient_equal_the_loop_over_pairs(batch):
    scores, ranks, sizes = batch
    ours, plain = scores.clone().requires_grad_(), scores.clone().double().requires_grad_()
    loss, expected = kwise_loss(ours, ranks, sizes), loop_loss(plain, ranks, sizes)
    assert torch.isclose(loss.double(), torch.as_tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)
    loss.backward()
    if torch.is_tensor(expected) and expected.requires_grad:
        expected.backward()
        torch.testing.assert_close(ours.grad.double(), plain.grad, atol=1e-6, rtol=1e-6)
    else:  # ties only
        assert ours.grad.abs().max() == 0


def test_hand_worked_numbers():
    # Prompt 1: K = 3, ranks 0 < 1 = 1: two pairs of three, margins 1 and 2. Prompt 2: K = 2, margin -1.
    scores = torch.tensor([2.0, 1.0, 0.0, 0.0, 1.0])
    ranks, sizes = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([3, 2])
    first = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 3
    second = math.log1p(math.exp(1))
    assert kwise_loss(scores, ranks, sizes).item() == pytest.approx((first + second) / 2, abs=1e-6)
    assert center_penalty(scores, ranks, sizes).item() == pytest.approx(((9 + 4) / 3 + 1) / 2, abs=1e-6)


def test_pairs_never_cross_prompts():
    winners, losers, prompts = ranked_pairs(torch.tensor([1, 0, 0, 1, 1]), torch.tensor([2, 3]))
    assert list(zip(winners.tolist(), losers.tolist(), prompts.tolist(), strict=True)) == [
        (1, 0, 0),
        (2, 3, 1),
        (2, 4, 1),
    ]


def test_losses_of_micro_batches_sum_to_the_loss_of_the_batch():
    scores, ranks, sizes = torch.randn(9), torch.tensor([0, 1, 2, 3, 1, 0, 2, 2, 0]), torch.tensor([4, 2, 3])
    loss = kwise_loss(scores, ranks, sizes)
    micro_losses = kwise_loss(scores[:4], ranks[:4], sizes[:1], 3), kwise_loss(scores[4:], ranks[4:], sizes[1:], 3)
    torch.testing.assert_close(loss, sum(micro_losses))


def test_half_precision_scores_give_a_float32_loss():
    scores = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    loss = kwise_loss(scores, torch.tensor([0, 1]), torch.tensor([2]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)
