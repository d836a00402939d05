"""PPO-ptx: one step on the sum of two gradients, which does not depend on the size of micro-batches."""

import json

import pytest
import torch
from datasets import Dataset
from test_ppo_trainer import assert_same, train, weights
from toys import causal, logged, lora, ppo_config, separate, shared_base, trainer, word_tokenizer

from rlhf.data.pretraining import PretrainingStream
from rlhf.errors import InputError

TEXT = Dataset.from_dict({"text": [" ".join(f"w{4 + (7 * i + j * j) % 36}" for j in range(9 + i)) for i in range(12)]})
PTX = {"ptx_coef": 3.0, "ptx_length": 10, "ptx_examples_per_episode": 2}


def gradients(tmp_path, layout, **changes):
    """Trains on one rollout at lr 0, and records the gradients of its optimizer steps."""
    text = {} if changes.get("ptx_coef") == 0.0 else {"pretrain_dataset": TEXT}
    changes = {"learning_rate": 0.0, "value_learning_rate": 0.0, "max_grad_norm": 0.0, **PTX, **changes}
    return train(ppo_config(tmp_path, **changes), layout, **text)


# docs/trl-faults.md, fault 31
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_fault_31_the_gradient_is_ppos_and_gamma_times_that_of_the_mean_token_loss(tmp_path, layout):
    layouts = {"shared": shared_base, "separate": separate}
    _, alone = gradients(tmp_path, layouts[layout](), ptx_coef=0.0)
    ppo, both = gradients(tmp_path, layouts[layout]())
    assert len(both.gradients) == len(alone.gradients) == 2

    stream = PretrainingStream(TEXT, word_tokenizer(), 10, seed=ppo.args.seed)
    model = ppo.actor_critic
    losses = []
    for step in range(2):  # each has 4 episodes, hence 8 blocks
        blocks = torch.tensor([next(stream) for _ in range(8)])
        model.zero_grad()
        if layout == "separate":
            logits = model.policy(blocks).logits
        else:
            with model.base.use("policy"):
                logits = model.base.lm(blocks).logits
        logprobs = torch.log_softmax(logits[:, :-1], -1).gather(-1, blocks[:, 1:, None])
        loss = -logprobs.mean()
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.parameters_of("policy"):
            expected = alone.gradients[step][name] + 3.0 * parameter.grad
            torch.testing.assert_close(both.gradients[step][name], expected, atol=1e-5, rtol=1e-4)
            assert parameter.grad.abs().max() > 0
        for name, _ in model.parameters_of("value"):
            assert torch.equal(both.gradients[step][name], alone.gradients[step][name])
    assert logged(ppo, "loss/ptx")[0] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_1x4_accumulation_is_4x1(tmp_path):
    runs = [
        gradients(tmp_path, None, per_device_train_batch_size=b, gradient_accumulation_steps=4 // b) for b in (4, 1)
    ]
    for ours, theirs in zip(runs[1][1].gradients, runs[0][1].gradients, strict=True):
        assert_same(ours, theirs, atol=2e-5, rtol=1e-3)
    for name in ("loss", "loss/ptx"):
        assert logged(runs[1][0], name) == pytest.approx(logged(runs[0][0], name), rel=1e-4)


def test_it_learns_the_text_and_the_loss_falls(tmp_path):
    args = ppo_config(tmp_path, **PTX, learning_rate=1e-2, total_episodes=80)
    ppo, _ = train(args, separate(), pretrain_dataset=TEXT)
    losses = logged(ppo, "loss/ptx")
    assert losses[-1] < 0.85 * losses[0]


def test_rollouts_and_checkpointing_are_not_disturbed(tmp_path):
    """The first rollout comes before any step; with activation checkpointing the gradients are the same."""
    plain, reference = gradients(tmp_path, shared_base())
    ppo, recorder = gradients(tmp_path, shared_base(), gradient_checkpointing=True)
    for ours, theirs in zip(recorder.gradients, reference.gradients, strict=True):
        assert_same(ours, theirs, atol=1e-6, rtol=1e-5)
    assert_same(weights(plain), weights(ppo))


def test_no_text_is_used_while_the_value_model_warms_up(tmp_path):
    args = ppo_config(tmp_path, **PTX, value_warmup_rollouts=1, total_episodes=16)
    ppo, recorder = train(args, pretrain_dataset=TEXT)
    assert ppo.pretraining.blocks == 16  # two for each of the eight episodes of the second rollout
    for name, _ in ppo.actor_critic.parameters_of("policy"):
        assert recorder.gradients[0][name].abs().max() == 0


def test_a_non_finite_loss_on_text_stops_the_run_with_the_text_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf.ppo.ptx.ptx_loss", lambda logprobs, tokens: logprobs.sum() * torch.inf)
    with pytest.raises(InputError, match="the loss on pretraining text is -inf at step 0") as error:
        trainer(ppo_config(tmp_path, **PTX), pretrain_dataset=TEXT).train()
    path = tmp_path / "non_finite_text-step_0-process_0.json"
    assert str(path) in str(error.value)
    blocks = json.loads(path.read_text())
    assert blocks[0] == next(PretrainingStream(TEXT, word_tokenizer(), 10, seed=ppo_config(tmp_path).seed))


def test_text_alone_is_enough_and_has_the_weight_of_the_sweep(tmp_path):
    assert trainer(ppo_config(tmp_path, ptx_length=9), pretrain_dataset=TEXT).args.ptx_coef == 0.5
    assert trainer(ppo_config(tmp_path)).args.ptx_coef == 0.0
    assert trainer(ppo_config(tmp_path, ptx_coef=0.0), pretrain_dataset=TEXT).pretraining is None


def test_refusals(tmp_path):
    with pytest.raises(InputError, match=r"ptx_coef is 1\.0 and there is no pretraining text"):
        trainer(ppo_config(tmp_path, ptx_coef=1.0))
    with pytest.raises(InputError, match="ptx_length 65 exceeds"):
        trainer(ppo_config(tmp_path, ptx_coef=1.0, ptx_length=65), pretrain_dataset=TEXT)
    with pytest.raises(InputError, match="must be at least 0"):
        ppo_config(tmp_path, ptx_coef=-1.0)


def test_peft_config_trains_the_adapter_on_the_text(tmp_path):
    layout = separate() | {"model": causal(), "ref_model": None, "peft_config": lora()}
    ppo, _ = gradients(tmp_path, layout, learning_rate=1e-2)
    assert len(logged(ppo, "loss/ptx")) == 1


def test_sources_have_their_weights(tmp_path):
    other = Dataset.from_dict({"text": ["w4 w5 w6"] * 9})
    ppo = trainer(ppo_config(tmp_path, **PTX, ptx_weights=[1.0, 3.0]), pretrain_dataset=[TEXT, other])
    expected = PretrainingStream([TEXT, other], word_tokenizer(), 10, weights=[1, 3], seed=ppo.args.seed)
    assert [next(ppo.pretraining) for _ in range(20)] == [next(expected) for _ in range(20)]
    with pytest.raises(InputError, match="for 2 sources"):
        trainer(ppo_config(tmp_path, **PTX, ptx_weights=[1.0]), pretrain_dataset=[TEXT, other])
