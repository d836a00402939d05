"""What a run leaves on disk: policies that plain PEFT and transformers load, and checkpoints to go on from."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from ppo_toys import causal, lora, ppo_config, prompts, separate, shared_base, tokenizer, trainer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl import ModelConfig

from rlhf.adapters import SharedBase
from rlhf.errors import InputError
from rlhf.reward_model import load_reward_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture
def base_folder(tmp_path):
    folder = tmp_path / "base"
    causal().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def shared(folder):
    torch.manual_seed(0)
    base = SharedBase(AutoModelForCausalLM.from_pretrained(folder))
    base.add_adapter("sft", lora_config=lora(init_lora_weights=False))
    base.add_adapter("reward", lora_config=lora(init_lora_weights=False), head=True)
    base.add_adapter("policy", copy_of="sft", trainable=True)
    base.add_adapter("value", copy_of="reward", trainable=True, head=True)
    return base


def test_a_shared_base_is_saved_as_plain_adapters(tmp_path, base_folder):
    base = shared(base_folder)
    ppo = trainer(ppo_config(tmp_path / "ppo", ema_decay=0.5), base)
    ppo.train()
    ppo.save_model()
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        raw = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base_folder), str(tmp_path / "ppo" / "raw")
        )
        torch.testing.assert_close(raw(IDS).logits, base.logits("policy", IDS, mask))
        averaged = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "ppo"))
        with ppo.ema.applied():
            torch.testing.assert_close(averaged(IDS).logits, base.logits("policy", IDS, mask))
        assert not torch.equal(averaged(IDS).logits, raw(IDS).logits)
        value = load_reward_model(tmp_path / "ppo" / "value", ModelConfig(model_name_or_path=base_folder))
        torch.testing.assert_close(value(IDS).logits[0, 0], base.scalars("value", IDS, mask)[0, -1])
    assert AutoTokenizer.from_pretrained(tmp_path / "ppo").pad_token == "<pad>"
    assert not list((tmp_path / "ppo").rglob("*.bin"))


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


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


@pytest.mark.parametrize("layout", [shared_base, separate], ids=["shared", "separate"])
def test_fault_18_a_run_resumed_at_the_end_of_a_rollout_is_the_run(tmp_path, layout):
    changes = dict(total_episodes=32, num_ppo_epochs=2, save_strategy="steps", save_steps=4, warmup_rollouts=3)
    whole = trainer(ppo_config(tmp_path / "whole", **changes), layout())
    whole.train()
    trainer(ppo_config(tmp_path / "halves", **changes), layout(), callbacks=[StopAt(8)]).train()
    resumed = trainer(ppo_config(tmp_path / "halves", **changes), layout())
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 16
    ours, theirs = (
        load_file(tmp_path / run / "checkpoint-16" / "ppo_state.safetensors") for run in ("halves", "whole")
    )
    assert ours.keys() == theirs.keys()
    assert {name.split(".")[0] for name in ours} == {"model", "ema"}
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_a_folder_without_state_is_refused(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / "trainer_state.json").write_text(json.dumps({"global_step": 4}))
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
