"""Files that the trainer's own push_to_hub uploads."""

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
from toys import lora, ppo_config, separate, trainer

import rlhf.ppo.checkpointing
from rlhf.runs.model_card import model_card


@pytest.mark.parametrize("peft", [False, True])
def test_seam_i5_a_push_uploads_what_users_load(tmp_path, monkeypatch, peft):
    pushes = []

    def upload_folder(repo_id, folder_path, allow_patterns, commit_message, **_):
        files = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        uploaded = {file for file in files if any(fnmatch(file, pattern) for pattern in allow_patterns)}
        pushes.append((repo_id, commit_message, uploaded))

    monkeypatch.setattr(rlhf.ppo.checkpointing, "upload_folder", upload_folder)

    def init_hf_repo(self, **_):
        self.hub_model_id, self.push_in_progress = "me/toy", None

    monkeypatch.setattr("transformers.Trainer.init_hf_repo", init_hf_repo)
    layout = separate() | ({"ref_model": None, "peft_config": lora()} if peft else {})
    args = ppo_config(tmp_path / "toy", save_strategy="steps", save_steps=2, push_to_hub=True)
    ppo = trainer(args, layout)
    ppo.train()
    ppo.save_model()
    ppo.push_to_hub(dataset_name="org/data")
    weights = {"adapter_model.safetensors", "adapter_config.json"} if peft else {"model.safetensors", "config.json"}
    assert {repo for repo, _, _ in pushes} == {"me/toy"}
    assert [message.split(",")[0] for _, message, _ in pushes] == [
        "Training in progress",
        "Model save",
        "End of training",
    ]
    for number, (_, _, files) in enumerate(pushes):
        card = {"README.md"} if number else set()
        assert files >= weights | card | {"tokenizer.json", "tokenizer_config.json"}
        assert not {
            file for file in files if "/" in file or "state" in file or file.endswith((".jsonl", ".pt", ".bin"))
        }
    assert "org/data" in (tmp_path / "toy" / "README.md").read_text()


def test_seam_i11_the_cards_code_names_the_file_of_a_gguf_base(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "toy.gguf").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    for stage in ("sft", "reward", "ppo"):
        assert ', gguf_file="toy.gguf")' in model_card(tmp_path, stage)
    (tmp_path / "base" / "config.json").write_text("{}")
    assert "gguf_file" not in model_card(tmp_path, "sft")
