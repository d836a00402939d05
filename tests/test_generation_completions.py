"""Sampling, log-probabilities and rewards against plain loops over single, unpadded sequences."""

import math

import pytest
import torch
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.evaluation.best_of_n import best_of_n, best_of_n_kl
from rlhf.generation.completions import completion_logprobs, completion_rewards, sample_completions
from rlhf.generation.sampler import stop_tokens
from rlhf.models.loading import lora_config
from rlhf.models.shared_base import SharedBase

PROMPTS = [[5, 17, 60], [101, 33, 9, 88, 41, 7], [12], [200, 63, 20, 21], [30, 31]]


@pytest.fixture
def tokenizer(toy_tokenizer):
    return toy_tokenizer


@pytest.fixture
def shared(toy_base):
    shared = SharedBase(toy_base)
    for seed, name in enumerate(("sft", "ppo", "reward")):
        shared.add_adapter(name, lora_config=lora_config(ModelConfig(lora_r=4)), head=name == "reward")
        torch.manual_seed(seed)
        for key, parameter in shared.named_parameters():
            if f"lora_B.{name}." in key:
                torch.nn.init.normal_(parameter, std=0.1)
    return shared.eval()


def sample(shared, tokenizer, adapter="sft", prompts=PROMPTS, **options):
    options = {"max_new_tokens": 8, "temperature": 0.0, "progress": False, **options}
    return sample_completions(shared, adapter, prompts, tokenizer, **options)


def next_token_logits(shared, adapter, ids):
    with shared.use(adapter):
        return shared.lm(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("adapter", [None, "sft", "ppo"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
@torch.no_grad()
def test_greedy_answers_are_those_of_a_plain_loop_in_the_order_of_the_prompts(shared, tokenizer, adapter, batch_size):
    for prompt, completion in zip(PROMPTS, sample(shared, tokenizer, adapter, batch_size=batch_size), strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8:
            ids.append(next_token_logits(shared, adapter, ids).argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert completion.ids == ids[len(prompt) :]


@torch.no_grad()
def test_samples_follow_the_models_own_distribution(shared, tokenizer):
    shared.lm.generation_config.update(top_k=3, repetition_penalty=5.0)  # as a model of the Hub may have
    n = 4000
    drawn = [c.ids[0] for c in sample(shared, tokenizer, prompts=[PROMPTS[0]] * n, temperature=1.0, max_new_tokens=1)]
    p = next_token_logits(shared, "sft", PROMPTS[0]).softmax(-1)
    frequency = torch.bincount(torch.tensor(drawn), minlength=len(p)) / n
    likely = p > 0.01
    assert likely.sum() > 3
    assert ((frequency - p)[likely].abs() < 4 * (p * (1 - p) / n).sqrt()[likely]).all()


def test_generation_config_of_the_model_is_ignored_and_unchanged(shared, tokenizer):
    expected = sample(shared, tokenizer)
    shared.lm.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[1, 2, 3])
    own = shared.lm.generation_config
    assert sample(shared, tokenizer) == expected
    assert shared.lm.generation_config is own


def test_seed_decides_and_the_global_generator_is_untouched(shared, tokenizer):
    state = torch.get_rng_state()
    first = sample(shared, tokenizer, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert sample(shared, tokenizer, temperature=1.0, seed=1) == first
    assert sample(shared, tokenizer, temperature=1.0, seed=2) != first


def test_answer_ends_at_any_stop_token_of_the_model(shared, tokenizer):
    uncut = sample(shared, tokenizer)[0].ids
    stop = uncut[3]
    shared.lm.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    assert stop_tokens(shared.lm, tokenizer) == sorted([tokenizer.eos_token_id, stop])
    completion = sample(shared, tokenizer)[0]
    assert completion.ids == uncut[: uncut.index(stop) + 1]
    assert completion.ended
    assert not sample(shared, tokenizer, max_new_tokens=1)[1].ended


@torch.no_grad()
def test_logprobs_are_those_of_single_unpadded_sequences(shared, tokenizer, monkeypatch):
    completions = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 0], [0]]
    monkeypatch.setattr("rlhf.generation.completions.LOGIT_TOKENS", 12)  # batches of two
    for adapter in (None, "sft"):
        logprobs = completion_logprobs(shared, adapter, PROMPTS, completions)
        for prompt, completion, total in zip(PROMPTS, completions, logprobs, strict=True):
            ids = prompt + completion
            steps = [
                next_token_logits(shared, adapter, ids[:t]).log_softmax(-1)[ids[t]]
                for t in range(len(prompt), len(ids))
            ]
            assert total == pytest.approx(sum(steps).item(), abs=1e-4)


def test_kl_of_a_model_from_itself_is_zero_and_from_another_is_positive_on_average(shared, tokenizer):
    prompts = PROMPTS * 20
    ids = [c.ids for c in sample(shared, tokenizer, "ppo", prompts, temperature=1.0)]
    policy = completion_logprobs(shared, "ppo", prompts, ids)
    assert completion_logprobs(shared, "ppo", prompts, ids) == policy
    reference = completion_logprobs(shared, "sft", prompts, ids)
    assert sum(p - r for p, r in zip(policy, reference, strict=True)) / len(ids) > 0.1


@torch.no_grad()
def test_reward_is_read_at_the_last_token_of_the_ids_as_sampled(shared):
    completions = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 0], [0]]
    rewards = completion_rewards(shared, "reward", PROMPTS, completions, batch_size=2)
    for prompt, completion, reward in zip(PROMPTS, completions, rewards, strict=True):
        ids = torch.tensor([prompt + completion])
        assert reward == pytest.approx(shared.token_scores("reward", ids, torch.ones_like(ids))[0, -1].item(), abs=1e-5)


def test_prompt_that_leaves_no_room_is_refused(shared, tokenizer):
    with pytest.raises(InputError, match=r"Prompt 1 has 250 tokens.*max_new_tokens 8.*context of 256"):
        sample(shared, tokenizer, prompts=[[5], [5] * 250])


# ---- Best of n


def test_the_best_of_the_samples_is_chosen(shared, tokenizer):
    options = {"max_new_tokens": 6, "progress": False}
    rounds = [sample_completions(shared, "sft", PROMPTS, tokenizer, seed=7 + k, **options) for k in range(4)]
    rewards = [completion_rewards(shared, "reward", PROMPTS, [c.ids for c in completions]) for completions in rounds]

    def score(completions):
        return completion_rewards(shared, "reward", PROMPTS, [c.ids for c in completions])

    best = best_of_n(lambda k: rounds[k], score, 4)
    winners = [max(range(4), key=lambda k: rewards[k][i]) for i in range(len(PROMPTS))]
    assert best == [rounds[k][i] for i, k in enumerate(winners)]
    assert len(set(winners)) > 1
    assert best_of_n(lambda k: rounds[k], score, 1) == rounds[0]


def test_the_kl_is_that_of_the_best_of_n_of_a_continuous_score():
    """The best of n uniform scores has density n x^(n-1), so KL = E[log(n x^(n-1))], integrated numerically here."""
    for n in (1, 2, 4, 64):
        x = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
        density = n * x ** (n - 1)
        assert best_of_n_kl(n) == pytest.approx((density * density.log()).nan_to_num().mean().item(), abs=1e-4)
    assert best_of_n_kl(16) == pytest.approx(math.log(16) - 15 / 16)


def test_a_prompt_has_the_random_numbers_of_its_number(shared, tokenizer):
    options = {"max_new_tokens": 6, "seed": 3, "progress": False}
    whole = sample_completions(shared, "sft", PROMPTS, tokenizer, **options)
    numbers = [3, 0]
    part = sample_completions(shared, "sft", [PROMPTS[i] for i in numbers], tokenizer, **options, numbers=numbers)
    assert part == [whole[i] for i in numbers]
