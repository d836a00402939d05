"""The formulas of rlhf/models/flops.py against the products that PyTorch computes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlhf.models.flops import causal_pairs, decode_bytes, forward_flops, model_flops, training_flops
from rlhf.models.memory import adapter_weights
from rlhf.models.model_sizes import shape_of

SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=3, n_head=4, n_positions=64)),
}
RANK, ROWS, TOKENS = 4, 2, 24
ids = torch.randint(0, 96, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def counted(work) -> int:
    """Returns the FLOPs of the products in `work`; attention is computed eagerly, so pairs that are masked count."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_training_of_adapters_on_a_frozen_base(name, checkpointing):
    lm = MODELS[name]()
    lm.set_attn_implementation("eager")
    shape = shape_of(lm.config)
    model = get_peft_model(lm, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))
    sizes = dict(tokens=ROWS * TOKENS, logits=ROWS * TOKENS, pairs=ROWS * TOKENS**2, rank=RANK)
    with torch.no_grad():
        rotary = counted(lambda: model(ids, use_cache=False)) - sum(forward_flops(shape, **sizes).values())
    assert 0 <= rotary < 1000  # the product that gives the angles of rotary embeddings
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    found = counted(lambda: model.train()(ids, use_cache=False).logits.sum().backward())
    expected = sum(training_flops(shape, **sizes, checkpointing=checkpointing).values())
    if not checkpointing:  # the first layer's input needs no gradient
        factors = RANK * (1 if shape.gpt else 3)
        expected -= 2 * ROWS * TOKENS * shape.hidden * (shape.queries + 2 * shape.keys + factors)
    assert found == pytest.approx(expected, rel=0.01)


def test_model_flops_are_those_of_the_base_once():
    shape = shape_of(LlamaConfig(**SIZES))
    flops = training_flops(shape, 100, 40, causal_pairs([50, 50]), RANK)
    assert model_flops(shape, 100, 40) == flops["linear"] + flops["unembedding"]
    again = training_flops(shape, 100, 40, causal_pairs([50, 50]), RANK, checkpointing=True, logits_twice=True)
    assert again["linear"] / flops["linear"] == again["unembedding"] / flops["unembedding"] == 1.5
    assert causal_pairs([3, 1]) == 7


def test_a_step_of_decoding_reads_the_weights_once_and_the_cache_of_each_row():
    shape = shape_of(LlamaConfig(**SIZES))
    alone, many = (decode_bytes(shape, 1000, rows, 10, 2, repeated=False) for rows in (1, 5))
    assert many - alone == 4 * 10 * shape.layers * 2 * shape.keys * 2
    assert decode_bytes(shape, 1000, 1, 10, 2) - alone == 10 * shape.layers * 4 * shape.queries * 2
    assert adapter_weights(shape, 0) == 0
