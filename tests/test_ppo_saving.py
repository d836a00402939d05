"""Files of a run: policies that plain PEFT and transformers load, and checkpoints to resume from."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from toys import causal, lora, ppo_config, prompts, separate, shared_base, trainer, word_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from rlhf.errors import InputError
from rlhf.models.reward_model import load_reward_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def base_folder(tmp_path):
    folder = tmp_path / "base"
    causal().save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_shared_base_is_saved_as_plain_adapters(tmp_path, base_folder):
    base = shared_base(AutoModelForCausalLM.from_pretrained(base_folder))
    ppo = trainer(ppo_config(tmp_path / "ppo", ema_decay=0.5), base)
    ppo.train()
    ppo.save_model()
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        raw = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base_folder), str(tmp_path / "ppo" / "raw")
        )
        with base.use("policy"):
            torch.testing.assert_close(raw(IDS).logits, base.lm(IDS).logits)
        averaged = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "ppo"))
        with ppo.ema.swapped_in(), base.use("policy"):
            torch.testing.assert_close(averaged(IDS).logits, base.lm(IDS).logits)
        assert not torch.equal(averaged(IDS).logits, raw(IDS).logits)
        value = load_reward_model(tmp_path / "ppo" / "value", ModelConfig(model_name_or_path=base_folder))
        torch.testing.assert_close(value(IDS).logits[0, 0], base.token_scores("value", IDS, mask)[0, -1])
    assert AutoTokenizer.from_pretrained(tmp_path / "ppo").pad_token == "<pad>"
    assert not list((tmp_path / "ppo").rglob("*.bin"))


# docs/trl-faults.md, fault 7
def test_fault_07_full_models_are_saved_with_their_own_configuration(tmp_path):
    layout = separate()
    own = layout["model"].generation_config
    own.update(eos_token_id=[1, 2], top_k=7, do_sample=True)
    config, generation = layout["model"].config.to_dict(), own.to_dict()
    ppo = trainer(ppo_config(tmp_path, ema_decay=None), layout)
    ppo.train()
    ppo.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    ignored = {"transformers_version", "architectures", "dtype", "_name_or_path"}
    for before, after in ((config, saved.config.to_dict()), (generation, saved.generation_config.to_dict())):
        assert {k: v for k, v in after.items() if k not in ignored} == {
            k: v for k, v in before.items() if k not in ignored
        }
    torch.testing.assert_close(saved(IDS).logits, ppo.actor_critic.policy(IDS).logits)
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    torch.testing.assert_close(value(IDS).logits, ppo.actor_critic.value(IDS).logits)


def test_peft_config_saves_an_adapter(tmp_path):
    ppo = trainer(ppo_config(tmp_path, ema_decay=None), separate() | {"ref_model": None, "peft_config": lora()})
    ppo.train()
    ppo.save_model()
    loaded = PeftModel.from_pretrained(causal(), str(tmp_path))
    torch.testing.assert_close(loaded(IDS).logits, ppo.actor_critic.policy(IDS).logits)


TEXT = prompts(30, seed=4).rename_column("prompt", "text")
LAYOUTS = {
    "shared": shared_base,
    "separate": separate,
    "peft": lambda: separate() | {"ref_model": None, "peft_config": lora(lora_dropout=0.3)},
}


def long_run(folder, layout, save_steps=1, **changes):
    """Returns a trainer of 8 steps in 2 rollouts, with every option that keeps a state."""
    args = ppo_config(
        folder, total_episodes=16, num_ppo_epochs=2, warmup_rollouts=3, lr_scheduler_type="linear", ema_decay=0.7,
        ptx_coef=2.0, ptx_length=9, ptx_examples_per_episode=1, num_sample_generations=2, logging_steps=1,
        save_strategy="steps", save_steps=save_steps, **changes,
    )  # fmt: skip
    text = [TEXT, TEXT.to_iterable_dataset()]
    return trainer(args, LAYOUTS[layout](), pretrain_dataset=text, eval_dataset=prompts(3))


def checkpoint(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "ppo_state.safetensors")


# docs/trl-faults.md, fault 18
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fault_18_n_steps_are_k_steps_and_the_rest_resumed(tmp_path, layout):
    """At every k, also in the middle of a rollout, and after other code has drawn random numbers."""
    long_run(tmp_path / "whole", layout).train()
    whole = checkpoint(tmp_path / "whole", 8)
    assert {name.split(".")[0] for name in whole} == {"model", "ema"}
    logs = json.loads((tmp_path / "whole" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    for k in range(1, 8):
        torch.manual_seed(k)
        resumed = long_run(tmp_path / f"from-{k}", layout, save_steps=8, eval_strategy="steps", eval_steps=3)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{k}"))
        assert resumed.state.global_step == 8
        ours = checkpoint(tmp_path / f"from-{k}", 8)
        assert ours.keys() == whole.keys()
        for name in ours:
            assert torch.equal(ours[name], whole[name]), f"{name}, resumed at {k}"
        states = [
            torch.load(folder / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
            for folder in (tmp_path / "whole", tmp_path / f"from-{k}")
        ]
        for number, state in states[0].items():
            for name, value in state.items():
                assert torch.equal(value, states[1][number][name]), f"{name} of the optimizer, resumed at {k}"
        assert resumed.pretraining.blocks == 32
        rows = [
            {n: v for n, v in row.items() if not n.startswith(("time/", "throughput/", "eps", "eval"))}
            for row in resumed.state.log_history
            if "loss" in row
        ]
        for row, expected in zip(rows, (row for row in logs if "loss" in row), strict=True):
            assert row.items() <= expected.items(), f"log, resumed at {k}"


def test_samples_read_as_if_the_run_had_never_stopped(tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 4}
    long_run(tmp_path, "shared", **changes).train()
    whole = (tmp_path / "samples.jsonl").read_text()
    assert {json.loads(line)["step"] for line in whole.splitlines()} == {0, 4, 8}
    for k in (3, 4):
        with (tmp_path / "samples.jsonl").open("a") as file:
            file.write('{"prompt": "cut sh')
        run = long_run(tmp_path, "shared", save_steps=8, **changes)
        run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{k}"))
        assert (tmp_path / "samples.jsonl").read_text() == whole
    long_run(tmp_path, "shared", save_steps=8, **changes).train()
    assert (tmp_path / "samples.jsonl").read_text() == whole


def test_resumed_with_other_options_is_refused(tmp_path):
    long_run(tmp_path, "shared").train()
    without = ppo_config(tmp_path, total_episodes=16, num_ppo_epochs=2, ema_decay=0.7)
    with pytest.raises(InputError, match="was trained with lr_scheduler_type linear, and this run has constant"):
        trainer(without).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    (tmp_path / "checkpoint-3" / "contract.json").unlink()  # as in a checkpoint of an old version
    with pytest.raises(InputError, match="was written with pretraining"):
        trainer(without).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    state = tmp_path / "checkpoint-3" / "ppo_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "processes": 2}))
    with pytest.raises(InputError, match="in the middle of a rollout of 2 processes, and there are 1"):
        long_run(tmp_path, "shared").train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_a_folder_without_state_is_refused(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
    (tmp_path / "checkpoint-4" / "optimizer.pt").touch()
    with pytest.raises(InputError, match=r"ppo_state\.safetensors is missing"):
        trainer(ppo_config(tmp_path)).train(resume_from_checkpoint=True)


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    args = ppo_config(
        tmp_path, total_episodes=24, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, metric_for_best_model="objective/kl", greater_is_better=False,
    )  # fmt: skip
    ppo = trainer(args, eval_dataset=prompts(4))
    ppo.train()
    kls = {row["step"]: row["eval_objective/kl"] for row in ppo.state.log_history if "eval_objective/kl" in row}
    best = min(kls, key=kls.get)
    assert ppo.state.best_global_step == best
    state = load_file(tmp_path / f"checkpoint-{best}" / "ppo_state.safetensors")
    for name, parameter in ppo.actor_critic.parameters_of("policy"):
        assert torch.equal(parameter, state[f"model.{name}"])
