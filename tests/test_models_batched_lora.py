"""Adapters in one pass compute what each computes alone, in forward and backward."""

import pytest
import torch
from test_models_shared_base import INPUT_IDS, LORA, add, make_shared
from toys import BPE_MODELS, EOS, PAD, save_toy, shared_base
from trl import ModelConfig

from rlhf.models.loading import load_base, load_tokenizer, lora_config
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.layouts import SharedActorCritic
from rlhf.ppo.rollout import micro_batch

ROLES = ("policy", "value")


def alone(shared, name):
    with shared.use(name):
        return getattr(shared.lm, shared.lm.base_model_prefix)(INPUT_IDS, use_cache=False).last_hidden_state


@pytest.mark.parametrize("kind", BPE_MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_hidden_states_and_gradients_are_those_of_separate_passes(tmp_path, kind, checkpointing):
    folder = str(save_toy(tmp_path / "base", kind))
    shared = make_shared(load_base(ModelConfig(model_name_or_path=folder), load_tokenizer(folder)))
    if checkpointing:
        shared.gradient_checkpointing_enable()
        shared.train()
    assert shared.can_batch(*ROLES)
    heads = {id(p) for p in shared.heads.parameters()}
    parameters = [p for name in ROLES for p in shared.trainable_parameters(name) if id(p) not in heads]

    def gradients(hidden):
        loss = hidden[0].square().sum() + hidden[1].sin().sum()
        return torch.autograd.grad(loss, parameters)  # outside of `use`

    together = shared.hidden_states(ROLES, INPUT_IDS)
    apart = torch.stack([alone(shared, name) for name in ROLES])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    for a, b in zip(gradients(together), gradients(apart), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert torch.equal(alone(shared, "sft"), alone(shared, "sft"))  # the layers are restored


def test_each_adapter_keeps_its_own_scale(toy_folder, toy_tokenizer):
    shared = SharedBase(load_base(ModelConfig(model_name_or_path=toy_folder), toy_tokenizer))
    for name, alpha in (("policy", 4), ("value", 64)):
        config = lora_config(LORA)
        config.lora_alpha, config.init_lora_weights = alpha, False
        shared.add_adapter(name, lora_config=config)
    together = shared.hidden_states(ROLES, INPUT_IDS)
    torch.testing.assert_close(together, torch.stack([alone(shared, name) for name in ROLES]), atol=1e-4, rtol=1e-4)


def test_only_plain_lora_can_be_batched(toy_folder, toy_tokenizer):
    def with_other(**changes):
        shared = SharedBase(load_base(ModelConfig(model_name_or_path=toy_folder), toy_tokenizer))
        add(shared, "policy", 0)
        config = lora_config(LORA)
        for name, value in changes.items():
            setattr(config, name, value)
        shared.add_adapter("value", lora_config=config)
        return shared.can_batch(*ROLES)

    assert with_other()
    assert with_other(lora_alpha=1)  # another scale
    assert not with_other(r=2)
    assert not with_other(target_modules=["q_proj"])
    assert not with_other(use_dora=True)
    assert not with_other(lora_bias=True)
    assert not with_other(modules_to_save=["embed_tokens"])
    assert not with_other(lora_dropout=0.1)


def test_adapters_with_different_scales_in_one_layer(toy_base):
    shared = make_shared(toy_base)
    for layer in shared._layers:
        layer.scaling["value"] = 0.25
    apart = torch.stack([alone(shared, name) for name in ROLES])
    torch.testing.assert_close(shared.hidden_states(ROLES, INPUT_IDS), apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_base_in_half_precision_keeps_its_dtype(toy_folder, autocast):
    model_args = ModelConfig(model_name_or_path=toy_folder, dtype="bfloat16")
    shared = make_shared(load_base(model_args, load_tokenizer(toy_folder)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        together, apart = shared.hidden_states(ROLES, INPUT_IDS), [alone(shared, name) for name in ROLES]
    assert together.dtype == apart[0].dtype
    torch.testing.assert_close(together, torch.stack(apart), atol=0.05, rtol=0.05)


def test_both_passes_of_ppo_are_the_same_fused_and_separate():
    model = SharedActorCritic(shared_base())
    prompts, responses = [[9, 8, 7], [5] * 6, [4]], [[3, 2, EOS], [6], [7, 7, 7, 7, EOS]]
    batch = micro_batch([0, 1, 2], prompts, responses, [EOS], PAD, torch.device("cpu"))
    with torch.no_grad():
        for task in ("policy_and_value", "reference_and_reward"):
            together = model(task, **batch.inputs())
            assert model._can_fuse
            model._can_fuse = False
            apart = model(task, **batch.inputs())
            model._can_fuse = None
            for a, b in zip(together, apart, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ensemble", [False, True])
def test_all_passes_of_ppo_are_the_same_padded_and_packed(ensemble, packed_on_cpu):
    base = shared_base()
    if ensemble:  # no two roles in one pass
        base.add_adapter("reward_2", copy_of="reward", head=True)
        base.add_ensemble("reward", ["reward", "reward_2"], "mean")
    model = SharedActorCritic(base)
    prompts, responses = [[9, 8, 7], [5] * 6, [4], [8, 8]], [[3, 2, EOS], [6], [7, 7, 7, 7, EOS], [5, EOS]]
    batch = micro_batch([0, 1, 2, 3], prompts, responses, [EOS], PAD, torch.device("cpu"))
    parameters = [parameter for role in ROLES for parameter in base.trainable_parameters(role)]
    results = []
    for most in (10**6, 20):  # tokens of a pass: one, or several
        for packed in (True, False):
            model.reset_caches()
            model.bucketed(*batch.inputs().values(), copies=1)  # finds the limits
            model._packed, model._limits = packed, (most, 4)
            outputs = [*model("policy_and_value", **batch.inputs()), *model("reference_and_reward", **batch.inputs())]
            gradients = torch.autograd.grad(outputs[0].square().sum() + outputs[1].sin().sum(), parameters)
            results.append([*outputs, *gradients])
    for found in results[1:]:
        for a, b in zip(found, results[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_an_ensemble_as_reward_separates_all_passes():
    """Otherwise policy and reference pass would differ in shape, and the KL of equal weights would be 1e-7, not 0."""
    base = shared_base()
    base.add_adapter("reward_2", copy_of="reward", head=True)
    base.add_ensemble("reward", ["reward", "reward_2"], "mean")
    assert not SharedActorCritic(base).can_fuse(INPUT_IDS)
    assert SharedActorCritic(shared_base()).can_fuse(INPUT_IDS)
