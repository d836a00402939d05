"""docs/faults.md, section D: `make check` finds before the first stage trains what a later one would end with."""

import json

import pytest
import yaml
from transformers import AutoConfig

from rlhf.models.short_base import save_short_base

PLAIN = {"bf16": False, "use_cpu": True, "report_to": "none", "lora_r": 4, "batch_size": 8}
DATA = {"dataset_name": "someone/not-here", "dataset_config": "en"}  # on the Hub: made-up rows take its place


@pytest.fixture
def check(load_recipe, toy_folder, tmp_path, monkeypatch, capsys):
    """Returns a function: changes of a recipe's YAMLs -> {stage: the line printed for it}, exit code."""

    def lines(processes: int = 1, **changes) -> tuple[dict[str, str], int]:
        base = {"model_name_or_path": toy_folder}
        stages = {
            "sft": base | DATA | PLAIN,
            "reward": base | DATA | PLAIN | {"sft_model_path": "runs/toy/sft", "max_length": 64},
            "ppo": base | DATA | PLAIN | {"sft_model_path": "runs/toy/sft", "reward_model_path": "runs/toy/reward"},
        }
        del stages["ppo"]["lora_r"]
        stages["ppo"] |= {"mini_batch_size": 8, "response_length": 8}
        (tmp_path / "recipe").mkdir(exist_ok=True)
        for stage, settings in stages.items():
            settings |= {"output_dir": str(tmp_path / "runs" / stage)} | changes.get(stage, {})
            (tmp_path / "recipe" / f"{stage}.yaml").write_text(yaml.safe_dump(settings))
        command = ["check.py", "--recipe", str(tmp_path / "recipe"), "--processes", str(processes)]
        monkeypatch.setattr("sys.argv", command)
        code = 0
        try:
            load_recipe("check").main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr().out.splitlines()
        return {line.split()[0]: line.split(maxsplit=1)[1] for line in printed}, code

    return lines


@pytest.mark.slow
def test_seam_d7_check_runs_all_stages_and_leaves_nothing(check, tmp_path):
    lines, code = check()
    assert code == 0
    assert {stage: line.split(",")[0] for stage, line in lines.items()} == {"sft": "ok", "reward": "ok", "ppo": "ok"}
    assert [path for path in (tmp_path / "runs").rglob("*") if path.is_file()] == []


@pytest.mark.slow
def test_seam_d7_check_finds_what_a_later_stage_would_end_with(check):
    lines, code = check(
        processes=3,
        sft={"save_strategy": "no", "batch_size": 9},
        reward={"batch_size": 9, "lora_r": 8},
        ppo={"max_prompt_length": 10_000},
    )
    assert code == 2
    assert lines["sft"].startswith("ok")
    assert "has lora_r 4, not 8" in lines["reward"]
    assert lines["ppo"] == "not checked: reward failed"


@pytest.mark.slow
def test_seam_d7_check_reads_the_yamls_as_they_are(check):
    lines, _ = check(processes=3, sft={"report_to": "nobody"}, reward={"sft_model_path": None}, ppo={})
    assert "report_to nobody is unknown" in lines["sft"]
    assert "batch_size 8 is not a multiple of the 3 processes" in lines["reward"]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_seam_d7_the_short_base_has_the_architecture_and_heads_of_the_base(kind, toy_folder, toy_gpt2_folder, tmp_path):
    folder = {"llama": toy_folder, "gpt2": toy_gpt2_folder}[kind]
    save_short_base(folder, "main", tmp_path)
    base, short = AutoConfig.from_pretrained(folder), AutoConfig.from_pretrained(tmp_path)
    assert (short.model_type, short.num_hidden_layers) == (base.model_type, 2)
    assert short.hidden_size // short.num_attention_heads == base.hidden_size // base.num_attention_heads
    assert json.loads((tmp_path / "tokenizer.json").read_text())
