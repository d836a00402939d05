"""Continuous batching against decoding in batches. Tests of the CUDA graphs are in test_gpu.py."""

import random

import pytest
import torch
from toys import EOS, PAD, VOCAB, causal, shared_base
from transformers import MistralConfig, MistralForCausalLM

import rlhf.generation.continuous_batching as continuous_batching
from rlhf.generation.continuous_batching import StaticBatch, decode_continuously, supports_continuous_batching
from rlhf.generation.decode_linears import active_lora, plain_lora
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import decode, decode_in_batches, sample
from rlhf.tensors import pad_left

PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12], [EOS, 13, PAD, 14], [15, 16, 17], [18, 19], [20], [21, 22, 23], [24, 25]]
STOPS = list(range(1, 9))  # many, so that rows finish at different times


def chooser(n: int, length: int):
    uniforms = sampling_uniforms(n, length, "test")
    return lambda logits, rows, step: inverse_cdf(logits, uniforms[rows, step], 0.8)


@pytest.mark.parametrize("size", [1, 3, 9, 100])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_continuous_batching_gives_the_responses_of_batches(kind, size, monkeypatch):
    monkeypatch.setattr(continuous_batching, "WINDOW", 8)  # several windows
    monkeypatch.setattr(continuous_batching, "PREFILL_TOKENS", 10)  # several passes of prompts
    lm, choose, finished = causal(kind).eval(), chooser(len(PROMPTS), 20), []
    responses = decode_continuously(lm, PROMPTS, choose, STOPS, 20, size, finished.append)
    assert responses == decode(lm, *pad_left(PROMPTS, PAD, lm.device), choose, STOPS, 20)
    assert len({len(ids) for ids in responses}) > 3
    assert sum(finished) == len(PROMPTS)


def test_free_slots_are_refilled_once_they_are_a_quarter(monkeypatch):
    lm, lengths, sizes, admitted = causal().eval(), torch.tensor([3, 9, 1, 9, 2, 6, 1, 1, 4]), [], []
    admit = StaticBatch.admit
    monkeypatch.setattr(
        StaticBatch, "admit", lambda self, slots, *args: (admitted.append(slots), admit(self, slots, *args))
    )

    def choose(logits, rows, step):
        sizes.append(len(logits))
        return torch.where(lengths[rows] == step + 1, EOS, 10 + rows)

    responses = decode_continuously(lm, PROMPTS, choose, [EOS], 20, 5)
    assert responses == [[10 + i] * (n - 1) + [EOS] for i, n in enumerate(lengths.tolist())]
    assert admitted[0] == {i: i for i in range(5)}
    assert admitted[1:] == [{2: 5, 4: 6}, {0: 7, 4: 8}]  # after step 2: slots 2 and 4; after step 3: 0 and 4
    assert set(sizes) == {5}
    assert len(sizes) == 10  # nine, and one that is started before the stop tokens of the ninth are read


def test_any_shape_gives_the_responses_of_batches(monkeypatch):
    """Random prompts, groups of rooms, numbers of slots, lengths and stop tokens; half of the prompts are repeated."""
    lm, draw = causal().eval(), random.Random(0)
    monkeypatch.setattr(continuous_batching, "WINDOW", 8)
    seen, finished, one_token = [], [], 0
    for _ in range(30):
        length, size = draw.choice([1, 2, 3, 7, 8]), draw.randint(1, 6)
        stops = draw.sample(range(VOCAB), draw.choice([0, 5, 20]))
        prompts = [draw.choices(range(VOCAB), k=draw.choice([1, 2, 3, 8, 9, 25])) for _ in range(draw.randint(1, 8))]
        prompts = sorted(prompts + prompts[::2], key=len, reverse=True)
        monkeypatch.setattr(continuous_batching, "PREFILL_TOKENS", draw.choice([1, 20, 1000]))
        choose = chooser(len(prompts), length)

        def choose_in_bounds(logits, rows, step, choose=choose, length=length):
            seen.append(int(step.max()) < length and bool(logits.isfinite().all()))
            return choose(logits, rows, step)

        responses = decode_continuously(lm, prompts, choose_in_bounds, stops, length, size, finished.append)
        assert responses == decode_in_batches(lm, prompts, choose, stops, length, 5, lambda n: None, PAD)
        assert sum(finished) == len(prompts)
        finished.clear()
        one_token += sum(len(ids) == 1 and length > 1 for ids in responses)
    assert all(seen)
    assert one_token > 10


def test_a_slot_that_stays_free_changes_no_other_slot_and_stays_within_its_capacity(monkeypatch):
    """Prompts and responses fill the capacity. One slot stops first, and stays free while another decodes two more."""
    lm, lengths = causal().eval(), torch.tensor([8, 8, 8, 8, 8, 8, 2, 2, 8])
    prompts, positions, step = [[5 + i] * 8 for i in range(9)], [], StaticBatch.step
    monkeypatch.setattr(
        StaticBatch, "step", lambda self, window: (step(self, window), positions.append(self.positions.tolist()))
    )

    def forced(logits, rows, step):
        return torch.where(lengths[rows] == step + 1, EOS, logits[:, 10:].argmax(-1) + 10)

    together = decode_continuously(lm, prompts, forced, [EOS], 8, 8)
    assert [len(ids) for ids in together] == lengths.tolist()
    assert [max(at) for at in zip(*positions, strict=True)][7] == 15  # of 16; without a limit 17
    for i, prompt in enumerate(prompts):
        [alone] = decode_continuously(lm, [prompt], lambda x, _, step, i=i: forced(x, torch.tensor([i]), step),
                                      [EOS], 8, 3)  # fmt: skip
        assert alone == together[i]


def test_equal_prompts_that_are_admitted_together_are_prefilled_once():
    lm, prefilled = causal().eval(), []
    prompts = [[5, 6, 7]] * 4 + [[8, 9, 7]] * 2 + [[5, 6]] + [[10]] * 3

    def count(module, args, kwargs):
        if "position_ids" not in kwargs or kwargs["position_ids"] is None:
            prefilled.extend(kwargs["input_ids"].tolist())

    handle = lm.model.register_forward_pre_hook(count, with_kwargs=True)
    responses = decode_continuously(lm, prompts, chooser(10, 20), STOPS, 20, 10)
    handle.remove()
    assert prefilled == [[5, 6], [8, 9], [5, 0]]  # the last with padding
    assert responses == decode(lm, *pad_left(prompts, PAD, lm.device), chooser(10, 20), STOPS, 20)
    assert len({tuple(ids) for ids in responses[:4]}) == 4


@pytest.mark.parametrize("repeats", [1, 3])
def test_sampling_several_responses_a_prompt_prefills_each_prompt_once(repeats, monkeypatch):
    """The responses are those of slots that prefill each for itself."""
    lm, tokens = causal().eval(), []
    prompts = [ids for ids in sorted(PROMPTS, key=len, reverse=True) for _ in range(repeats)]
    prefill = StaticBatch.prefill
    monkeypatch.setattr(
        StaticBatch, "prefill", lambda self, slots_of: (tokens.append(sum(map(len, slots_of))), prefill(self, slots_of))
    )
    options = chooser(len(prompts), 20), STOPS, 20
    responses = decode_continuously(lm, prompts, *options, len(prompts))
    assert sum(tokens) == sum(len(ids) - 1 for ids in PROMPTS)
    assert responses == decode_continuously(lm, prompts, *options, 1)
    assert sum(tokens) == (1 + repeats) * sum(len(ids) - 1 for ids in PROMPTS)


def test_a_response_does_not_depend_on_its_neighbours():
    lm, choose = causal().eval(), chooser(len(PROMPTS), 20)
    together = decode_continuously(lm, PROMPTS, choose, STOPS, 20, 4)
    for i, prompt in enumerate(PROMPTS):
        alone = decode_continuously(lm, [prompt], lambda logits, _, step, i=i: choose(logits, torch.tensor([i]), step),
                                STOPS, 20, 4)  # fmt: skip
        assert alone == [together[i]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_the_chosen_tokens_are_likely(dtype):
    """Rounding to 16 bits may change a greedy choice, so the ids are compared with the logits of full sequences."""
    lm, greedy = causal().eval().to(dtype), lambda logits, rows, step: logits.argmax(-1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for prompt, response in zip(PROMPTS, decode_continuously(lm, PROMPTS, greedy, STOPS, 20, 4), strict=True):
            logits = lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
            assert (logits.amax(-1) - logits.gather(1, torch.tensor(response)[:, None]).squeeze(1)).max() < 0.02


def test_only_plain_attention_on_a_gpu_is_batched_continuously(monkeypatch):
    plain, shared, eager = causal(), shared_base(), causal()
    eager.set_attn_implementation("eager")
    sizes = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    sliding = MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=1, sliding_window=4))
    assert not supports_continuous_batching(plain)
    monkeypatch.setattr("transformers.PreTrainedModel.device", property(lambda self: torch.device("cuda")))
    assert supports_continuous_batching(plain)
    assert supports_continuous_batching(shared.lm)
    assert not supports_continuous_batching(sliding)
    assert not supports_continuous_batching(eager)


def test_sample_batches_continuously_where_the_model_supports_it(monkeypatch):
    lm, uniforms = causal(), sampling_uniforms(len(PROMPTS), 7, "test")
    options = dict(temperature=0.7, stop_ids=STOPS, pad_id=PAD, batch_size=4)
    in_batches = sample(lm, PROMPTS, uniforms, **options)
    used = []
    monkeypatch.setattr("rlhf.generation.sampler.supports_continuous_batching", lambda lm: True)
    monkeypatch.setattr(
        "rlhf.generation.sampler.decode_continuously", lambda *a, **kw: used.append(1) or decode_continuously(*a, **kw)
    )
    assert sample(lm, PROMPTS, uniforms, **options) == in_batches
    assert used
    assert sample(lm, [], uniforms[:0], **options) == []


def test_plain_lora_computes_what_pefts_layer_computes():
    base = shared_base().eval()
    with base.use("policy"), torch.no_grad():
        layer = base.lm.model.layers[0].self_attn.q_proj
        x = torch.randn(5, 1, 16)
        torch.testing.assert_close(plain_lora(layer.base_layer, *active_lora(layer), x.dtype)(x), layer(x))
