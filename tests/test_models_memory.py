"""The formulas of rlhf/models/memory.py against the tensors that PyTorch makes, and the tables of docs/scale.md."""

import itertools
import runpy
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rlhf.errors import InputError
from rlhf.generation.sampler import preallocated_cache
from rlhf.models import memory
from rlhf.models.model_sizes import Layout, Shape, shape_of
from rlhf.models.shared_base import SharedBase
from rlhf.reward.prefix import enable_shared_prompts, share_prompts

ROOT = Path(__file__).resolve().parent.parent
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(vocab_size=64, hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=8,
             num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
RANK, ROWS, TOKENS = 8, 4, 96
ids = torch.randint(0, 64, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def model(qk_norm: bool = False, dtype: str = "bfloat16") -> LlamaForCausalLM | Qwen3ForCausalLM:
    made = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)) if qk_norm else LlamaForCausalLM(LlamaConfig(**SIZES))
    return made.to(getattr(torch, dtype))


def lora() -> LoraConfig:
    return LoraConfig(r=RANK, target_modules=LINEAR, task_type="CAUSAL_LM", init_lora_weights=False)


def saved_bytes(module: torch.nn.Module, forward, autocast: bool) -> int:
    """Returns the bytes of the tensors that `forward` keeps for backward, without those of weights and buffers."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def layer_bytes(shape: Shape, layout: Layout, rows: int, masked: bool, batched: bool = False) -> int:
    attention = memory.attention_bytes(shape, layout, rows, TOKENS, TOKENS, masked)
    return attention + rows * TOKENS * memory.token_bytes(shape, layout, batched)


@pytest.mark.parametrize(
    ("dtype", "autocast", "masked", "qk_norm"),
    [*itertools.product(("float32", "bfloat16"), (False, True), (False, True), (False,)),
     ("bfloat16", True, False, True)],
)  # fmt: skip
def test_activations_of_one_adapter(dtype, autocast, masked, qk_norm):
    causal = model(qk_norm, dtype)
    shape, layout = shape_of(causal.config), Layout(dtype, autocast=autocast, checkpointing=False, rank=RANK)
    peft = get_peft_model(causal, lora()).train()
    mask = None
    if masked:
        mask = torch.ones_like(ids)
        mask[0, -5:] = 0
    body = peft.base_model.model.model
    saved = saved_bytes(peft, lambda: body(input_ids=ids, attention_mask=mask, use_cache=False), autocast)
    formula = memory.forward_bytes(shape, layout, ROWS * TOKENS, layer_bytes(shape, layout, ROWS, masked))
    assert formula["activations"] == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize(
    ("form", "dtype", "autocast"),
    [*itertools.product(("llama", "gpt2", "gpt_neox"), ("float32", "bfloat16"), (False,)), ("llama", "bfloat16", True)],
)  # not GPT's under autocast, which on a CPU keeps other operations in bfloat16 than on a GPU
@pytest.mark.parametrize("dropout", [False, True])
def test_activations_of_other_forms_and_of_dropout(form, dtype, autocast, dropout):
    causal = gpt(form, 0.1 * dropout).to(getattr(torch, dtype)) if form != "llama" else model(dtype=dtype)
    layout = Layout(dtype, autocast=autocast, checkpointing=False, rank=RANK, dropout=4 * dropout)
    config = LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1 * dropout)
    peft, shape = get_peft_model(causal, config).train(), shape_of(causal.config)
    body = getattr(causal, causal.base_model_prefix)
    saved = saved_bytes(peft, lambda: body(input_ids=ids, use_cache=False), autocast)
    formula = memory.forward_bytes(shape, layout, ROWS * TOKENS, layer_bytes(shape, layout, ROWS, masked=False))
    # The first layer's input needs no gradient, so its dropout keeps no mask for what reads it.
    masks = dropout * 4 * shape.hidden * ROWS * TOKENS * (1 if shape.gpt else 3)
    assert formula["activations"] - masks == pytest.approx(saved, rel=0.06)
    adapters = sum(p.numel() for n, p in peft.named_parameters() if "lora_" in n)
    assert memory.adapter_weights(shape, RANK) == adapters
    assert shape.parameters == sum(p.numel() for p in causal.parameters()) - adapters


def gpt(form: str, dropout: float) -> GPT2LMHeadModel | GPTNeoXForCausalLM:
    if form == "gpt2":
        none = dict(attn_pdrop=0.0, embd_pdrop=0.0)
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=64, n_embd=256, n_layer=3, n_head=8, n_positions=TOKENS, resid_pdrop=dropout, **none)
        )
    sizes = SIZES | dict(tie_word_embeddings=False)
    del sizes["num_key_value_heads"]
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, hidden_dropout=dropout))


@pytest.mark.parametrize(("dtype", "autocast"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
@pytest.mark.parametrize("checkpointing", [0, 1, 2])  # of no layer, of all, of each second
def test_activations_of_two_adapters_in_one_pass(dtype, autocast, checkpointing):
    base = SharedBase(model(dtype=dtype))
    shape, layout = shape_of(base.config), Layout(dtype, "ddp", 1, autocast, checkpointing, RANK)
    for name in ("policy", "value"):
        base.add_adapter(name, lora_config=lora(), trainable=True)
    base.train()
    if checkpointing:
        base.gradient_checkpointing_enable(every_n_layers=checkpointing)
    saved = saved_bytes(base, lambda: base.hidden_states(("policy", "value"), ids), autocast)
    layer = layer_bytes(shape, layout, 2 * ROWS, masked=False, batched=True)
    formula = memory.forward_bytes(shape, layout, 2 * ROWS * TOKENS, layer)
    # Without checkpointing, the first norm, which needs no gradient, makes up for the last one.
    last_norm = 4 * shape.hidden * 2 * ROWS * TOKENS if checkpointing else 0
    assert formula["activations"] + last_norm == pytest.approx(saved, rel=0.04)


def test_activations_of_completions_that_share_a_prompt():
    causal = model()
    shape, layout = shape_of(causal.config), Layout(checkpointing=False, rank=RANK).on("cpu")
    peft = get_peft_model(causal, lora()).train()
    body = peft.base_model.model.model
    assert enable_shared_prompts(causal, None) is None
    k, half = 4, TOKENS // 2
    rows = torch.randint(0, 64, (2 * k, TOKENS))
    sizes = torch.tensor([k, k])
    batch = share_prompts(rows, torch.full((2 * k,), TOKENS - 1), torch.tensor([half, half]), sizes)
    batch.pop("last_token")
    saved = saved_bytes(peft, lambda: body(**batch, use_cache=False).last_hidden_state, autocast=True)
    found = memory.reward_memory(shape, layout, 2, k, half, half, per_forward=2 * k)
    assert found.phases["loss"]["activations"] == pytest.approx(saved, rel=0.05)


def test_weights_are_those_of_the_models():
    for qk_norm in (False, True):
        causal = model(qk_norm)
        shape = shape_of(causal.config)
        assert shape.parameters == sum(p.numel() for p in causal.parameters())
        assert memory.base_bytes(shape, "bfloat16") == 2 * shape.parameters
    base = SharedBase(model())
    base.add_adapter("sft", lora_config=lora())
    base.add_adapter("reward", lora_config=lora(), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    shape = shape_of(base.config)
    ppo = memory.ppo_memory(shape, Layout(rank=RANK), 1, 8, 8, 1)
    trained = sum(p.numel() for p in base.parameters() if p.requires_grad)
    own = sum(p.nbytes for n, p in base.named_parameters() if "lora_" in n or "heads" in n)
    assert ppo.resident["adapters"] == own
    assert ppo.resident["gradients"] == 4 * trained and ppo.resident["optimizer"] == 8 * trained


@pytest.mark.parametrize("nested", [False, True])
def test_bytes_of_a_weight_in_4_bits(nested):
    weight = torch.randn(512, 2048)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    size = packed.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if nested else 0)
    assert size == pytest.approx(memory.LINEAR_BYTES["nf4-nested" if nested else "nf4"] * weight.numel(), rel=1e-3)


def test_cache_of_a_rollout():
    causal = model()
    shape = shape_of(causal.config)
    cache = preallocated_cache(causal, TOKENS)
    with torch.no_grad():
        causal(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    size = sum(buffer.nbytes for layer in cache.layers for buffer in layer.buffers)
    assert memory.ppo_memory(shape, Layout(), 1, TOKENS // 2, TOKENS // 2, ROWS).phases["rollout"]["cache"] == size


def test_sharding_divides_what_it_shards():
    shape = Shape(4, 256, 704, 8, 2, 32, 512)
    alone = memory.sft_memory(shape, Layout(), 1, 128)
    for sharding in ("fsdp", "zero3"):
        eight = memory.sft_memory(shape, Layout(sharding=sharding, processes=8), 1, 128)
        for name in ("base", "gradients", "optimizer"):
            assert eight.resident[name] == alone.resident[name] // 8
        assert eight.resident["gathered"] > 0
    two = memory.sft_memory(shape, Layout(processes=2), 1, 128)
    assert two.resident == alone.resident | {"gradients": 2 * alone.resident["gradients"]}
    with pytest.raises(InputError, match="4-bit base is not sharded"):
        memory.sft_memory(shape, Layout("nf4", "fsdp", 8), 1, 128)


def test_more_of_anything_takes_more_memory():
    shape = Shape(4, 256, 704, 8, 2, 32, 512)

    def peak(layout: Layout | None = None, **changes) -> int:
        sizes = dict(rows=4, prompt=64, response=64, slots=16) | changes
        return memory.ppo_memory(shape, layout or Layout(), **sizes).peak

    for change in ({"rows": 64}, {"prompt": 512}, {"response": 512}, {"slots": 640}, {"rewards": 3}, {"text": 2048}):
        assert peak(**change) > peak()
    assert peak(Layout(checkpointing=False), rows=64) > peak(rows=64)
    assert peak(Layout(rank=64)) > peak()
    assert peak(Layout("float32")) > peak() > peak(Layout("nf4")) > peak(Layout("nf4-nested"))


def test_other_architectures_are_refused():
    with pytest.raises(InputError, match="opt is not known"):
        shape_of(OPTConfig())


def test_the_page_has_the_tables_of_the_formulas():
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for table in runpy.run_path(str(ROOT / "benchmarks" / "scale_tables.py"))["tables"]():
        assert table in page, f"docs/scale.md lacks:\n{table}"
    models = runpy.run_path(str(ROOT / "benchmarks" / "scale_tables.py"))["MODELS"]
    published = [
        134_515_008,
        1_235_814_400,
        3_212_749_824,
        8_030_261_248,
        14_768_307_200,
        32_762_123_264,
        70_553_706_496,
    ]
    assert [shape.parameters for shape in models.values()] == published
