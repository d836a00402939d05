"""Rows without padding compute what each row computes alone. On a CPU, plain torch takes the place of the kernel."""

import copy

import pytest
import torch
from reference_attention import reference_varlen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    NemotronConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3Config,
)

from rlhf.models.packed_attention import (
    NAME,
    attention_arguments,
    enable_packing,
    kernel_fault,
    kernel_obstacle,
    packed_attention,
    packed_row,
    packs_correctly,
    repeated,
)

TOKENS = dict(pad_token_id=0, bos_token_id=None, eos_token_id=None)
SIZES = TOKENS | dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=8)
WIDE = SIZES | dict(intermediate_size=64, num_key_value_heads=2, max_position_embeddings=64)
WINDOW = 4  # shorter than the rows
GEMMA = WIDE | dict(head_dim=8, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"])
CONFIGS = {
    "llama": LlamaConfig(**WIDE),
    "qwen3": Qwen3Config(**WIDE, head_dim=8),
    "gemma3": Gemma3TextConfig(**GEMMA, query_pre_attn_scalar=16),
    "gpt2": GPT2Config(**TOKENS, vocab_size=64, n_embd=64, n_layer=2, n_head=8, n_positions=64, attn_pdrop=0.0),
    "mistral": MistralConfig(**WIDE, sliding_window=WINDOW),
    "opt": OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=64, max_position_embeddings=64, attention_dropout=0.0),
}
OTHERS = {
    "bloom": BloomConfig(**SIZES),
    "nemotron": NemotronConfig(**WIDE),
    "dropout": LlamaConfig(**WIDE, attention_dropout=0.1),
    # With windows longer than the rows that `enable_packing` tries.
    "phimoe": PhimoeConfig(**WIDE, sliding_window=10, num_local_experts=2),
    "qwen2_moe": Qwen2MoeConfig(
        **WIDE, sliding_window=10, use_sliding_window=True, num_experts=2, num_experts_per_tok=1
    ),
}
LENGTHS = [9, 1, 13, 5]
CPU = torch.device("cpu")


def model(config, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():  # an untrained model's attention is nearly uniform
        for parameter in lm.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.dim() == 1))
    return lm


def gradient(lm: PreTrainedModel, hidden: Tensor) -> dict[str, Tensor]:
    lm.zero_grad()
    (hidden.float() * torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)).sum().backward()
    return {name: p.grad.float().clone() for name, p in lm.named_parameters() if p.grad is not None}


def alone(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    parts = [lm.base_model(part[None], use_cache=False).last_hidden_state[0] for part in ids.split(LENGTHS)]
    return torch.cat(parts)


def packed(lm: PreTrainedModel, ids: Tensor, copies: int) -> Tensor:
    inputs = {"input_ids": ids[None], **packed_row(LENGTHS, ids.device)}
    return lm.base_model(**repeated(inputs, copies), use_cache=False).last_hidden_state


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_row_computes_what_its_sequences_compute_alone(name, packed_on_cpu):
    lm, ids = model(CONFIGS[name]), torch.randint(2, 64, (sum(LENGTHS),))
    assert enable_packing(lm, CPU, torch.float32) is None
    expected = alone(lm, ids)
    gradients = gradient(lm, expected)
    for copies in (1, 2):
        rows = packed(lm, ids, copies)
        assert len(rows) == copies
        for row in rows:
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
        for weight, found in gradient(lm, rows).items():
            torch.testing.assert_close(found, copies * gradients[weight], atol=2e-4, rtol=2e-4, msg=weight)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_row_computes_what_its_sequences_compute_alone_on_a_gpu(name):
    lm, ids = model(CONFIGS[name]).cuda().bfloat16(), torch.randint(2, 64, (sum(LENGTHS),), device="cuda")
    assert enable_packing(lm, lm.device, torch.bfloat16) is None
    rows, expected = packed(lm, ids, 2), alone(lm, ids)
    exact = model(CONFIGS[name]).cuda()
    true = alone(exact, ids)
    noise = (expected.float() - true).norm()
    assert all((row.float() - true).norm() < 1.5 * noise for row in rows)
    gradients = [gradient(each, hidden) for each, hidden in ((lm, rows), (lm, expected), (exact, true))]
    for weight, truth in gradients[2].items():
        noise = (gradients[1][weight] - truth).norm() + 1e-3 * truth.norm()
        assert (gradients[0][weight] / 2 - truth).norm() < 2 * noise, weight


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_by_positions_alone_transformers_keeps_rows_apart_except_those_of_opt(name, attention):
    """The reason not to leave it to transformers: nothing tells of OPT's mistake."""
    lm = model(CONFIGS[name], attention)
    assert packs_correctly(lm.base_model, torch.float32, by_positions=True) == (name != "opt")


@pytest.mark.parametrize(
    ("config", "attention", "reason"),
    [
        (CONFIGS["llama"], "eager", "attn_implementation is eager"),
        (OTHERS["bloom"], "eager", "attn_implementation is eager"),
        (OTHERS["dropout"], "sdpa", "attention_dropout is 0.1"),
        (OTHERS["nemotron"], "sdpa", "does not take packed rows"),  # its layers do not pass arguments on
        (OTHERS["phimoe"], "sdpa", "does not take packed rows"),  # nor these their windows
        (OTHERS["qwen2_moe"], "sdpa", "does not take packed rows"),
    ],
)
def test_other_models_keep_their_attention_and_say_why(config, attention, reason, packed_on_cpu):
    lm = model(config, attention)
    assert reason in str(enable_packing(lm, CPU, torch.float32))
    assert lm.config._attn_implementation == attention


@pytest.mark.parametrize("name", [*CONFIGS, "nemotron", "phimoe", "qwen2_moe"])
def test_where_weights_are_sharded_a_short_copy_is_tried(name, packed_on_cpu, monkeypatch):
    monkeypatch.setattr("rlhf.models.packed_attention.is_deepspeed_zero3_enabled", lambda: True)
    lm = model((CONFIGS | OTHERS)[name])
    for weight in lm.parameters():  # as ZeRO-3 leaves them
        weight.data = torch.empty(0)
    before = torch.get_rng_state()
    obstacle = enable_packing(lm, CPU, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    assert (obstacle is None) == (name in CONFIGS) == (lm.config._attn_implementation == NAME)


def test_where_weights_are_sharded_and_no_copy_can_be_made_rows_are_padded(packed_on_cpu, monkeypatch):
    class Own(LlamaForCausalLM):
        def __init__(self, config):
            if config.num_hidden_layers == 2:
                raise KeyError("sizes")
            super().__init__(config)

    monkeypatch.setattr("rlhf.models.packed_attention.is_deepspeed_zero3_enabled", lambda: True)
    lm = Own(LlamaConfig(**WIDE | {"num_hidden_layers": 3}))
    assert "no short Own on which packed rows can be tried" in str(enable_packing(lm, CPU, torch.float32))
    assert lm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"softcap": 50.0}, {"s_aux": torch.ones(4)}])
def test_what_the_kernel_cannot_do_is_an_error(option, packed_on_cpu):
    x = torch.randn(1, 4, sum(LENGTHS), 8)
    with pytest.raises(RuntimeError, match="more than varlen_attn"):
        packed_attention(torch.nn.Module(), x, x, x, **attention_arguments(LENGTHS, LENGTHS, CPU), **option)


def test_packed_rows_need_a_gpu_and_16_bits():
    assert "need a GPU and 16 bits" in str(enable_packing(model(CONFIGS["llama"]), CPU, torch.bfloat16))
    assert "need a GPU and 16 bits" in str(kernel_obstacle(torch.device("cuda"), torch.float32))


def wrong_window(*args, window_size, **kwargs):
    return reference_varlen(*args, window_size=(-1, 0), **kwargs)


def wrong_gradient(q, k, v, *args, **kwargs):
    return reference_varlen(q, k.detach() + (k - k.detach()) / 2, v, *args, **kwargs)


def no_gradient(q, k, *args, **kwargs):
    return reference_varlen(q, k.detach(), *args, **kwargs)


def no_kernel(*args, **kwargs):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [(wrong_window, "is wrong"), (wrong_gradient, "is wrong"), (no_gradient, "is wrong"), (no_kernel, "Ampere")],
)
def test_rows_are_padded_where_the_kernel_is_wrong_or_missing(kernel, reason, packed_on_cpu, monkeypatch):
    cpu = torch.device("cpu")
    with torch.no_grad():  # as in a rollout
        assert kernel_fault(cpu, torch.float32) is None
    monkeypatch.setattr("rlhf.models.packed_attention.varlen_attn", kernel)
    assert reason in str(kernel_fault(cpu, torch.float32))
    assert reason in str(enable_packing(AutoModelForCausalLM.from_config(CONFIGS["llama"]), cpu, torch.float32))


def test_a_layer_without_the_lengths_fails(packed_on_cpu):
    lm = model(CONFIGS["llama"])
    assert enable_packing(lm, CPU, torch.float32) is None
    inputs = packed_row(LENGTHS, CPU) | {"input_ids": torch.ones(1, sum(LENGTHS), dtype=torch.long)}
    del inputs["cu_seq_lens_q"]
    with pytest.raises(RuntimeError, match="size"):
        lm(**inputs, use_cache=False)


def test_the_attention_can_be_compiled(packed_on_cpu):
    class Layer(torch.nn.Module):
        num_key_value_groups = 2

        def forward(self, q, k, v, **arguments):
            return packed_attention(self, q, k, v, **arguments)[0]

    q, k = torch.randn(2, 4, sum(LENGTHS), 8), torch.randn(2, 2, sum(LENGTHS), 8)
    arguments = attention_arguments(2 * LENGTHS, 2 * LENGTHS, CPU) | {"scaling": 1.0, "sliding_window": WINDOW}
    compiled = torch.compile(Layer(), backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(q, k, k, **arguments), Layer()(q, k, k, **arguments))


def test_the_name_is_not_saved(tmp_path, packed_on_cpu):
    lm = model(CONFIGS["llama"])
    assert enable_packing(lm, CPU, torch.float32) is None
    lm.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", CONFIGS)
def test_in_16_bits_on_a_cpu_attention_is_in_float32(name):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[name])  # other tests give the shared one another attention
    lm = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(1, 64, (3, 12))
    mask = (torch.arange(12) >= torch.tensor([[0], [3], [7]])).long()  # padding on the left
    right = lm(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert enable_packing(lm, CPU, torch.bfloat16)
    assert lm.config.get_text_config()._attn_implementation == NAME
    torch.testing.assert_close(lm(input_ids=ids, attention_mask=mask).logits[mask.bool()], right)
    seen = []
    with torch.autocast("cpu", torch.bfloat16), AttentionDtypes(seen):
        logits = lm(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert set(seen) == {torch.float32}
    assert (logits - right).norm() / right.norm() < 0.03
    logits.float().sum().backward()


class AttentionDtypes(TorchFunctionMode):
    """Context that collects the dtypes of the queries of sdpa."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.seen.append(args[0].dtype)
        return function(*args, **(kwargs or {}))
