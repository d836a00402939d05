"""Compiled layers compute what eager layers do, in one graph for all layers, roles and passes; a failure is no end.

Backend `aot_eager` takes the graphs that inductor would get and runs them with eager kernels, which costs seconds.
"""

import logging
from functools import partial

import pytest
import test_reward_trainer
import test_sft
import torch
import torch._dynamo
from architectures import architecture
from peft import LoraConfig
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from toys import EOS, PAD, logged, ppo_config, save_toy, separate, shared_base, trainer

from rlhf.models import compiled_layers
from rlhf.models.compiled_layers import compile_layers, compiler_obstacle, decoder_layers
from rlhf.models.loading import load_tokenizer
from rlhf.models.lora_targets import linear_layers
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.layouts import SharedActorCritic
from rlhf.ppo.rollout import micro_batch
from rlhf.sft.trainer import SFTTrainer

ROLES = ("policy", "value")
IDS = torch.tensor([[5, 17, 60, 101, 33, 9], [88, 41, 7, 12, 200, 63]])


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def a_new_compiler_without_kernels(monkeypatch):
    """Compiles passes of any length by `aot_eager`."""
    monkeypatch.setattr(compiled_layers, "MIN_TOKENS", 1)
    monkeypatch.setattr(compiled_layers, "compile_layers", partial(compile_layers, backend="aot_eager"))
    monkeypatch.setattr(compiled_layers, "compiler_obstacle", lambda device: None)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def base_of(kind: str) -> SharedBase:
    """Returns a base with adapters on all linear layers; policy equals sft, and value equals reward."""
    base = SharedBase(architecture(kind))
    config = LoraConfig(r=4, target_modules=list(linear_layers(base.lm)), init_lora_weights=False)
    base.add_adapter("sft", lora_config=config)
    base.add_adapter("reward", lora_config=config, head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    SharedActorCritic(base)  # removes dropout
    return base.train()


def gradients(base: SharedBase, hidden: torch.Tensor) -> tuple:
    heads = {id(p) for p in base.heads.parameters()}
    parameters = [p for role in ROLES for p in base.trainable_parameters(role) if id(p) not in heads]
    return torch.autograd.grad(hidden.square().sum(), parameters)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_hidden_states_and_gradients_are_those_of_eager_layers(kind):
    base = base_of(kind)
    names, eager = sorted(base.state_dict()), base.hidden_states(ROLES, IDS)
    compile_layers(base.lm, "aot_eager")
    base.compiled = True
    compiled = base.hidden_states(ROLES, IDS)
    assert graphs() > 0 and sorted(base.state_dict()) == names
    torch.testing.assert_close(compiled, eager, atol=1e-4, rtol=1e-4)
    kept = gradients(base, compiled)
    for a, b in zip(kept, gradients(base, eager), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3 * b.abs().max().item(), rtol=1e-3)
    base.gradient_checkpointing_enable()
    recomputed = base.hidden_states(ROLES, IDS)
    assert torch.equal(recomputed, compiled)
    assert all(map(torch.equal, gradients(base, recomputed), kept))


def test_all_layers_roles_and_shapes_share_one_graph_with_and_without_gradients():
    base = base_of("llama")
    compile_layers(base.lm, "aot_eager")
    base.compiled = True
    for rows in (IDS, torch.cat([IDS, IDS.flip(1)])[:3, :5], IDS[:, :3]):
        trained = base.hidden_states(ROLES, rows)
        with torch.no_grad():
            scored, reference = base.hidden_states(ROLES, rows), base.hidden_states(("sft", "reward"), rows)
        assert trained.requires_grad and not scored.requires_grad and not reference.requires_grad
        assert torch.equal(trained, scored) and torch.equal(scored, reference)
    assert graphs() == 1


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_passes_of_ppo_are_those_of_eager_layers_fused_and_separate(ensemble):
    results = []
    for compiled in (False, True):
        base = shared_base()
        if ensemble:  # no two roles in one pass
            base.add_adapter("reward_2", copy_of="reward", head=True)
            base.add_ensemble("reward", ["reward", "reward_2"], "mean")
        model = SharedActorCritic(base)
        if compiled:
            compile_layers(base.lm, "aot_eager")
            base.compiled = True
        prompts, responses = [[9, 8, 7], [5] * 6, [4]], [[3, 2, EOS], [6], [7, 7, 7, 7, EOS]]
        batch = micro_batch([0, 1, 2], prompts, responses, [EOS], PAD, torch.device("cpu"))
        trained = model("policy_and_value", **batch.inputs())
        seen = graphs()
        with torch.no_grad():
            scored = model("policy_and_value", **batch.inputs())
            reference = model("reference_and_reward", **batch.inputs())
        assert graphs() == seen and seen in ((1, 2) if compiled else (0,))  # torch has another graph for one row
        assert all(map(torch.equal, trained, scored)) and torch.equal(scored[0], reference[0])
        results.append([*trained, *reference])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# docs/trl-faults.md, faults 9 and 10
@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"bf16": True}])
def test_fault_09_10_at_lr_0_the_ratio_is_1_and_the_kl_is_0_with_compiled_layers(tmp_path, changes):
    args = ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0, logging_steps=1, compile=True, **changes)
    ppo = trainer(args)
    ppo.train()
    assert graphs() in (1, 2)  # one row, several rows; sampling has none
    assert set(logged(ppo, "policy/approxkl") + logged(ppo, "policy/clipfrac") + logged(ppo, "objective/kl")) == {0.0}


def test_sft_and_reward_model_train_as_with_eager_layers(tmp_path):
    base = str(save_toy(tmp_path / "base"))
    for stage, kind in ((test_sft, {"cls": SFTTrainer}), (test_reward_trainer, {})):
        weights = []
        for choice in (None, True):
            torch.manual_seed(0)
            run = stage.trainer(base, load_tokenizer(base), tmp_path / "run", max_steps=3, compile=choice, **kind)
            run.train()
            assert bool(graphs()) == bool(choice)
            weights.append([p.detach().clone() for p in run.model.parameters() if p.requires_grad])
        for a, b in zip(*weights, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
        counters.clear()


def failing(graph, inputs):
    raise OSError("no compiler\nand a long trace")


@pytest.mark.parametrize("backend", [failing, aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=failing)])
def test_layers_that_do_not_compile_stay_eager_and_one_line_says_why(backend, caplog):
    base = base_of("llama")
    base.gradient_checkpointing_enable()
    eager = base.hidden_states(ROLES, IDS)
    expected = gradients(base, eager)
    compile_layers(base.lm, backend)
    with caplog.at_level(logging.WARNING, compiled_layers.__name__):
        again = base.hidden_states(ROLES, IDS)
        assert all(map(torch.equal, gradients(base, again), expected))
    assert torch.equal(again, eager)
    (line,) = (record.getMessage() for record in caplog.records)
    assert "layers are not compiled, because LlamaDecoderLayer failed" in line and "\n" not in line


def test_after_a_failure_backward_recomputes_layers_as_forward_ran_them(caplog):
    """The first layer has run compiled, so an eager recomputation would keep other tensors than backward expects."""
    base = base_of("llama")
    expected = base.hidden_states(ROLES, IDS)
    base.gradient_checkpointing_enable()
    compile_layers(base.lm, "aot_eager")
    norm = decoder_layers(base.lm)[1].input_layernorm
    norm.__class__ = type("Other", (type(norm),), {})  # asks for a graph of its own
    limit = torch._dynamo.config.patch(recompile_limit=1)  # which monkeypatch would delete
    with limit, caplog.at_level(logging.WARNING, compiled_layers.__name__):
        hidden = base.hidden_states(ROLES, IDS)
    assert graphs() == 1 and "LlamaDecoderLayer failed" in caplog.text
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-4)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(base, hidden))


@pytest.mark.parametrize(
    ("layout", "reason"), [(separate, "not plain LoRA adapters of one base"), (shared_base, "does not work here")]
)
def test_ppo_says_why_layers_stay_eager(tmp_path, layout, reason, monkeypatch, caplog):
    monkeypatch.setattr(compiled_layers, "compiler_obstacle", lambda device: "torch.compile does not work here: x")
    with caplog.at_level(logging.WARNING, compiled_layers.__name__):
        ppo = trainer(ppo_config(tmp_path, compile=True), layout())
    assert reason in caplog.text
    ppo.train()
    assert graphs() == 0


@pytest.mark.parametrize("choice", [None, False])
def test_layers_are_not_compiled_unless_asked(tmp_path, choice):
    trainer(ppo_config(tmp_path, compile=choice)).train()
    assert graphs() == 0


def test_a_compiler_that_is_missing_is_an_obstacle(monkeypatch):
    def missing(*args, **kwargs):
        raise RuntimeError("g++ not found\nset CXX")

    monkeypatch.setattr(torch, "compile", missing)
    assert compiler_obstacle(torch.device("cpu")) == "torch.compile does not work here: g++ not found"
