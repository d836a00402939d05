"""docs/faults.md, section E: a reward adapter is used with its calibration and at its base's revision."""

import json
from pathlib import Path

import pytest
from small_stages import run_recipe, run_stage
from toys import save_adapter, save_toy
from trl import ModelConfig

from rlhf.models.adapter_files import write_calibration
from rlhf.models.loading import load_base, load_sequence_classifier, load_tokenizer
from rlhf.models.reward_model import load_reward_model
from rlhf.models.shared_base import SharedBase
from rlhf.runs.contract import Contract, write_contract


@pytest.fixture
def reward(tmp_path):
    """A reward adapter without tokenizer."""
    save_toy(tmp_path / "base")
    save_adapter(tmp_path / "base", tmp_path / "reward", "reward")
    return tmp_path / "reward"


def test_seam_e21_a_reward_adapter_without_calibration_is_said_once(reward, tmp_path, caplog):
    args = ModelConfig(model_name_or_path=str(tmp_path / "base"))
    shared = SharedBase(load_base(args, load_tokenizer(str(tmp_path / "base"))))
    shared.add_adapter("calibrated", folder=reward, head=True)
    (reward / "calibration.json").unlink()
    shared.add_adapter("sft", folder=reward)  # its head is not used
    assert "calibration.json" not in caplog.text
    shared.add_adapter("reward", folder=reward, head=True)
    shared.add_adapter("value", folder=reward, head=True)
    load_reward_model(reward)
    assert caplog.text.count("has no calibration.json: its scores are raw") == 1
    assert [shared.heads[name].bias.item() for name in ("calibrated", "reward")] == [-0.25, 0.0]


def test_seam_e21_a_calibrated_reward_adapter_says_nothing(reward, caplog):
    write_calibration(reward, 0.0)
    load_reward_model(reward)
    assert "calibration.json" not in caplog.text


def test_seam_e22_a_reward_model_is_loaded_at_the_revision_of_its_contract(reward, tmp_path, monkeypatch):
    config = json.loads((reward / "adapter_config.json").read_text())
    (reward / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "owner/model"}))
    write_contract(reward, Contract("reward", base={"name": "owner/model", "revision": "c0ffee"}))
    base, asked = str(tmp_path / "base"), []

    def tokenizer(name, revision="main", eos_token=None):
        asked.append((name, revision))
        return load_tokenizer(base)

    def classifier(args, tokenizer):
        asked.append((args.model_name_or_path, args.model_revision))
        return load_sequence_classifier(ModelConfig(model_name_or_path=base), tokenizer)

    monkeypatch.setattr("rlhf.models.stages.load_tokenizer", tokenizer)
    monkeypatch.setattr("rlhf.models.reward_model.load_sequence_classifier", classifier)
    load_reward_model(reward)
    assert asked == [("owner/model", "c0ffee")] * 2


def test_seam_e23_evaluate_reads_adapters_once_and_says_once_what_it_finds(own_run, caplog, monkeypatch):
    contract = own_run / "ppo" / "contract.json"
    content = json.loads(contract.read_text())
    content["parents"]["sft"] = "0" * 16
    contract.write_text(json.dumps(content))
    loaded = []
    monkeypatch.setattr(
        "rlhf.models.stages.load_tokenizer", lambda *a, **k: loaded.append(a) or load_tokenizer(*a, **k)
    )
    paths = {f"{stage}_model_path": own_run / stage for stage in ("sft", "reward", "ppo")}
    options = {"dataset_name": own_run / "prompts", "output_dir": own_run / "evaluate", "max_new_tokens": 2}
    run_recipe("evaluate", paths | options)
    assert caplog.text.count("was trained against another sft adapter") == 1
    assert sum(Path(name).name == "sft" for name, *_ in loaded) == 1


def test_seam_f23_a_longer_resumed_run_says_so_once(own_run, caplog):
    run_stage("sft", own_run, resume_from_checkpoint="true", num_train_epochs=3)
    assert caplog.text.count("the learning rate follows the new length") == 1
