"""PPOTrainer: invariants of the update, counts of steps, refused models, and what a Trainer promises."""

import pytest
import torch
from datasets import Dataset
from toys import (
    causal,
    classifier,
    logged,
    lora,
    ppo_config,
    prompts,
    separate,
    shared_base,
    trainer,
)
from transformers import TrainerCallback

from rlhf.errors import InputError
from rlhf.ppo import PPOTrainer
from rlhf.ppo.metrics import score_interval
from rlhf.ppo.rollout import MicroBatch
from rlhf.statistics import cluster_mean


class Recorder(TrainerCallback):
    """Records gradients, learning rates and the rollout of each optimizer step."""

    def __init__(self):
        self.gradients, self.rates, self.rollouts, self.trainer = [], [], [], None

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        self.rates.append({group["role"]: group["lr"] for group in optimizer.param_groups})
        self.rollouts.append(self.trainer.rollout.index)


def train(args, layout=None, **kwargs):
    recorder = Recorder()
    ppo = trainer(args, layout, callbacks=[recorder], **kwargs)
    recorder.trainer = ppo
    ppo.train()
    return ppo, recorder


def weights(ppo: PPOTrainer, role: str | None = None) -> dict:
    roles = ("policy", "value") if role is None else (role,)
    return {n: p.detach().clone() for r in roles for n, p in ppo.actor_critic.parameters_of(r)}


def assert_same(a: dict, b: dict, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


def peft_layout(kind="llama"):
    layout = separate(kind) | {"ref_model": None}
    return layout | {"peft_config": lora(lora_dropout=0.3)}


def dropout_layout():
    layout = {name: model.__class__(model.config) for name, model in separate("opt").items()}
    for model in layout.values():
        model.config.dropout = model.config.attention_dropout = 0.4
    layout = {name: model.__class__(model.config) for name, model in layout.items()}
    layout["ref_model"].load_state_dict(layout["model"].state_dict())
    return layout


LAYOUTS = {
    "shared": shared_base,
    "llama": separate,
    "gpt2": lambda: separate("gpt2"),
    "opt": lambda: separate("opt"),
    "opt with dropout": dropout_layout,
    "peft": peft_layout,
}


# ---- lr = 0


SHAPES = {
    "fp32": {"per_device_train_batch_size": 1, "num_mini_batches": 3, "num_ppo_epochs": 2, "temperature": 0.7},
    "checkpointing": {"gradient_checkpointing": True},
    "bf16": {"bf16": True},
    "one update": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_mini_batches": 1},
}
CASES = [(layout, "fp32") for layout in LAYOUTS]
CASES += [(layout, shape) for layout in ("shared", "llama", "peft") for shape in list(SHAPES)[1:]]


# docs/trl-faults.md, faults 9 and 10
@pytest.mark.parametrize(("layout", "shape"), CASES)
def test_fault_09_10_at_lr_0_the_ratio_is_1_and_the_kl_is_0(tmp_path, layout, shape):
    args = ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0, logging_steps=1, **SHAPES[shape])
    kls = []

    class Recording(PPOTrainer):
        def make_rollout(self, index):
            rollout = super().make_rollout(index)
            kls.extend((b.logprobs - b.ref_logprobs).abs().max().item() for b in rollout.micro_batches())
            return rollout

    ppo = trainer(args, LAYOUTS[layout](), cls=Recording)
    ppo.train()
    assert set(logged(ppo, "policy/approxkl") + logged(ppo, "policy/clipfrac")) == {0.0}
    assert set(kls) == {0.0}
    assert set(logged(ppo, "objective/kl")) == {0.0}


def test_lr_0_changes_nothing(tmp_path):
    ppo = trainer(ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0))
    before = weights(ppo)
    ppo.train()
    assert_same(before, weights(ppo), atol=0, rtol=0)


# ---- Steps


# docs/trl-faults.md, faults 1, 2 and 19
@pytest.mark.parametrize(
    ("num_prompts", "accumulation", "minibatches", "epochs"),
    [(3, 4, 2, 1), (16, 4, 2, 1), (13, 1, 4, 1), (64, 3, 2, 2), (5, 2, 1, 1), (7, 1, 1, 3)],
)
def test_fault_01_02_19_every_rollout_has_as_many_optimizer_steps(
    tmp_path, num_prompts, accumulation, minibatches, epochs
):
    rollout = 2 * accumulation * minibatches
    args = ppo_config(
        tmp_path, gradient_accumulation_steps=accumulation, num_mini_batches=minibatches, num_ppo_epochs=epochs,
        total_episodes=3 * rollout, response_length=2,
    )  # fmt: skip
    _, recorder = train(args, train_dataset=prompts(num_prompts))
    assert recorder.rollouts == [k for k in range(3) for _ in range(minibatches * epochs)]


# docs/trl-faults.md, fault 11
def test_fault_11_1x8_accumulation_is_8x1(tmp_path):
    shapes = [(8, 1), (1, 8), (4, 2)]
    runs = [
        train(ppo_config(tmp_path, per_device_train_batch_size=b, gradient_accumulation_steps=a, total_episodes=48))
        for b, a in shapes
    ]
    for ppo, recorder in runs[1:]:
        for ours, theirs in zip(recorder.gradients, runs[0][1].gradients, strict=True):
            assert_same(ours, theirs, atol=2e-5, rtol=1e-3)
        for name in (
            "loss",
            "loss/policy",
            "loss/value",
            "objective/score",
            "val/explained_variance",
            "policy/approxkl",
        ):
            assert logged(ppo, name) == pytest.approx(logged(runs[0][0], name), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("sampling", [1, 3, 64])
def test_the_batch_size_of_sampling_changes_nothing(tmp_path, sampling):
    ppo, _ = train(ppo_config(tmp_path, local_rollout_forward_batch_size=sampling))
    other, _ = train(ppo_config(tmp_path, local_rollout_forward_batch_size=8))
    assert_same(weights(ppo), weights(other), atol=0, rtol=0)


# docs/trl-faults.md, fault 14
def test_fault_14_same_seed_same_weights(tmp_path):
    first, _ = train(ppo_config(tmp_path, total_episodes=24, num_ppo_epochs=2))
    torch.manual_seed(12345)  # random numbers of other code do not matter
    again, _ = train(ppo_config(tmp_path, total_episodes=24, num_ppo_epochs=2))
    other, _ = train(ppo_config(tmp_path, total_episodes=24, num_ppo_epochs=2, seed=8))
    assert_same(weights(first), weights(again), atol=0, rtol=0)
    assert any(not torch.equal(a, b) for a, b in zip(weights(first).values(), weights(other).values(), strict=True))


# ---- Optimizer


# docs/trl-faults.md, fault 28
def test_fault_28_two_learning_rates_and_their_warm_up(tmp_path):
    args = ppo_config(
        tmp_path, total_episodes=48, learning_rate=1e-3, value_learning_rate=2e-3, warmup_rollouts=2,
        value_warmup_rollouts=1,
    )  # fmt: skip
    ppo, recorder = train(args)
    rise = [0.1, 0.325, 0.55, 0.775] + [1.0] * 8
    assert [r["value"] for r in recorder.rates] == pytest.approx([2e-3 * x for x in rise])
    assert [r["policy"] for r in recorder.rates] == pytest.approx([0.0, 0.0] + [1e-3 * x for x in rise[:-2]])
    assert ppo.optimizer.param_groups[0]["eps"] == 1e-8
    assert len({id(p) for g in ppo.optimizer.param_groups for p in g["params"]}) == len(weights(ppo))


def test_value_warm_up_moves_the_value_model_alone(tmp_path):
    class StopBeforeThePolicy(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2  # the end of the first rollout

    args = ppo_config(tmp_path, total_episodes=16, value_warmup_rollouts=1, weight_decay=0.1)
    recorder = Recorder()
    recorder.trainer = ppo = trainer(args, callbacks=[recorder, StopBeforeThePolicy()])
    before = weights(ppo)
    ppo.train()
    after = weights(ppo)
    for name, _ in ppo.actor_critic.parameters_of("policy"):
        assert torch.equal(before[name], after[name])
        assert recorder.gradients[0][name].abs().max() == 0
    for name, _ in ppo.actor_critic.parameters_of("value"):
        assert not torch.equal(before[name], after[name])


def test_lr_scheduler_type_multiplies_the_warm_up(tmp_path):
    _, recorder = train(ppo_config(tmp_path, total_episodes=16, lr_scheduler_type="linear"))
    assert [r["policy"] for r in recorder.rates] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    args = ppo_config(tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps", eval_steps=1)
    with pytest.raises(InputError, match="reduce_lr_on_plateau"):
        train(args, eval_dataset=prompts(2))


# docs/trl-faults.md, fault 4
def test_fault_04_gradients_are_clipped(tmp_path):
    _, free = train(ppo_config(tmp_path, max_grad_norm=0.0))
    ppo, clipped = train(ppo_config(tmp_path, max_grad_norm=1e-2, logging_steps=1))

    def norm(gradients):
        return torch.stack([g.norm() for g in gradients.values()]).norm().item()

    assert norm(clipped.gradients[0]) == pytest.approx(1e-2, rel=1e-3)
    assert logged(ppo, "grad_norm")[0] == pytest.approx(norm(free.gradients[0]), rel=1e-3)


# docs/trl-faults.md, fault 3
def test_fault_03_precision_is_as_asked(tmp_path):
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        seen = set()
        layout = separate()
        layout["model"].lm_head.register_forward_hook(lambda m, i, o, seen=seen: seen.add(o.dtype))
        ppo, _ = train(ppo_config(tmp_path, bf16=bf16), layout)
        assert ppo.accelerator.mixed_precision == ("bf16" if bf16 else "no")
        assert seen == {dtype}  # sampling included
        assert {b.logprobs.dtype for b in ppo.rollout.micro_batches()} == {torch.float32}


# docs/trl-faults.md, fault 5
@pytest.mark.parametrize("layout", ["shared", "llama", "gpt2", "peft"])
def test_fault_05_checkpointing_covers_policy_and_value_and_changes_no_gradient(tmp_path, layout):
    def run(**changes):
        models, calls = LAYOUTS[layout](), []
        for model in models.values() if isinstance(models, dict) else [models]:
            for name, module in model.named_modules() if isinstance(model, torch.nn.Module) else ():
                if name.endswith(".mlp"):
                    module.register_forward_pre_hook(lambda *_: calls.append(1))
        return *train(ppo_config(tmp_path, **changes), models), len(calls)

    plain, reference, calls = run()
    ppo, recorder, more_calls = run(gradient_checkpointing=True)
    passes = 1 if layout == "shared" else 2  # for policy and value
    assert more_calls - calls == passes * 2 * 4  # x layers x micro-batches are computed again, and nothing else
    for ours, theirs in zip(recorder.gradients, reference.gradients, strict=True):
        assert_same(ours, theirs, atol=1e-6, rtol=1e-5)
    assert_same(weights(ppo), weights(plain), atol=1e-6, rtol=1e-5)


# ---- Learning


def says_w9(prompts, completions, **columns):
    return [float("w9" in completion.split()) for completion in completions]


def learn(output_dir, layout, episodes, **changes):
    args = ppo_config(
        output_dir, per_device_train_batch_size=32, gradient_accumulation_steps=1, num_mini_batches=2,
        response_length=4, total_episodes=episodes, max_grad_norm=0.0, **changes,
    )  # fmt: skip
    return train(args, layout, reward_funcs=says_w9)[0]


# 0.3, because an adapter of rank 4 on 16 frozen random features cannot say one word after every prompt.
@pytest.mark.parametrize(("layout", "rate", "goal"), [("llama", 5e-3, 0.8), ("shared", 5e-2, 0.3)])
def test_the_policy_learns_what_is_rewarded(tmp_path, layout, rate, goal):
    models = LAYOUTS[layout]()
    if layout == "shared":
        del models.heads["reward"]
    else:
        models["reward_model"] = None
    ppo = learn(tmp_path, models, 64 * 20, learning_rate=rate, value_learning_rate=rate, kl_coef=0.0)
    scores = logged(ppo, "objective/score")
    assert sum(scores[:2]) / 2 < 0.15
    assert sum(scores[-5:]) / 5 > goal


def test_the_kl_penalty_holds_the_policy_back(tmp_path):
    def final_kl(kl_coef):
        layout = separate() | {"reward_model": None}
        rates = {"learning_rate": 3e-3, "value_learning_rate": 3e-3}
        return logged(learn(tmp_path, layout, 64 * 10, kl_coef=kl_coef, **rates), "objective/kl")[-1]

    assert final_kl(1.0) < 0.5 * final_kl(0.0)


# ---- Rewards


def test_reward_functions_are_added_to_the_reward_model(tmp_path):
    seen = {}

    def tags(prompts, completions, tag, **columns):
        seen.update(prompts=prompts, completions=completions, tag=tag)
        return [100.0] * len(prompts)

    data = Dataset.from_dict({"prompt": ["w5 w6", "w7 w8 w9"], "tag": ["a", "b"]})
    args = ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0, reward_weights=[0.5])
    plain, _ = train(ppo_config(tmp_path, learning_rate=0.0, value_learning_rate=0.0), train_dataset=data)
    ppo, _ = train(args, train_dataset=data, reward_funcs=tags)
    assert logged(ppo, "objective/score")[0] == pytest.approx(logged(plain, "objective/score")[0] + 50.0, rel=1e-5)
    assert {(p, t) for p, t in zip(seen["prompts"], seen["tag"], strict=True)} <= {("w5 w6", "a"), ("w7 w8 w9", "b")}
    assert all("</s>" not in completion for completion in seen["completions"])


# docs/trl-faults.md, fault 32
def test_fault_32_the_score_is_logged_without_the_penalty(tmp_path):
    args = dict(learning_rate=0.0, value_learning_rate=0.0)
    plain, _ = train(ppo_config(tmp_path, **args))
    ppo, _ = train(ppo_config(tmp_path, **args, missing_eos_penalty=2.0))
    missing = 1 - logged(ppo, "rollout/eos_rate")[0]
    assert 0 < missing < 1
    assert logged(ppo, "objective/score") == logged(plain, "objective/score")
    assert logged(ppo, "objective/rlhf_reward")[0] == pytest.approx(
        logged(plain, "objective/rlhf_reward")[0] - 2.0 * missing, rel=1e-5
    )


# ---- Refused models


def test_models_that_would_train_wrongly_are_refused(tmp_path):
    args, layout = ppo_config(tmp_path), separate()
    with pytest.raises(InputError, match="value_model is the reward model"):  # fault 12
        trainer(args, layout | {"value_model": layout["reward_model"]})
    with pytest.raises(InputError, match="ref_model is the policy"):
        trainer(args, layout | {"ref_model": layout["model"]})
    with pytest.raises(InputError, match="there is no reward"):
        trainer(args, layout | {"reward_model": None})
    with pytest.raises(InputError, match="value_model is missing"):
        trainer(args, layout | {"reward_model": None, "value_model": None}, reward_funcs=lambda **_: [])
    with pytest.raises(InputError, match="value model, a LlamaForCausalLM, has no `score` head with one label"):
        trainer(args, layout | {"value_model": causal()})
    with pytest.raises(InputError, match=r"reward model, .* has no `score` head with one label"):
        trainer(args, layout | {"reward_model": classifier(num_labels=2)})
    with pytest.raises(InputError, match="leave out"):
        trainer(args, {"model": shared_base(), "value_model": classifier()})
    frozen = causal().requires_grad_(False)
    with pytest.raises(InputError, match="policy has no trainable parameters"):
        trainer(args, layout | {"model": frozen})
    with pytest.raises(InputError, match="1 reward_weights for 0"):
        trainer(ppo_config(tmp_path, reward_weights=[1.0]))
    base = shared_base()
    del base.heads["value"]
    with pytest.raises(InputError, match="lacks the adapters value"):
        trainer(args, base)


# docs/trl-faults.md, fault 12
def test_fault_12_the_value_model_is_a_copy_of_the_reward_model_by_default(tmp_path):
    layout = separate() | {"value_model": None}
    reward = {n: p.clone() for n, p in layout["reward_model"].named_parameters()}
    ppo, _ = train(ppo_config(tmp_path), layout)
    for name, parameter in layout["reward_model"].named_parameters():
        assert torch.equal(parameter, reward[name])
    assert any(not torch.equal(p, reward[n]) for n, p in ppo.actor_critic.value.named_parameters())


# ---- What a Trainer promises


# docs/trl-faults.md, fault 23
def test_fault_23_max_steps_and_should_training_stop_are_obeyed(tmp_path):
    ppo, _ = train(ppo_config(tmp_path, max_steps=3, logging_steps=1))
    assert ppo.state.global_step == 3
    assert len(logged(ppo, "loss")) == 3

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    ppo = trainer(ppo_config(tmp_path, total_episodes=80), callbacks=[Stop()])
    assert ppo.train().global_step == 2


# docs/trl-faults.md, fault 23
def test_fault_23_epochs_are_passes_over_the_prompts(tmp_path):
    args = ppo_config(tmp_path, save_strategy="epoch", eval_strategy="epoch", total_episodes=32)
    ppo, _ = train(args, train_dataset=prompts(12), eval_dataset=prompts(3))  # 4 episodes a step
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{k}" for k in (3, 6, 8)]
    assert [row["step"] for row in ppo.state.log_history if "eval_objective/score" in row] == [3, 6, 8]
    assert ppo.state.epoch == pytest.approx(32 / 12)


# docs/trl-faults.md, fault 22
def test_fault_22_evaluates_on_held_out_prompts(tmp_path):
    args = ppo_config(tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=3, total_episodes=16)
    ppo, _ = train(args, eval_dataset=prompts(7, seed=5))
    assert len(logged(ppo, "eval_objective/score")) == 4
    first, again = ppo.evaluate(), ppo.evaluate()
    assert first == again
    assert {"eval_objective/score", "eval_objective/kl", "eval_rollout/length", "eval_rollout/eos_rate"} <= set(first)
    both = ppo.evaluate({"a": prompts(7, seed=5), "b": prompts(2, seed=6)})
    assert both["eval_a_objective/score"] == pytest.approx(first["eval_objective/score"])
    assert (tmp_path / "samples.jsonl").read_text().count('"source": "eval"') > 0


def test_the_reward_has_an_interval_over_prompts(tmp_path):
    ppo, _ = train(ppo_config(tmp_path), eval_dataset=prompts(6, seed=5))
    metrics = ppo.evaluate() | next(row for row in ppo.state.log_history if "objective/score" in row)
    for name in ("objective/score", "eval_objective/score"):
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert "eval_objective/score_low" not in ppo.evaluate(prompts(1)), "one prompt says nothing of others"


def test_episodes_of_a_prompt_are_one_cluster_of_the_interval():
    def ends(scores, ids, counted=None):
        batch = MicroBatch(list(range(len(scores))), *[torch.zeros(1)] * 4, scores=torch.tensor(scores))
        interval = score_interval([batch], ids, lambda tensor: tensor, counted)
        return [interval[f"objective/score_{end}"] for end in ("low", "high")]

    expected = cluster_mean([1.0, 2.0, 4.0], [0, 1, 2])
    assert ends([1.0, 2.0, 4.0], [[1], [1, 2], [3]]) == pytest.approx([expected.low, expected.high])
    assert ends([1.0, 2.0, 4.0] * 2, [[1], [1, 2], [3]] * 2) == pytest.approx([expected.low, expected.high])
    assert ends([1.0, 2.0, 4.0, 9.0], [[1], [1, 2], [3], [1]], 3) == pytest.approx([expected.low, expected.high])


def test_evaluates_before_any_training(tmp_path):
    ppo = trainer(ppo_config(tmp_path, bf16=True), eval_dataset=prompts(5))
    before = ppo.evaluate()
    assert before["eval_objective/kl"] == 0.0
    ppo.train()


def test_evaluation_does_not_disturb_training(tmp_path):
    plain, _ = train(ppo_config(tmp_path, total_episodes=16))
    evaluated, _ = train(
        ppo_config(tmp_path, total_episodes=16, eval_strategy="steps", eval_steps=1), eval_dataset=prompts(5)
    )
    assert_same(weights(plain), weights(evaluated), atol=0, rtol=0)


def test_stable_metric_names(tmp_path):
    ppo, _ = train(ppo_config(tmp_path))
    names = {name for row in ppo.state.log_history for name in row}
    assert names >= {
        "objective/kl", "objective/entropy", "objective/score", "objective/rlhf_reward", "objective/non_score_reward",
        "policy/approxkl", "policy/clipfrac", "policy/ratio", "loss/policy", "loss/value", "val/explained_variance",
        "rollout/length", "rollout/eos_rate", "time/rollout", "time/score", "time/update",
        "throughput/episodes_per_s", "throughput/tokens_per_s", "episode",
    }  # fmt: skip
    assert logged(ppo, "episode") == [8]


def test_samples_are_written_as_often_as_asked(tmp_path):
    train(ppo_config(tmp_path, total_episodes=32, num_sample_generations=2))
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 2 * 4
    assert '"response"' in lines[0]
