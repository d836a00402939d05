"""docs/faults.md, section E: adapters that were not trained with this library bring no tokenizer, or a plain one."""

import shutil

import pytest
from chat_families import family_tokenizer, save_family
from small_stages import run_stage
from toys import save_adapter
from trl import ModelConfig

from rlhf.models.contracts import check_agreement
from rlhf.models.loading import load_tokenizer
from rlhf.models.stages import load_adapter_tokenizer, load_stage_tokenizer
from rlhf.models.stop_tokens import stop_token_texts
from rlhf.runs.contract import read_contract


@pytest.fixture
def bare_adapter(own_run):
    """An adapter as `peft` alone saves it."""
    (own_run / "bare").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(own_run / "sft" / name, own_run / "bare" / name)
    return own_run / "bare"


def test_seam_e19_an_sft_adapter_without_a_tokenizer_starts_a_reward_model(own_run, bare_adapter):
    reward = run_stage("reward", own_run, sft_model_path=bare_adapter, output_dir=own_run / "new")
    ours, theirs = read_contract(reward), read_contract(own_run / "reward")
    assert ours is not None and theirs is not None
    assert (ours.tokenizer, ours.rows) == (theirs.tokenizer, theirs.rows)


def test_seam_e19_a_tokenizer_of_trl_stops_where_the_base_does_also_if_that_has_moved(tmp_path):
    save_family("gemma-2", tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "sft", "sft")
    family_tokenizer("gemma-2", loaded=False).save_pretrained(tmp_path / "sft")
    stops = stop_token_texts(load_tokenizer(str(tmp_path / "base")))
    (tmp_path / "base").rename(tmp_path / "moved")
    model_args = ModelConfig(model_name_or_path=str(tmp_path / "moved"))
    assert stops == ["<eos>", "<end_of_turn>"]
    assert stop_token_texts(load_adapter_tokenizer(model_args, tmp_path / "sft")) == stops


def test_seam_e19_the_tokenizer_of_the_revision_is_read_for_an_adapter_without_one(own_run, bare_adapter, monkeypatch):
    asked = []

    def load(name, revision="main", eos_token=None):
        asked.append((name, revision))
        return load_tokenizer(str(own_run / "base"))

    monkeypatch.setattr("rlhf.models.stages.load_tokenizer", load)
    model_args = ModelConfig(model_name_or_path=str(own_run / "base"), model_revision="v2")
    load_stage_tokenizer(model_args, {"sft": bare_adapter})
    load_adapter_tokenizer(model_args, bare_adapter)
    load_adapter_tokenizer(model_args, own_run / "sft")  # a folder has no revisions
    assert asked == [(str(own_run / "base"), "v2")] * 2 + [(str(own_run / "sft"), "main")]


def test_seam_e20_a_policy_that_starts_the_next_round_is_not_its_own_parent(own_run, caplog):
    assert check_agreement({"sft": own_run / "ppo"})["sft"].stage == "ppo"
    assert "another sft adapter" not in caplog.text
