"""Decoding and log-probabilities against transformers' `generate` and the logits of full sequences."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch.nn import functional as F
from toys import EOS, PAD, VOCAB, causal, classifier, shared_base
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM

import rlhf.generation.sampler as sampler
from rlhf.generation import decode_linears
from rlhf.generation.decode_linears import fast_decode_linears
from rlhf.generation.sampler import decode
from rlhf.models.logprobs import chunked_logprobs, find_unembedding, output_layer, token_logprobs, whole_head
from rlhf.ppo.layouts import SeparateActorCritic, SharedActorCritic
from rlhf.ppo.rollout import micro_batch
from rlhf.tensors import pad_left

CPU = torch.device("cpu")
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12], [EOS, 13, PAD, 14], [15, 16, 17], [18, 19]]


def tiny(model_class, config_class, **changes):
    sizes = dict(vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                 num_key_value_heads=1, head_dim=8, pad_token_id=PAD, eos_token_id=EOS)  # fmt: skip
    torch.manual_seed(0)
    model = model_class(config_class(**sizes, **changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    return model


MODELS = {
    "llama": causal,
    "gpt2": lambda: causal("gpt2"),
    "opt": lambda: causal("opt"),
    "sliding": lambda: tiny(MistralForCausalLM, MistralConfig, sliding_window=4),
    "softcap": lambda: tiny(Gemma2ForCausalLM, Gemma2Config, final_logit_softcapping=2.0, sliding_window=4),
}


@pytest.mark.parametrize("kind", MODELS)
def test_decode_gives_what_generate_gives(kind):
    lm, stops = MODELS[kind]().eval(), list(range(1, 9))  # many, so that rows finish at different times
    batch = dict(zip(("input_ids", "attention_mask"), pad_left(PROMPTS, PAD, CPU), strict=True))
    responses = decode(lm, **batch, choose=lambda logits, rows, step: logits.argmax(-1), stop_ids=stops, length=20)
    output = lm.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=stops, pad_token_id=PAD)
    for row, ids in zip(output[:, batch["input_ids"].shape[1] :].tolist(), responses, strict=True):
        assert ids == row[: len(ids)]
        assert len(ids) == 20 or ids[-1] in stops
        assert not set(ids[:-1]) & set(stops)


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("memory", [0, 2**34])
def test_fast_linears_give_the_same_logits(rows, dtype, autocast, memory, monkeypatch):
    monkeypatch.setattr("rlhf.generation.decode_linears.free_memory", lambda device: memory)
    torch.manual_seed(0)
    bits = dtype == torch.bfloat16 or autocast
    opt, shared = causal("opt").eval(), shared_base().eval()
    models = {"biases": (opt, nullcontext), "lora": (shared.lm, lambda: shared.use("policy"))}
    models |= {"no adapter": (shared.lm, nullcontext)}
    for name, (lm, using) in models.items():
        for linear in (module for module in lm.modules() if isinstance(module, torch.nn.Linear)):
            torch.nn.init.normal_(linear.weight, std=0.3)
        lm.to(dtype)
        ids = torch.randint(10, VOCAB, (rows, 1))
        with torch.no_grad(), using(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected, forwards = lm(ids).logits, [vars(module).get("forward") for module in lm.modules()]
            with fast_decode_linears(lm, rows):
                changed = [module for module in lm.modules() if "forward" in vars(module)]
                logits = lm(ids).logits
        if memory or not bits:
            assert changed, name
            assert (name == "lora") == any(isinstance(module, LoraLinear) for module in changed)
        else:
            assert not changed, name
        assert logits.dtype == expected.dtype
        error = (logits - expected).float().norm() / expected.float().norm()
        assert error < (0.03 if bits else 1e-5), (name, error)  # two roundings to 16 bits
        assert [vars(module).get("forward") for module in lm.modules()] == forwards


def test_layers_that_are_more_than_plain_lora_are_unchanged():
    base = causal()
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj"], use_dora=True)
    lm = get_peft_model(base, config).get_base_model()
    hooked = lm.model.layers[0].self_attn.v_proj
    hooked.forward = original = hooked.forward
    with fast_decode_linears(lm, 8), fast_decode_linears(lm, 8):  # the inner context changes nothing
        changed = [type(module) for module in lm.modules() if "forward" in vars(module)]
        assert LoraLinear not in changed
        assert hooked.forward is original
    assert layers_changed_in(causal().half()) == []


@pytest.mark.parametrize("fault", ["missing", "refused", "wrong"])
def test_weights_are_not_packed_where_the_kernel_is_missing_or_wrong(fault, monkeypatch):
    def refused(*args):
        raise RuntimeError("mkldnn_bf16 path needs the cpu support avx512bw")

    kernels = {
        "missing": SimpleNamespace(),
        "refused": SimpleNamespace(_reorder_linear_weight=lambda weight: weight, _linear_pointwise=refused),
        "wrong": SimpleNamespace(
            _reorder_linear_weight=lambda weight: weight, _linear_pointwise=lambda x, weight, *_: x @ weight.T
        ),
    }
    monkeypatch.setattr(torch.ops, "mkldnn", kernels[fault])
    decode_linears.packs_correctly.cache_clear()
    try:
        assert not decode_linears.packs_correctly(torch.float32)
        assert layers_changed_in(causal().bfloat16()) == []
        assert layers_changed_in(causal())  # by columns
    finally:
        decode_linears.packs_correctly.cache_clear()


def layers_changed_in(lm):
    with fast_decode_linears(lm, 8):
        return [module for module in lm.modules() if "forward" in vars(module)]


def test_finished_rows_leave_the_batch_and_the_others_keep_their_order():
    lm, sizes = causal().eval(), []
    lengths = torch.tensor([3, 9, 1, 9, 2, 6])

    def choose(logits, rows, step):
        sizes.append(len(logits))
        assert len(rows) == len(logits)
        return torch.where(lengths[rows] == step + 1, EOS, 10 + rows)

    responses = decode(lm, *pad_left(PROMPTS, PAD, CPU), choose=choose, stop_ids=[EOS], length=20)
    assert responses == [[10 + i] * (n - 1) + [EOS] for i, n in enumerate(lengths.tolist())]
    assert sizes == [6, 6, 4, 3, 3, 3, 2, 2, 2]  # at least a quarter of the rows leaves at a time


def test_processes_that_share_weights_make_equally_many_passes(monkeypatch):
    lm, passes = causal().eval(), []
    monkeypatch.setattr(sampler, "is_sharded", lambda module: True)

    def choose(logits, rows, step):
        passes.append(step)
        return torch.full_like(rows, EOS)

    assert decode(lm, *pad_left(PROMPTS, PAD, CPU), choose=choose, stop_ids=[EOS], length=7) == [[EOS]] * 6
    assert passes == list(range(7))


# ---- Log-probabilities


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_chunks_change_neither_values_nor_gradients(size, monkeypatch):
    monkeypatch.setattr("rlhf.models.logprobs.LOGITS", size * VOCAB)
    torch.manual_seed(0)
    head = torch.nn.Linear(16, VOCAB)
    ids, weights = torch.randint(VOCAB, (7,)), torch.randn(7)
    results = []
    for chunked in (False, True):
        hidden = torch.randn(7, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        if chunked:
            logprobs = chunked_logprobs(head, hidden, ids, 0.7, VOCAB)
        else:
            logprobs = torch.log_softmax(head(hidden) / 0.7, -1).gather(1, ids[:, None]).squeeze(1)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), hidden.grad, head.weight.grad.clone(), head.bias.grad.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_no_more_logits_than_allowed_are_kept_for_backward(monkeypatch):
    monkeypatch.setattr("rlhf.models.logprobs.LOGITS", 4 * VOCAB)
    head, hidden, ids = torch.nn.Linear(16, VOCAB), torch.randn(40, 16, requires_grad=True), torch.zeros(40).long()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        chunked_logprobs(head, hidden, ids, 1.0, VOCAB)
    assert max(saved, default=0) <= max(4 * VOCAB, head.weight.numel())


@pytest.mark.parametrize("kind", MODELS)
def test_logprobs_of_responses_are_those_of_the_models_own_logits(kind):
    lm = MODELS[kind]()
    model = SeparateActorCritic(lm, classifier(), causal())
    responses = [[20, 21, EOS], [22], [23, 24], [25, 26, 27, 28], [29], [30, EOS]]
    batch = micro_batch(list(range(6)), PROMPTS, responses, [EOS], PAD, CPU)
    with torch.no_grad():
        logprobs = model("policy_logprobs", temperature=0.7, **batch.inputs())
        for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
            logits = lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            expected = F.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
            torch.testing.assert_close(logprobs[i, : len(response)], expected, atol=2e-5, rtol=1e-5)
            assert not logprobs[i, len(response) :].any()
    assert find_unembedding(lm, batch.input_ids) is (whole_head if kind == "softcap" else output_layer)


def test_backward_unembeds_with_the_adapter_of_the_forward(monkeypatch):
    """The unembedding itself may have an adapter, and another one may be active during backward."""
    gradients = []
    for logits in (2**24, 2 * VOCAB):
        monkeypatch.setattr("rlhf.models.logprobs.LOGITS", logits)
        base = shared_base()
        model = SharedActorCritic(base)
        head = model.base.lm.get_output_embeddings()
        scale = {"policy": 2.0, "sft": 1.0, None: 5.0}
        head.forward = lambda x, plain=head.forward, base=base, scale=scale: plain(x) * scale[base._active]
        batch = micro_batch([0, 1, 2], PROMPTS, [[20, 21, EOS], [22], [23, 24]], [EOS], PAD, CPU)
        model._unembedding = [output_layer]
        logprobs = model("policy_logprobs", **batch.inputs())
        model("reference_logprobs", **batch.inputs())
        logprobs.sum().backward()
        gradients.append([p.grad for _, p in model.parameters_of("policy")])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert any(gradient.any() for gradient in gradients[0])


def test_temperature_and_dtype_of_token_logprobs():
    logits, ids = torch.randn(5, VOCAB).bfloat16(), torch.arange(5)
    logprobs = token_logprobs(logits, ids, 2.0)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, torch.log_softmax(logits.float() / 2, -1)[ids, ids])
