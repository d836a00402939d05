"""bfloat16 on a CPU: where it is allowed, and that PPO computes right with it."""

import pytest
import torch
import toys
from datasets import Dataset
from peft import get_peft_model
from toys import logged, ppo_config, shared_base, trainer

from rlhf.generation.random_numbers import sampling_uniforms
from rlhf.generation.sampler import sample
from rlhf.models.frozen_reward import classifier_token_scores
from rlhf.models.precision import float_head, float_trained_weights
from rlhf.ppo import PPOConfig
from rlhf.reward import KWiseRewardConfig, KWiseRewardTrainer

NO_GPU = not torch.accelerator.is_available()


@pytest.mark.skipif(not NO_GPU, reason="a GPU computes in bfloat16")
@pytest.mark.parametrize("has", [True, False])
def test_bf16_true_is_taken_by_a_cpu_that_has_it_and_refused_by_others(has, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.models.precision.cpu_has_bf16", lambda: has)
    if has:
        args = PPOConfig(str(tmp_path), bf16=True, report_to="none")
        assert args.device.type == "cpu"
        assert not args.use_cpu and args.dataloader_pin_memory  # config.yaml does not keep the run from a GPU
    else:
        with pytest.raises(ValueError, match="bf16"):
            PPOConfig(str(tmp_path), bf16=True, report_to="none")
    with pytest.raises(ValueError, match="bf16"):  # the default, which is for GPUs
        PPOConfig(str(tmp_path), report_to="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_lr_0_the_ratio_is_1_and_the_kl_is_0(dtype, tmp_path):
    args = ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0, logging_steps=1, bf16=True)
    base = shared_base()
    base.lm.to(dtype)
    ppo = trainer(args, base)
    ppo.train()
    assert set(logged(ppo, "objective/kl")) == {0.0}
    assert set(logged(ppo, "policy/approxkl")) == {0.0}


def test_a_policy_trained_in_bf16_samples_the_tokens_that_its_own_logits_rank_first(tmp_path):
    base = shared_base()
    base.lm.to(torch.bfloat16)
    ppo = trainer(ppo_config(tmp_path, bf16=True, total_episodes=32), base)
    ppo.train()
    prompts = [[11, 12, 13], [14, 15], [16, 17, 18, 19]] * 3  # nine rows, so that weights are packed
    with torch.no_grad(), base.use("policy"), torch.autocast("cpu", torch.bfloat16):
        responses = sample(
            base.lm, prompts, sampling_uniforms(len(prompts), 8, "test"), temperature=0, stop_ids=[1], pad_id=0,
            batch_size=9,
        )  # fmt: skip
        for prompt, response in zip(prompts, responses, strict=True):
            logits = base.lm(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].float()
            chosen = logits.gather(1, torch.tensor(response)[:, None]).squeeze(1)
            assert (logits.amax(-1) - chosen).max() <= 0.03 * logits.abs().max()


@pytest.mark.parametrize("train", [float_trained_weights, lambda model: None])
def test_scores_of_a_bfloat16_model_are_not_rounded(train):
    model = get_peft_model(toys.classifier().bfloat16(), toys.lora("SEQ_CLS"))
    train(model)
    float_head(model.get_base_model())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = classifier_token_scores(model, torch.randint(10, 40, (16, 5)))
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_reward_training_in_bfloat16_sees_scores_in_float32(tmp_path):
    """The head is a trained copy that was cast back to the dtype of the model: close answers became ties."""
    model = get_peft_model(toys.classifier().bfloat16(), toys.lora("SEQ_CLS"))
    rows = [{"prompt": "w1 w2", "completions": ["w3", "w4 w5", "w6"], "ranks": [1, 2, 3]}] * 4
    args = KWiseRewardConfig(str(tmp_path), bf16=True, use_cpu=True, report_to="none", num_train_epochs=1)
    trainer = KWiseRewardTrainer(
        model, args, processing_class=toys.word_tokenizer(), train_dataset=Dataset.from_list(rows)
    )
    seen = []
    hook = trainer.model.get_base_model().score.register_forward_hook(lambda *call: seen.append(call[-1]))
    trainer.train()
    hook.remove()
    scores = torch.cat([s.detach().flatten() for s in seen])
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
