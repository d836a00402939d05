"""Prompt order, random numbers, sampling, masks and micro-batches."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from scipy.stats import chisquare
from toys import EOS, EOT, PAD, VOCAB, causal, classifier, lora, separate, shared_base, word_tokenizer

from rlhf.errors import InputError
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import sample, stop_tokens
from rlhf.ppo.layouts import SeparateActorCritic, SharedActorCritic
from rlhf.ppo.rollout import encode_prompts, longest_prompt, micro_batch, prompt_rows, split

CPU = torch.device("cpu")


def draw(model, prompts, length=6, batch_size=64, seed=0, stop_ids=(EOS,), temperature=1.0, uniforms=None):
    uniforms = sampling_uniforms(len(prompts), length, seed) if uniforms is None else uniforms
    options = {"stop_ids": list(stop_ids), "pad_id": PAD, "temperature": temperature, "batch_size": batch_size}
    with model.as_role("policy") as lm:
        return sample(lm, prompts, uniforms, **options)


def some_prompts(n=12):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, VOCAB, (2 + i % 5,), generator=generator).tolist() for i in range(n)]


# ---- Prompts


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 8), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_prompts_are_an_endless_stream_of_permutations(num_prompts, size, rollouts, seed):
    stream = [row for k in range(rollouts) for row in prompt_rows(k, size, num_prompts, seed)]
    assert len(stream) == size * rollouts
    for start in range(0, len(stream), num_prompts):
        epoch = stream[start : start + num_prompts]
        assert len(set(epoch)) == len(epoch)
        assert set(epoch) <= set(range(num_prompts))


def test_prompt_order_depends_on_seed_and_epoch():
    assert prompt_rows(0, 20, 20, seed=0) != prompt_rows(0, 20, 20, seed=1)
    assert prompt_rows(0, 20, 20, seed=0) != prompt_rows(1, 20, 20, seed=0)
    assert prompt_rows(3, 20, 20, seed=0) == prompt_rows(3, 20, 20, seed=0)


def test_prompts_are_encoded_or_taken_as_they_are():
    tok = word_tokenizer()
    encoded = encode_prompts(Dataset.from_dict({"prompt": ["w5 w6", "w7"]}), tok, 2)
    assert encoded["input_ids"][:] == [[5, 6], [7]]
    tokenized = Dataset.from_dict({"input_ids": [[5, 6], [7]]})
    assert encode_prompts(tokenized, tok, 2)["input_ids"][:] == [[5, 6], [7]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": ["w5", "w5 w6 w7"]}, "row 1 of the train prompts has 3 tokens, more than max_prompt_length 2"),
        ({"prompt": ["w5", ""]}, "row 1 of the train prompts has no tokens"),
        ({"text": ["w5"]}, "`prompt` is missing"),
        ({"prompt": []}, "prompts are empty"),
    ],
)
def test_bad_prompts_are_named(rows, message):
    with pytest.raises(InputError, match=message):
        encode_prompts(Dataset.from_dict(rows), word_tokenizer(), 2)


def test_prompt_and_response_must_fit_the_context():
    config = causal().config  # 64 positions
    assert longest_prompt(config, None, 6) == 58
    assert longest_prompt(config, 10, 6) == 10
    with pytest.raises(InputError, match=r"60 \+ response_length 6 = 66 exceeds the model's context of 64"):
        longest_prompt(config, 60, 6)


# ---- Sampling


def test_samples_follow_the_softmax():
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, -torch.inf])
    n = 4000
    chosen = inverse_cdf(logits.expand(n, -1), sampling_uniforms(n, 1, 5)[:, 0], temperature=0.5)
    expected = torch.softmax(logits.double() / 0.5, -1) * n
    counts = torch.bincount(chosen, minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4].tolist(), expected[:4].tolist()).pvalue > 0.01


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_number(vocabulary, u, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, vocabulary, generator=generator) * 3
    logits[:, torch.rand(vocabulary, generator=generator) < 0.3] = -torch.inf
    logits[0, seed % vocabulary] = 0.0
    [token] = inverse_cdf(logits, torch.tensor([u], dtype=torch.float64), 1.0).tolist()
    p = logits[0].double().softmax(-1)
    assert p[token] > 0
    assert p[:token].sum() <= u + 1e-6
    assert p[: token + 1].sum() >= u - 1e-6


def test_an_episode_does_not_depend_on_the_batch_it_is_in():
    model, prompts = SharedActorCritic(shared_base()), some_prompts()
    together = draw(model, prompts)
    assert draw(model, prompts, batch_size=1) == together
    uniforms = sampling_uniforms(len(prompts), 6, 0)
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = draw(model, [prompts[i] for i in order], uniforms=uniforms[order])
    assert shuffled == [together[i] for i in order]
    assert draw(model, prompts, seed=1) != together


# docs/trl-faults.md, fault 6
def test_fault_06_eos_and_pad_inside_a_prompt_are_ordinary_tokens():
    model = SeparateActorCritic(causal(), classifier())
    prompts = [[5, EOS, 6], [PAD, 7, PAD], [8] * 7]
    batched = draw(model, prompts)
    alone = [draw(model, [p], uniforms=sampling_uniforms(3, 6, 0)[[i]])[0] for i, p in enumerate(prompts)]
    assert batched == alone
    batch = micro_batch([0, 1, 2], prompts, batched, [EOS], PAD, CPU)
    assert batch.attention_mask[0].tolist()[:7] == [0, 0, 0, 0, 1, 1, 1]
    assert batch.input_ids[0, 4:7].tolist() == [5, EOS, 6]
    assert batch.input_ids[1, 4:7].tolist() == [PAD, 7, PAD]


# docs/trl-faults.md, fault 6
def test_fault_06_a_sampled_pad_does_not_end_the_response_and_pad_may_be_eos():
    batch = micro_batch([0, 1], [[5], [6, 7]], [[8, PAD, 9, EOS], [8, EOS]], [EOS], PAD, CPU)
    assert batch.response_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.ended.tolist() == [True, True]
    same = micro_batch([0, 1], [[5], [6, 7]], [[8, PAD, 9, EOS], [8, EOS]], [EOS], EOS, CPU)
    assert same.response_mask.tolist() == batch.response_mask.tolist()
    assert same.attention_mask.tolist() == batch.attention_mask.tolist()


# docs/trl-faults.md, fault 7
def test_fault_07_every_eos_of_the_model_ends_a_response():
    model = causal()
    model.generation_config.eos_token_id = [EOS, EOT]
    assert stop_tokens(model, word_tokenizer(), None) == [EOS, EOT]
    assert stop_tokens(model, word_tokenizer(), 9) == [EOS, EOT, 9]
    actor = SeparateActorCritic(model, classifier())
    with torch.no_grad():  # prefer the second EOS
        model.lm_head.weight[EOT] = 0
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
        model.lm_head.bias[EOT] = 3.0
    responses = draw(actor, some_prompts(), length=20, stop_ids=[EOS, EOT])
    assert {r[-1] for r in responses} >= {EOT}
    for response in responses:
        assert not {EOS, EOT} & set(response[:-1])


# docs/trl-faults.md, fault 9
@pytest.mark.parametrize("layout", ["shared", "separate", "peft"])
def test_fault_09_the_models_own_generation_config_has_no_say_and_stays(layout):
    def actor():
        policy = get_peft_model(causal(), lora()) if layout == "peft" else causal()
        return SharedActorCritic(shared_base()) if layout == "shared" else SeparateActorCritic(policy, classifier())

    plain, meddling = actor(), actor()
    own = meddling.language_model.generation_config
    own.update(repetition_penalty=5.0, no_repeat_ngram_size=1, suppress_tokens=[5, 6, 7], min_new_tokens=6,
               do_sample=True, temperature=0.1, top_k=3, top_p=0.5, num_beams=1, eos_token_id=[EOS, 20])  # fmt: skip
    before = own.to_dict()
    prompts = some_prompts()
    assert draw(plain, prompts, length=12) == draw(meddling, prompts, length=12)
    assert meddling.language_model.generation_config is own
    assert own.to_dict() == before


def test_greedy_is_the_limit_of_low_temperature():
    model, prompts = SeparateActorCritic(causal(), classifier()), some_prompts(4)
    response = draw(model, prompts, temperature=1e-4)
    for prompt, ids in zip(prompts, response, strict=True):
        expected = []
        while len(expected) < len(ids):
            logits = model.policy(torch.tensor([prompt + expected])).logits[0, -1]
            expected.append(logits.argmax().item())
        assert ids == expected


# ---- Micro-batches


@given(st.lists(st.integers(1, 50), min_size=8, max_size=8), st.sampled_from([(1, 2), (2, 1), (2, 4), (4, 2), (1, 8)]))
@settings(max_examples=50, deadline=None)
def test_split_is_a_partition_sorted_by_length(lengths, shape):
    num_mini_batches, size = shape
    minibatches = split(lengths, num_mini_batches, size)
    assert sorted(i for m in minibatches for rows in m for i in rows) == list(range(8))
    for m, minibatch in enumerate(minibatches):
        rows = [i for micro in minibatch for i in micro]
        assert {i % num_mini_batches for i in rows} == {m}
        assert [lengths[i] for i in rows] == sorted(lengths[i] for i in rows)
        assert {len(micro) for micro in minibatch} == {size}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_more_padding_changes_nothing(kind):
    models = separate(kind)
    model = SeparateActorCritic(models["model"], models["value_model"], models["ref_model"], models["reward_model"])
    prompts = some_prompts(3)
    responses = draw(model, prompts)
    rows = [0, 1, 2]
    tight = micro_batch(rows, prompts, responses, [EOS], PAD, CPU)
    # a fourth episode with a long prompt and a long response widens the batch
    wide = micro_batch([0, 1, 2, 3], [*prompts, [9] * 20], [*responses, [9] * 15], [EOS], PAD, CPU)
    width = tight.response_mask.shape[1]
    with torch.no_grad():
        for method in ("policy_and_value", "reference_and_reward", "policy_logprobs", "reference_logprobs"):
            a, b = model(method, **tight.inputs()), model(method, **wide.inputs())
            for x, y in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
                y = y[:3] if y.ndim == 1 else y[:3, :width]
                torch.testing.assert_close(x, y, atol=2e-5, rtol=1e-5)


def test_reward_is_that_of_an_ordinary_sequence_classifier():
    reward = classifier()
    model = SeparateActorCritic(causal(), classifier(seed=2), causal(), reward)
    prompts = some_prompts(3)
    responses = draw(model, prompts)
    batch = micro_batch([0, 1, 2], prompts, responses, [EOS], PAD, CPU)
    with torch.no_grad():
        _, scores = model("reference_and_reward", **batch.inputs())
        for i in range(3):
            alone = reward(torch.tensor([prompts[i] + responses[i]])).logits[0, 0]
            assert scores[i].item() == pytest.approx(alone.item(), abs=1e-5)
