"""PPO under FSDP2 and DeepSpeed ZeRO-3 gives the weights of one device, resumed or not, and saves full tensors.

One process suffices for mistakes in Python: parameters are DTensors under FSDP, and empty between the passes under
ZeRO-3. Each process of a launch runs `python tests/test_gpu_sharded.py FOLDER`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from toys import causal, classifier, lora, ppo_config, prompts, separate, shared_base, trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf.errors import InputError

TEXT = prompts(13, seed=3).rename_column("prompt", "text")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
STEPS = 4  # two rollouts of two minibatches


def peft_models() -> dict:
    """Returns PEFT models; the adapters of reward and value have a head."""
    score = lora("SEQ_CLS", modules_to_save=["score"], init_lora_weights=False)
    reward, value = (get_peft_model(classifier(seed=1), score) for _ in range(2))
    return {"model": get_peft_model(causal(), lora()), "reward_model": reward, "value_model": value}


LAYOUTS = {"shared": shared_base, "separate": separate, "peft": peft_models}


def run(folder: Path, models, checkpoint: Path | None = None, **changes):
    launched = "LOCAL_RANK" in os.environ
    options = dict(
        use_cpu=not launched and not torch.cuda.is_available(), total_episodes=16, ema_decay=0.5,
        per_device_train_batch_size=2 // int(os.environ.get("WORLD_SIZE", 1)), save_strategy="steps", save_steps=1,
        ptx_coef=2.0, ptx_length=9, ptx_examples_per_episode=1,
    )  # fmt: skip
    ppo = trainer(ppo_config(folder, **options, **changes), models, pretrain_dataset=TEXT, eval_dataset=prompts(3))
    if ppo.is_deepspeed_enabled:  # by default, small weights are not sharded
        ppo.accelerator.deepspeed_plugin.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ppo.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    assert ppo.state.global_step == STEPS
    metrics = ppo.evaluate()
    assert all(value == value for value in metrics.values())
    ppo.save_model()
    return ppo


def in_memory(ppo) -> torch.Tensor:
    """Returns log-probabilities of the last policy, by a pass through the sharded model."""
    ids = IDS.to(ppo.accelerator.device)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "response_mask": mask[:, 1:].bool()}
        return ppo.wrapped_model()("policy_logprobs", **inputs).cpu()


def make(layout: str):
    torch.manual_seed(0)
    return LAYOUTS[layout]()


def main(folder: Path) -> None:
    models = [[make(layout) for layout in LAYOUTS] for _ in range(2)]  # before ZeRO-3 is on, which would shard them
    for layout, first, second in zip(LAYOUTS, *models, strict=True):
        ppo = run(folder / layout, first)
        logprobs_in_memory = in_memory(ppo)  # by all processes
        if ppo.is_world_process_zero():
            save_file({"logprobs": logprobs_in_memory}, folder / f"{layout}.safetensors")
        run(folder / f"{layout}-resumed", second, folder / layout / "checkpoint-1")
    run(folder / "bf16", make("shared"), bf16=True)
    if ppo.is_deepspeed_enabled:
        with pytest.raises(InputError, match="target_kl"):
            trainer(ppo_config(folder / "refused", use_cpu=False, target_kl=0.1))


def launch(config: str, folder: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}"]
    command += ["--num_processes", "1", __file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-5000:]


def state(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoint-{step}" / "ppo_state.safetensors")


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(
            actual[name], expected[name], atol=1e-4, rtol=1e-2, msg=lambda text, name=name: f"{name}: {text}"
        )


def load_policy(folder: Path, layout: str):
    if layout == "separate":
        return AutoModelForCausalLM.from_pretrained(folder)
    return PeftModel.from_pretrained(causal(), str(folder))


def logprobs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits[:, :-1].log_softmax(-1).gather(2, IDS[:, 1:, None]).squeeze(2)


def check(folder: Path, alone: Path) -> None:
    """Compares the files of a sharded launch in `folder` with runs of one unsharded process in `alone`."""
    for layout in LAYOUTS:
        run(alone / layout, make(layout))
        assert_same(state(folder / layout), state(alone / layout))
        assert_same(state(folder / f"{layout}-resumed"), state(folder / layout))
        saved = logprobs(load_policy(folder / layout / "raw", layout))
        sharded = load_file(folder / f"{layout}.safetensors")["logprobs"]
        torch.testing.assert_close(saved, sharded, atol=1e-4, rtol=1e-3)
        for model in ("", "raw", "value"):
            assert_same(weights(folder / layout / model), weights(alone / layout / model))
    value = AutoModelForSequenceClassification.from_pretrained(folder / "separate" / "value")
    assert torch.isfinite(value(IDS).logits).all()
    assert all(torch.isfinite(tensor).all() for tensor in state(folder / "bf16").values())
    rollout = load_file(folder / "bf16" / "checkpoint-1" / "rollout_0.safetensors")
    for name in ("logprobs", "ref_logprobs", "values", "scores"):  # stay in float32
        assert not torch.equal(rollout[f"0.0.{name}"], rollout[f"0.0.{name}"].bfloat16().float())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [path] = folder.glob("*.safetensors")
    return load_file(path)


# docs/trl-faults.md, fault 20
@pytest.mark.gpu
@pytest.mark.slow
def test_fault_20_under_fsdp_it_is_one_process(tmp_path):
    launch("fsdp.yaml", tmp_path / "fsdp")
    check(tmp_path / "fsdp", tmp_path / "alone")


# docs/trl-faults.md, faults 16 and 20
@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not is_deepspeed_available(), reason="needs DeepSpeed")
def test_fault_16_20_under_zero3_it_is_one_process_and_saved_whole(tmp_path):
    launch("zero3.yaml", tmp_path / "zero3")
    check(tmp_path / "zero3", tmp_path / "alone")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
