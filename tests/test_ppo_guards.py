"""Guards: numbers computed by hand, their effect on a run, and their state in a checkpoint."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from test_ppo_trainer import assert_same, train, weights
from toys import logged, ppo_config, prompts, separate, shared_base, trainer

from rlhf.errors import InputError
from rlhf.ppo.checkpointing import load_rollout
from rlhf.ppo.guards import CollapseWatch, KLController, ScoreScale, TargetKL


def through_json(guard, fresh):
    fresh.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    return fresh


# ---- KL controller


def test_the_kl_controller_follows_its_target():
    kl = KLController(0.1, target=6.0, horizon=1000)
    kl.update(6.6, episodes=100)  # 10 % above the target: beta (1 + 0.1 * 100 / 1000)
    assert kl.coef == pytest.approx(0.1 * 1.01)
    kl.update(60.0, episodes=100)  # the error is clipped to 0.2
    assert kl.coef == pytest.approx(0.1 * 1.01 * 1.02)
    kl.update(0.0, episodes=500)  # and to -0.2
    assert kl.coef == pytest.approx(0.1 * 1.01 * 1.02 * 0.9)
    assert through_json(kl, KLController(0.5, 6.0, 1000)).coef == kl.coef
    constant = KLController(0.1, None, 1000)
    constant.update(60.0, 100)
    assert constant.coef == 0.1
    assert through_json(constant, KLController(0.5, None, 1000)).coef == 0.5  # resuming with another beta is allowed


# docs/trl-faults.md, fault 31
def test_fault_31_beta_rises_while_the_kl_is_above_its_target(tmp_path):
    changes = {"total_episodes": 32, "learning_rate": 1e-2, "adaptive_kl_target": 0.01, "adaptive_kl_horizon": 100}
    ppo, _ = train(ppo_config(tmp_path, **changes, kl_coef=0.05))
    betas, kls = logged(ppo, "objective/kl_coef"), logged(ppo, "objective/kl")
    assert betas[0] == 0.05
    for i, kl in enumerate(kls[:-1]):
        error = min(max(kl / 0.01 - 1, -0.2), 0.2)
        assert betas[i + 1] == pytest.approx(betas[i] * (1 + error * 8 / 100))
    assert betas[-1] > betas[1]
    penalty = logged(ppo, "objective/non_score_reward")
    assert penalty == pytest.approx([-beta * kl for beta, kl in zip(betas, kls, strict=True)], abs=1e-7)


# ---- Target KL


def test_target_kl_stops_at_one_and_a_half_times_the_target():
    guard = TargetKL(0.1)
    assert [guard.step(0, kl) for kl in (0.0, 0.14, 0.16, 0.0)] == [True, True, False, False]
    assert guard.skipped_of(0) == 2
    assert through_json(guard, TargetKL(0.1)).skipped_of(0) == 2
    assert guard.step(1, 0.0)
    assert (guard.skipped_of(0), guard.skipped_of(1)) == (2, 0)


# docs/trl-faults.md, fault 31
def test_fault_31_target_kl_skips_the_rest_of_a_rollout_and_keeps_the_number_of_steps(tmp_path):
    changes = {"num_ppo_epochs": 3, "learning_rate": 1e-2, "weight_decay": 0.1, "logging_steps": 1, "ema_decay": 0.1}
    args = ppo_config(tmp_path, **changes, total_episodes=16, target_kl=1e-6)
    ppo, recorder = train(args)
    assert ppo.state.global_step == 12
    assert recorder.rollouts == [0] * 6 + [1] * 6
    taken = [bool(gradients) and k % 6 == 0 for k, gradients in enumerate(recorder.gradients)]
    assert [bool(g) for g in recorder.gradients] == [k % 6 < 2 for k in range(12)]  # the second is computed and dropped
    assert sum(taken) == 2
    assert logged(ppo, "policy/skipped_steps") == [5.0, 5.0]
    # Skipped steps move nothing: not by momentum, weight decay or the average.
    one = trainer(ppo_config(tmp_path, **changes, max_steps=1))
    one.train()
    six = trainer(ppo_config(tmp_path, **changes, max_steps=6, target_kl=1e-6))
    six.train()
    assert_same(weights(one), weights(six), atol=0, rtol=0)
    assert_same(one.ema.shadow, six.ema.shadow, atol=0, rtol=0)


def test_target_kl_out_of_reach_changes_nothing(tmp_path):
    runs = [train(ppo_config(tmp_path, num_ppo_epochs=2, target_kl=kl))[0] for kl in (None, 1e9)]
    assert_same(*map(weights, runs), atol=0, rtol=0)
    assert logged(runs[1], "policy/skipped_steps") == [0.0]


# ---- Scale of the scores


def test_the_scale_is_the_standard_deviation_of_all_scores():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 3 + 7
    scale = ScoreScale()
    assert scale.std == 1.0
    for batch in scores.split([1, 20, 29]):
        scale.update(batch, lambda x: x)
    assert scale.std == pytest.approx(scores.double().std().item())
    assert through_json(scale, ScoreScale()).std == scale.std
    constant = ScoreScale()
    constant.update(torch.full((4,), 2.0), lambda x: x)
    assert constant.std == 1.0


# docs/trl-faults.md, fault 31
def test_fault_31_scaled_scores_do_not_depend_on_the_rewards_unit(tmp_path):
    def run(unit, **changes):
        def score(prompts, completions, **_):
            return [unit * (1 + len(completion)) for completion in completions]

        layout = separate() | {"reward_model": None}
        return train(ppo_config(tmp_path, total_episodes=24, **changes), layout, reward_funcs=score)[0]

    one, thousand = (run(unit, scale_scores=True, kl_coef=0.3) for unit in (1.0, 1024.0))
    assert_same(weights(one), weights(thousand), atol=1e-6, rtol=1e-5)
    assert logged(thousand, "objective/score")[0] == pytest.approx(1024 * logged(one, "objective/score")[0])
    clipped = run(1024.0, score_clip=0.5)
    assert logged(clipped, "objective/rlhf_reward")[0] == pytest.approx(0.5)


# ---- Collapse


def test_a_collapse_is_flagged_once(caplog):
    watch = CollapseWatch()
    with caplog.at_level(logging.WARNING):
        flags = [
            watch.update({"rollout/length": length, "objective/entropy": entropy * length}, step)
            for step, (length, entropy) in enumerate([(40, 2.0), (11, 1.0), (9, 1.0), (8, 0.19), (30, 0.1)])
        ]
    assert [f["guard/length_collapse"] for f in flags] == [0, 0, 1, 1, 0]
    assert [f["guard/entropy_collapse"] for f in flags] == [0, 0, 0, 1, 1]
    assert [record.getMessage().split(":")[1].strip() for record in caplog.records] == [
        "length collapse",
        "entropy collapse",
    ]
    assert "step 2" in caplog.text
    again = through_json(watch, CollapseWatch())
    assert again.update({"rollout/length": 9, "objective/entropy": 9.0}, 9)["guard/length_collapse"] == 1


def test_collapse_is_among_the_metrics(tmp_path):
    ppo, _ = train(ppo_config(tmp_path, total_episodes=16))
    assert logged(ppo, "guard/length_collapse") == [0.0, 0.0]
    assert logged(ppo, "guard/entropy_collapse") == [0.0, 0.0]


# ---- Non-finite values


def saved_episodes(error) -> Path:
    return Path(re.search(r"are in (\S+\.safetensors)", str(error.value))[1])


def test_non_finite_scores_stop_the_run_with_the_episodes_on_disk(tmp_path):
    layout = shared_base()
    layout.heads["reward"].weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="scores of a rollout are not finite at step 0") as error:
        train(ppo_config(tmp_path), layout)
    [[batch]] = load_rollout(saved_episodes(error), "cpu").minibatches
    assert batch.scores.isnan().all()
    assert batch.response_mask.any()


def test_a_non_finite_loss_stops_the_run_with_the_episodes_on_disk(tmp_path):
    with pytest.raises(InputError, match=r"the loss is inf .*at step 0") as error:
        train(ppo_config(tmp_path, vf_coef=float("inf")))
    assert len(load_rollout(saved_episodes(error), "cpu").minibatches) == 1


def test_a_non_finite_gradient_stops_the_run_before_the_step(tmp_path):
    layout = shared_base()
    ppo = trainer(ppo_config(tmp_path, total_episodes=16), layout)
    name, parameter = ppo.actor_critic.parameters_of("policy")[0]
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (float("nan") if len(calls) == 6 else 1.0)  # in the third minibatch of two micro-batches

    parameter.register_hook(spoil)
    with pytest.raises(InputError, match="the gradient is not finite at step 2") as error:
        ppo.train()
    [minibatch] = load_rollout(saved_episodes(error), "cpu").minibatches
    expected = [ppo.rollout.at(m, ppo.args.seed) for m in (0, 1)]
    assert [batch.rows for batch in minibatch] == [batch.rows for batch in expected]
    assert all(torch.isfinite(p).all() for _, p in ppo.actor_critic.parameters_of("policy")), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_kl": 0.0}, "target_kl is 0.0"),
        ({"adaptive_kl_target": -1.0}, "adaptive_kl_target is -1.0"),
        ({"adaptive_kl_horizon": 0}, "adaptive_kl_horizon is 0"),
    ],
)
def test_refusals(tmp_path, changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ppo_config(tmp_path, **changes)


def test_histories_are_in_the_checkpoint(tmp_path):
    options = {
        "total_episodes": 16, "num_ppo_epochs": 2, "adaptive_kl_target": 0.01, "adaptive_kl_horizon": 100,
        "scale_scores": True, "target_kl": 1e-4, "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    whole = trainer(ppo_config(tmp_path, **options), train_dataset=prompts(16))
    whole.train()
    resumed = trainer(ppo_config(tmp_path, **options), train_dataset=prompts(16))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(weights(whole), weights(resumed), atol=0, rtol=0)
    assert resumed.kl.coef == whole.kl.coef
    assert resumed.score_scale.std == whole.score_scale.std
    assert resumed.target_kl.state_dict() == whole.target_kl.state_dict()
