"""Toys of all architectures through all stages, against single unpadded passes."""

import json
import math

import pytest
import torch
from architectures import ARCHITECTURES, prompt, run_stages, save_architecture, write_data
from safetensors.torch import load_file
from trl import ModelConfig

from rlhf.data.encode import encode_prompt
from rlhf.generation.completions import completion_logprobs, completion_rewards
from rlhf.generation.random_numbers import inverse_cdf, sampling_uniforms
from rlhf.generation.sampler import sample, stop_tokens
from rlhf.models.reward_model import load_reward_model
from rlhf.models.stages import load_adapters
from rlhf.ppo.layouts import SharedActorCritic
from rlhf.ppo.rollout import micro_batch
from rlhf.runs.artifacts import read_metrics

FEW = ["gemma2", "gemma3", "granite", "mixtral", "opt_350m"]
LENGTH = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.architectures) for name in ARCHITECTURES]
)
def test_seam_h3_an_architecture_passes_all_stages(name, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run_stages(save_architecture(name, tmp_path / "base"), data, tmp_path)
    check_training(tmp_path)
    check_passes(tmp_path)


def check_training(run):
    """All losses are finite, and every layer of every adapter has learned."""
    for stage in ("sft", "reward", "ppo"):
        losses = [value for row in read_metrics(run / stage) for key, value in row.items() if "loss" in key]
        assert losses and all(math.isfinite(loss) for loss in losses), stage
    adapters = {stage: load_file(run / stage / "adapter_model.safetensors") for stage in ("sft", "reward", "ppo")}
    layers = [key for key in adapters["sft"] if "lora_B" in key]
    assert len(layers) >= 2 and layers == [key for key in adapters["ppo"] if "lora_B" in key]
    assert all(adapters["sft"][key].any() for key in layers)
    for stage in ("reward", "ppo"):
        same = [key for key in layers if torch.equal(adapters[stage][key], adapters["sft"][key])]
        assert not same, (stage, same)
    rows = [json.loads(line) for line in (run / "evaluate" / "completions.jsonl").read_text().splitlines()]
    assert {row["system"] for row in rows} >= {"base", "sft", "ppo"}
    assert all(math.isfinite(row["scores"]["reward"]) for row in rows)


@torch.no_grad()
def check_passes(run):
    """Sampling, log-probabilities and scores of batches are those of single unpadded passes without a cache."""
    adapters = {"sft": run / "sft", "policy": run / "ppo", "reward": run / "reward"}
    shared, tokenizer = load_adapters(ModelConfig(), adapters)
    shared.add_adapter("value", folder=run / "reward", head=True)
    prompts = [encode_prompt(tokenizer, prompt(i)) for i in range(6)]
    uniforms, stops = sampling_uniforms(len(prompts), LENGTH, "test"), stop_tokens(shared.lm, tokenizer)
    with shared.use("policy"):
        options = dict(temperature=1.0, stop_ids=[*stops, *range(5, 40)], pad_id=tokenizer.pad_token_id)
        responses = sample(shared.lm, prompts, uniforms, batch_size=6, **options)
    assert len({len(ids) for ids in responses}) > 1  # finished rows have left the batch

    logprobs, scores = [], []
    reward_model = load_reward_model(run / "reward")
    for row, (ids, response) in enumerate(zip(prompts, responses, strict=True)):
        whole = torch.tensor([ids + response])
        with shared.use("policy"):
            logits = shared.lm(input_ids=whole, use_cache=False).logits[0, len(ids) - 1 : -1]
        assert response == inverse_cdf(logits, uniforms[row, : len(response)], 1.0).tolist()
        chosen = torch.tensor(response)[:, None]
        logprobs.append(logits.log_softmax(-1).gather(1, chosen).squeeze(1))
        scores.append(reward_model(whole).logits.squeeze())

    torch.testing.assert_close(
        completion_logprobs(shared, "policy", prompts, responses), [x.sum().item() for x in logprobs], atol=1e-4, rtol=0
    )
    naive = torch.stack(scores)
    torch.testing.assert_close(
        torch.tensor(completion_rewards(shared, "reward", prompts, responses)), naive, atol=1e-4, rtol=1e-5
    )
    batch = micro_batch(list(range(6)), prompts, responses, stops, tokenizer.pad_token_id, shared.device)
    networks = SharedActorCritic(shared)
    policy, values = networks("policy_and_value", **batch.inputs())
    torch.testing.assert_close(policy[batch.response_mask], torch.cat(logprobs), atol=1e-4, rtol=0)
    _, rewards = networks("reference_and_reward", **batch.inputs())
    torch.testing.assert_close(rewards, naive, atol=1e-4, rtol=1e-5)
    first = torch.stack([reward_model(torch.tensor([ids])).logits.squeeze() for ids in prompts])
    torch.testing.assert_close(values[:, 0], first, atol=1e-4, rtol=1e-5)
