"""Faults of TRL's PPOTrainer whose tests fit into no other file; docs/trl-faults.md names a test for each fault."""

import re
from pathlib import Path

import torch
from toys import VOCAB, ppo_config, separate, shared_base, trainer
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

ROOT = Path(__file__).parent.parent


def test_the_page_names_a_test_for_every_fault():
    page = (ROOT / "docs" / "trl-faults.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (.*) \|$", page, flags=re.MULTILINE))
    assert list(map(int, rows)) == list(range(1, 33))
    tests = {name for path in ROOT.glob("tests/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    for number, text in rows.items():
        named = set(re.findall(r"`(test_\w+)`", text))
        assert named, f"fault {number}"
        assert named <= tests, f"fault {number}"
        numbers = {int(digits) for name in named for digits in re.findall(r"_(\d\d)(?=_)", name)}
        assert int(number) in numbers, f"fault {number}"


# docs/trl-faults.md, faults 21 and 24
def test_fault_21_24_it_is_a_trainer_and_returns_what_trainers_return(tmp_path):
    ppo = trainer(ppo_config(tmp_path))
    assert isinstance(ppo, Trainer)
    assert vars(ppo).keys() >= vars(Trainer(separate()["model"], ppo_config(tmp_path / "plain"))).keys()
    output = ppo.train()
    assert isinstance(output, TrainOutput)
    assert output.global_step == 2


# docs/trl-faults.md, faults 25 and 26
def test_fault_25_26_logits_are_of_response_positions_and_none_are_kept(tmp_path, monkeypatch):
    """Logits are [rows, 1, V] in sampling, and [tokens, V] of response tokens elsewhere, here 3 tokens at a time."""
    monkeypatch.setattr("rlhf.models.logprobs.LOGITS", 3 * VOCAB)
    layout, shapes = separate(), []
    for name in ("model", "ref_model"):
        layout[name].lm_head.register_forward_hook(lambda m, i, logits: shapes.append(tuple(logits.shape[:-1])))
    ppo = trainer(ppo_config(tmp_path, total_episodes=8, num_ppo_epochs=1), layout)
    ppo.train()
    shapes.remove((1, 2)), shapes.remove((2,))  # `find_unembedding` compares two positions
    assert {shape[1] for shape in shapes if len(shape) == 2} == {1}
    chunks = [shape[0] for shape in shapes if len(shape) == 1]
    assert max(chunks) == 3
    tokens = sum(batch.response_mask.sum().item() for batch in ppo.rollout.micro_batches())
    # Policy and reference when scored, policy in forward and again in backward.
    assert sum(chunks) == 4 * tokens
    kept = [value for batch in ppo.rollout.micro_batches() for value in vars(batch).values()]
    assert all(value.ndim < 3 and VOCAB not in value.shape for value in kept if isinstance(value, torch.Tensor))


# docs/trl-faults.md, fault 27
def test_fault_27_four_roles_have_one_base(tmp_path):
    ppo = trainer(ppo_config(tmp_path), shared_base())
    names = [name for name, _ in ppo.actor_critic.named_parameters()]
    assert sum("embed_tokens" in name for name in names) == 1
    for role in ("policy", "sft", "value", "reward"):
        assert any(f".{role}." in name for name in names), role
