"""One rollout of PPOTrainer against PPO in plain torch: sequence by sequence, no padding, no shared code.

Compared: sampled tokens, advantages, returns, losses, gradients, and the weights after all optimizer steps.
"""

import pytest
import torch
from toys import EOS, ppo_config, prompts, separate, trainer, word_tokenizer
from transformers import TrainerCallback

from rlhf.generation.random_numbers import random_generator, sampling_uniforms
from rlhf.ppo.rollout import prompt_rows

CLIP, CLIP_VALUE, VF_COEF, KL_COEF, GAMMA, LAM = 0.1, 0.15, 0.3, 0.2, 0.97, 0.9
RATE, VALUE_RATE, BETAS, EPS, TEMPERATURE = 3e-3, 2e-3, (0.9, 0.95), 1e-5, 0.8


def plain_sample(policy, prompt, uniforms):
    """Samples without a cache: each token takes a pass over the whole sequence."""
    response = []
    for u in uniforms.tolist():
        logits = policy(torch.tensor([prompt + response])).logits[0, -1].double() / TEMPERATURE
        probabilities, token = torch.softmax(logits, -1).tolist(), 0
        while sum(probabilities[: token + 1]) <= u:
            token += 1
        response.append(token)
        if token == EOS:
            break
    return response


def plain_logprobs(model, prompt, response):
    logits = model(torch.tensor([prompt + response])).logits[0] / TEMPERATURE
    return torch.stack([torch.log_softmax(logits[len(prompt) + t - 1], -1)[y] for t, y in enumerate(response)])


def plain_values(model, prompt, response):
    hidden = model.base_model(torch.tensor([prompt + response])).last_hidden_state[0]
    return torch.stack([model.score(hidden[len(prompt) + t - 1])[0] for t in range(len(response))])


def plain_gae(rewards, values):
    advantages = [0.0] * len(rewards)
    for t in range(len(rewards)):
        for k in range(t, len(rewards)):
            next_value = values[k + 1] if k + 1 < len(values) else 0.0
            advantages[t] += (GAMMA * LAM) ** (k - t) * (rewards[k] + GAMMA * next_value - values[k])
    return advantages


def plain_ppo(policy, reference, reward_model, value_model, episodes, minibatches):
    """Trains the models in place; returns advantages and returns by episode, losses and gradients by step."""
    results = {"advantages": [], "returns": [], "loss": [], "grads": []}
    with torch.no_grad():
        old, old_values, advantages = [], [], []
        for prompt, response in episodes:
            logprobs, ref = plain_logprobs(policy, prompt, response), plain_logprobs(reference, prompt, response)
            values = plain_values(value_model, prompt, response)
            rewards = [-KL_COEF * (a - b) for a, b in zip(logprobs.tolist(), ref.tolist(), strict=True)]
            score = reward_model(torch.tensor([prompt + response])).logits[0, 0].item()
            rewards[-1] += score if response[-1] == EOS else score - 1.5
            old.append(logprobs)
            old_values.append(values)
            advantages.append(plain_gae(rewards, values.tolist()))
            results["returns"].append([a + v for a, v in zip(advantages[-1], values.tolist(), strict=True)])
        values = torch.tensor([a for row in advantages for a in row], dtype=torch.float64)
        mean, std = values.mean().item(), values.std().item()
        results["advantages"] = [[(a - mean) / std for a in row] for row in advantages]

    param_groups = [{"params": list(policy.parameters()), "lr": RATE}]
    param_groups += [{"params": list(value_model.parameters()), "lr": VALUE_RATE}]
    optimizer = torch.optim.AdamW(param_groups, betas=BETAS, eps=EPS, weight_decay=0.0)
    for rows in minibatches:
        policy_terms, value_terms = [], []
        for i in rows:
            prompt, response = episodes[i]
            logprobs, values = plain_logprobs(policy, prompt, response), plain_values(value_model, prompt, response)
            for t in range(len(response)):
                ratio, advantage = (logprobs[t] - old[i][t]).exp(), results["advantages"][i][t]
                policy_terms.append(-min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage))
                target, before = results["returns"][i][t], old_values[i][t]
                clipped = before + (values[t] - before).clamp(-CLIP_VALUE, CLIP_VALUE)
                value_terms.append(0.5 * max((values[t] - target) ** 2, (clipped - target) ** 2))
        loss = torch.stack(policy_terms).mean() + VF_COEF * torch.stack(value_terms).mean()
        optimizer.zero_grad()
        loss.backward()
        results["loss"].append(loss.item())
        models = (policy, value_model)
        results["grads"].append([p.grad.clone() for m in models for p in m.parameters() if p.grad is not None])
        optimizer.step()
    return results


class Gradients(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        models = (model.policy, model.value)
        self.steps.append([p.grad.clone() for m in models for p in m.parameters() if p.grad is not None])


@pytest.mark.parametrize(("kind", "packed"), [("llama", False), ("gpt2", False), ("llama", True), ("gpt2", True)])
def test_one_rollout_agrees_with_plain_torch(tmp_path, kind, packed, request):
    if packed:
        request.getfixturevalue("packed_on_cpu")
    args = ppo_config(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, num_mini_batches=2, total_episodes=12,
        learning_rate=RATE, value_learning_rate=VALUE_RATE, adam_epsilon=EPS,
        temperature=TEMPERATURE, kl_coef=KL_COEF, cliprange=CLIP,
        cliprange_value=CLIP_VALUE, vf_coef=VF_COEF, gamma=GAMMA, lam=LAM, max_grad_norm=0.0, logging_steps=1,
        missing_eos_penalty=1.5, response_length=7,
    )  # fmt: skip
    gradients = Gradients()
    layout = separate(kind)
    layout["ref_model"].get_input_embeddings().weight.data.mul_(0.9)  # so that the KL is not 0
    ppo = trainer(args, layout, callbacks=[gradients], train_dataset=prompts(9))

    ids = [word_tokenizer()(text)["input_ids"] for text in prompts(9)["prompt"]]
    rows = prompt_rows(0, 12, 9, args.seed)
    uniforms = sampling_uniforms(12, 7, args.seed, 0)
    plain = {role: model.eval() for role, model in separate(kind).items()}  # no dropout
    plain["ref_model"].get_input_embeddings().weight.data.mul_(0.9)
    with torch.no_grad():
        episodes = [(ids[r], plain_sample(plain["model"], ids[r], uniforms[i])) for i, r in enumerate(rows)]
    assert len({len(response) for _, response in episodes}) > 1, "lengths should differ"
    assert {response[-1] == EOS for _, response in episodes} == {True, False}
    order = torch.randperm(2, generator=random_generator("order", args.seed, 0, 0)).tolist()
    results = plain_ppo(
        plain["model"], plain["ref_model"], plain["reward_model"], plain["value_model"], episodes,
        [[i for i in range(12) if i % 2 == m] for m in order],
    )  # fmt: skip

    ppo.train()
    assert ppo.actor_critic._packed == packed
    seen = set()
    for batch in ppo.rollout.micro_batches():
        for i, row in enumerate(batch.rows):
            response = episodes[row][1]
            length = len(response)
            assert batch.input_ids[i, -batch.response_mask.shape[1] :][:length].tolist() == response
            assert batch.response_mask[i].sum() == length
            _close(batch.advantages[i, :length], results["advantages"][row])
            _close(batch.returns[i, :length], results["returns"][row])
            seen.add(row)
    assert seen == set(range(12))
    _close([row["loss"] for row in ppo.state.log_history if "loss" in row], results["loss"])
    for ours, theirs in zip(gradients.steps, results["grads"], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for ours, theirs in ((ppo.actor_critic.policy, plain["model"]), (ppo.actor_critic.value, plain["value_model"])):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def _close(ours, theirs):
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
