"""Rewards, GAE, whitening, losses and averages against numbers computed by hand."""

import math

import pytest
import torch
from torch import nn

from rlhf.errors import InputError
from rlhf.ppo.advantages import add_advantages, explained_variance, gae, moments, whiten
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import EMA
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.rewards import function_scores, shape_scores, token_rewards
from rlhf.ppo.rollout import MicroBatch

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_score_is_paid_at_the_last_response_token_and_kl_at_every_one():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]])
    ref_logprobs = torch.tensor([[-1.5, -2.0, -2.0], [-3.0, -1.0, 0.0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0]), logprobs, ref_logprobs, MASK, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0.0, 10.1], [-0.2, 20.0, 0.0]]))


def test_gae_by_hand():
    # gamma 1/2, lambda 1/2; row 0: deltas 1 + .5*2 - 1 = 1, 0 + .5*3 - 2 = -.5, 4 - 3 = 1
    # A_2 = 1, A_1 = -.5 + .25*1 = -.25, A_0 = 1 + .25*-.25 = .9375; row 1 ends after two tokens, its V_2 is never used
    rewards = torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 99.0]])
    advantages, returns = gae(rewards, values, MASK, gamma=0.5, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.9375, -0.25, 1.0], [-0.75, -3.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.9375, 1.75, 4.0], [1.25, 1.0, 0.0]]))


def test_gae_without_discount_and_lambda_1_is_the_sum_of_rewards_less_the_value():
    rewards, values = torch.rand(4, 7), torch.rand(4, 7)
    mask = torch.ones(4, 7, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_moments_and_whitening_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]])
    mean, variance = moments(values[MASK])
    assert (mean.item(), variance.item()) == (3.0, 2.5)
    expected = torch.tensor([[-2.0, -1.0, 0.0], [1.0, 2.0, 0.0]]) / math.sqrt(2.5)
    torch.testing.assert_close(whiten(values, MASK, mean, variance), expected)
    torch.testing.assert_close(whiten(values, MASK, mean, variance, shift_mean=False), (expected + 3.0) * MASK)


@pytest.mark.parametrize("whitened", [False, True])
def test_advantages_are_whitened_over_the_micro_batches_of_a_rollout(whitened, tmp_path):
    def batch(scores):
        zeros = torch.zeros(2, 3)
        return MicroBatch([], *[zeros] * 2, response_mask=MASK, ended=zeros[:, 0], logprobs=zeros,
                          ref_logprobs=zeros, values=zeros, shaped_scores=torch.tensor(scores))  # fmt: skip

    args = PPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, lam=1.0, whiten_advantages=whitened)
    batches = [batch([1.0, 2.0]), batch([3.0, 4.0])]
    add_advantages(batches, args, kl_coef=0.0, reduce=lambda x: x)
    advantages = torch.cat([one.advantages[MASK] for one in batches])
    to_go = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0])  # each token's return is its row's score
    expected = (to_go - to_go.mean()) / to_go.std() if whitened else to_go
    torch.testing.assert_close(advantages, expected, atol=1e-6, rtol=1e-6)
    assert torch.cat([one.returns[MASK] for one in batches]).tolist() == to_go.tolist()


def test_moments_over_processes_are_those_of_all_values():
    values = torch.randn(100, dtype=torch.float64) * 3 + 1000
    count = torch.tensor([100.0, values.sum()])
    first_pass = iter([count.double(), ((values - values.mean()) ** 2).sum()])
    mean, variance = moments(values[:30], reduce=lambda _: next(first_pass))
    assert mean.item() == pytest.approx(values.mean().item())
    assert variance.item() == pytest.approx(values.var().item())


def test_explained_variance():
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.zeros(4), returns).item() == 0.0
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)


def test_policy_loss_is_clipped_only_where_clipping_makes_it_larger():
    logprobs = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5]))
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    losses, ratio = policy_loss(logprobs, torch.zeros(4), advantages, cliprange=0.2)
    torch.testing.assert_close(ratio, torch.tensor([1.5, 0.5, 1.5, 0.5]))
    torch.testing.assert_close(losses, torch.tensor([-1.2, -0.5, 1.5, 0.8]))


def test_value_loss_takes_the_worse_of_clipped_and_unclipped():
    values = torch.tensor([1.0, 1.0, 0.1])
    returns = torch.tensor([1.0, 2.0, 1.0])
    # clipped values: .2, .2, .1
    losses = value_loss(values, torch.zeros(3), returns, cliprange=0.2)
    torch.testing.assert_close(losses, 0.5 * torch.tensor([0.64, 3.24, 0.81]))


def test_ema():
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    ema = EMA([("p", parameter)], decay=0.75)
    with torch.no_grad():
        parameter.fill_(2.0)
    ema.update()
    assert ema.shadow["p"].dtype == torch.float32
    assert ema.shadow["p"].item() == 1.25
    with ema.swapped_in():
        assert parameter.item() == 1.25
    assert parameter.item() == 2.0


# docs/trl-faults.md, fault 8
def test_fault_08_missing_eos_is_charged_to_what_did_not_stop():
    scores, ended = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert shape_scores(scores, ended, missing_eos_penalty=3.0).tolist() == [1.0, -2.0]
    assert shape_scores(scores, ended, missing_eos_reward=-1.0).tolist() == [1.0, -1.0]
    assert shape_scores(torch.tensor([9.0, -9.0]), ended, clip=5.0).tolist() == [5.0, -5.0]
    options = {"scale": 2.0, "clip": 1.0, "missing_eos_penalty": 3.0}  # in this order
    assert shape_scores(torch.tensor([1.0, 9.0]), ended, **options).tolist() == [0.5, -2.0]


def test_reward_functions_are_weighted_and_get_the_columns():
    def length(prompts, completions, **columns):
        return [len(c) for c in completions]

    def wanted(prompts, completions, word, **columns):
        return [float(w in c) for c, w in zip(completions, word, strict=True)]

    scores = function_scores([length, wanted], [1.0, 10.0], ["p", "q"], ["ab", "abc"], word=["x", "c"])
    assert scores.tolist() == [2.0, 13.0]
    with pytest.raises(InputError, match="1 scores for 2 completions"):
        function_scores([lambda **_: [0.0]], None, ["p", "q"], ["ab", "abc"])
