"""Attention to the filled part of each slot. On a CPU, plain torch takes the place of the kernel."""

import logging
from dataclasses import replace

import pytest
import torch
from reference_attention import reference_flash
from toys import PAD, VOCAB, causal
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    NemotronConfig,
    OPTConfig,
)

import rlhf.generation.continuous_batching as continuous_batching
import rlhf.generation.slot_attention as slot_attention
from rlhf.generation.continuous_batching import StaticBatch, decode_continuously
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import decode
from rlhf.generation.slot_attention import NAME, Slots, kernel_fault, kernel_works, takes_slots
from rlhf.models.packed_attention import enable_packing
from rlhf.tensors import pad_left

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [14, 13, 12, 11], [15, 16, 17], [11, 12], [18, 19], [10], [20]]
STOPS = list(range(1, 7))
SIZES = dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, pad_token_id=PAD,
             bos_token_id=None, eos_token_id=None, max_position_embeddings=64)  # fmt: skip
GROUPED = SIZES | dict(intermediate_size=32, num_key_value_heads=2)
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "own scale": GraniteConfig(**GROUPED, attention_multiplier=0.6),
    "own size": Gemma3TextConfig(**GROUPED, head_dim=16, query_pre_attn_scalar=4, layer_types=["full_attention"] * 2),
    "gpt2": GPT2Config(**SIZES | dict(scale_attn_by_inverse_layer_idx=True)),
    "opt": OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32),
}


@pytest.fixture(autouse=True)
def untried():
    """Forgets what earlier tests found of the kernel."""
    kernel_works.cache_clear()
    yield
    kernel_works.cache_clear()


@pytest.fixture
def kernel(monkeypatch):
    """Lets a CPU use the kernel, which is plain torch; returns the scales of its calls."""
    scales = []
    monkeypatch.setattr(slot_attention, "has_kernel", lambda device, dtype: True)
    monkeypatch.setattr(slot_attention, "flash", lambda *inputs: scales.append(inputs[-1]) or reference_flash(*inputs))
    return scales


def model(config):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():  # an untrained model's attention is nearly uniform
        for parameter in lm.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1))
    return lm


def chooser(length: int = 12):
    uniforms = sampling_uniforms(len(PROMPTS), length, "test")
    return lambda logits, rows, step: inverse_cdf(logits, uniforms[rows, step], 0.8)


def continuously(lm):
    return decode_continuously(lm, PROMPTS, chooser(), STOPS, 12, 3)


def in_a_batch(lm):
    return decode(lm, *pad_left(PROMPTS, PAD, lm.device), chooser(), STOPS, 12)


@pytest.fixture
def windows(monkeypatch):
    """Returns the positions that each step reads, which are in multiples of 8."""
    windows, step = [], StaticBatch.step
    monkeypatch.setattr(continuous_batching, "WINDOW", 8)
    monkeypatch.setattr(StaticBatch, "step", lambda self, window: windows.append(window) or step(self, window))
    return windows


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_to_filled_slots_gives_the_responses_of_batches(name, kernel, windows):
    lm = model(CONFIGS[name])
    assert continuously(lm) == in_a_batch(lm)
    assert len(kernel) == 3 + 2 * len(windows)  # the trial, and two layers in each step
    assert set(windows) == {24}  # one graph
    assert lm.config._attn_implementation == "sdpa"


def test_without_the_kernel_attention_reads_windows(windows):
    lm = model(CONFIGS["llama"])
    assert continuously(lm) == in_a_batch(lm)
    assert windows[0] == 24  # it finds that no layer has the kernel
    assert set(windows[1:]) == {8, 16}


def test_layers_that_do_not_pass_arguments_on_read_windows(kernel, windows):
    lm = model(NemotronConfig(**GROUPED))
    assert takes_slots(lm)
    assert continuously(lm) == in_a_batch(lm)
    assert not kernel
    assert set(windows[1:]) == {8, 16}


def test_packed_rows_keep_their_attention(kernel, packed_on_cpu):
    lm = model(CONFIGS["llama"])
    expected = continuously(lm)
    assert enable_packing(lm, CPU, torch.float32) is None
    name = lm.config._attn_implementation
    calls = len(kernel)
    assert continuously(lm) == expected
    assert len(kernel) > calls
    assert lm.config._attn_implementation == name == "sdpa_packed"


def test_a_step_that_fails_leaves_the_attention_as_it_was(kernel, monkeypatch):
    lm = model(CONFIGS["llama"])
    seen = []

    def fail(module, args):
        seen.append(lm.config._attn_implementation)
        raise RuntimeError("out of memory")

    lm.model.norm.register_forward_pre_hook(lambda *a: fail(*a) if lm.config._attn_implementation == NAME else None)
    with pytest.raises(RuntimeError, match="out of memory"):
        continuously(lm)
    assert seen == [NAME]
    assert lm.config._attn_implementation == "sdpa"


def attend(changes=None, **arguments):
    """Calls `slot_attention` on three slots; `changes` of the argument `slots`."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 16, 8), torch.randn(3, 2, 16, 8)
    slots = Slots.of(torch.tensor([0, 4, 15]), 16)
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    inputs = dict(attention_mask=slots.mask, slots=replace(slots, **changes or {})) | arguments
    out, _ = slot_attention.slot_attention(module, query, key, value, **inputs)
    return out, inputs["slots"]


def test_the_kernel_computes_what_sdpa_computes_with_the_mask_of_the_step(kernel):
    for options in ({}, {"scaling": 0.7}, {"scaling": 1.0, "sliding_window": None, "dropout": 0.0}):
        out, slots = attend(**options)
        expected, _ = attend(slots=None, **options)
        torch.testing.assert_close(out, expected)
        assert slots.layers == 1


@pytest.mark.parametrize(
    "options",
    [
        {"attention_mask": None},
        {"attention_mask": torch.arange(16) < torch.tensor([1, 5, 16])[:, None, None, None]},  # equal, but another
        {"dropout": 0.1},
        {"sliding_window": 4},
        {"s_aux": torch.zeros(4)},
        {"position_bias": torch.zeros(1, 4, 1, 16)},
    ],
)
def test_a_layer_that_asks_for_more_gets_sdpa(options, kernel):
    torch.manual_seed(1)
    out, slots = attend(**options)
    assert slots.layers == 0 and not kernel
    if not options.get("dropout"):
        torch.testing.assert_close(out, attend(slots=None, **options)[0])


def test_a_soft_cap_is_an_error_as_before(kernel):
    with pytest.raises(ValueError, match="softcap"):
        attend(softcap=30.0)


# ---- The trial


def one_key_more(query, keys, values, slots, scale):
    return reference_flash(query, keys, values, replace(slots, lengths=slots.lengths + 1), scale)


def one_key_less(query, keys, values, slots, scale):
    return reference_flash(query, keys, values, replace(slots, lengths=(slots.lengths - 1).clamp(min=1)), scale)


def all_keys(query, keys, values, slots, scale):
    return reference_flash(query, keys, values, replace(slots, lengths=slots.lengths * 0 + keys.shape[1]), scale)


def no_scale(query, keys, values, slots, scale):
    return reference_flash(query, keys, values, slots, None)


def other_heads(query, keys, values, slots, scale):
    return reference_flash(query, keys.flip(2), values.flip(2), slots, scale)


def not_a_number(query, keys, values, slots, scale):
    out = reference_flash(query, keys, values, slots, scale)
    out[0, 0, 0] = float("nan")
    return out


class FirstLengths:
    """A kernel that reads its lengths once, as a CUDA graph does with numbers that are not on the device."""

    lengths = None

    def __call__(self, query, keys, values, slots, scale):
        self.lengths = slots.lengths if self.lengths is None else self.lengths
        return reference_flash(query, keys, values, replace(slots, lengths=self.lengths), scale)


LIARS = [one_key_more, one_key_less, all_keys, no_scale, other_heads, not_a_number, FirstLengths()]
SHAPES = [(torch.bfloat16, 32, 8, 64), (torch.float16, 8, 2, 128), (torch.bfloat16, 2, 2, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_trial_takes_a_kernel_that_is_right(shape, monkeypatch):
    monkeypatch.setattr(slot_attention, "flash", reference_flash)
    assert kernel_fault(CPU, *shape) is None


@pytest.mark.parametrize("liar", LIARS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_trial_refuses_a_kernel_that_is_wrong(shape, liar, monkeypatch):
    monkeypatch.setattr(slot_attention, "flash", liar)
    assert "is wrong" in str(kernel_fault(CPU, *shape))


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError])
def test_the_trial_refuses_a_kernel_that_is_missing_or_fails(error, monkeypatch):
    def fails(*args):
        raise error("no such kernel\nand a trace")

    monkeypatch.setattr(slot_attention, "flash", fails)
    assert str(kernel_fault(CPU, *SHAPES[0])).endswith("cannot compute attention to filled slots: no such kernel")


def test_the_operator_of_torch_takes_the_arguments_and_has_no_kernel_on_a_cpu():
    assert "'aten::_flash_attention_forward'" in str(kernel_fault(CPU, *SHAPES[0]))


def test_a_wrong_kernel_is_not_used_and_one_line_says_so(monkeypatch, windows, caplog):
    lm = causal().eval()
    monkeypatch.setattr(slot_attention, "has_kernel", lambda device, dtype: True)
    monkeypatch.setattr(slot_attention, "flash", one_key_more)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert continuously(lm) == in_a_batch(lm)
    assert [record.message for record in caplog.records] == [
        f"decoding reads all keys with a mask, because attention to filled slots is wrong in torch {torch.__version__}"
    ]
    assert len(set(windows)) == 3


def test_a_gpu_has_the_kernel_for_16_bits():
    assert slot_attention.has_kernel(torch.device("cuda"), torch.bfloat16)
    assert not slot_attention.has_kernel(torch.device("cuda"), torch.float32)
    assert not slot_attention.has_kernel(CPU, torch.bfloat16)
