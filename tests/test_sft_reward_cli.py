"""SFT, reward model and choice of an epoch through the real command line, on local files."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from toys import save_toy
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf.data.splits import split_of
from rlhf.models.reward_model import load_reward_model
from rlhf.runs.artifacts import read_metrics, read_result

ROOT = Path(__file__).parent.parent
SHORT = dict(bf16=False, gradient_checkpointing=False, learning_rate=0.01, lora_r=4, logging_steps=1, report_to="none")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def demonstration(i):
    return {"prompt": [{"role": "user", "content": f"Question {i}?"}], "completion": f"Answer {i} it is."}


def document(i):
    return {"text": f"Document {i} is about apples and pears. " * (1 + i % 3)}


# Numbers of questions whose conversations are in the split.
TRAIN = [i for i in range(60) if split_of(demonstration(i)) == "train"][:24]
VALIDATION = [i for i in range(300) if split_of(demonstration(i)) == "validation"][:10]


def comparison(i):
    k = 2 + i % 4
    texts = [f"Answer {i} it is.", "no", "Apples and pears", "no no no", "?"][:k]
    row = {"prompt": [{"role": "user", "content": f"Question {i}?"}], "completions": texts, "ranks": list(range(k))}
    return {**row, "labeler_group": "heldout" if i % 3 == 0 else "training", "labeler_id": f"labeler {i % 6}"}


def launch(recipe, config, *options):
    """Runs a recipe as a user would; returns the finished process."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu.yaml"]
    command += [f"recipes/{recipe}.py", "--config", str(config), *map(str, options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a base model, data and one YAML for each stage."""
    home = tmp_path_factory.mktemp("home")
    save_toy(home / "base")
    for name, row in (("demonstrations", demonstration), ("comparisons", comparison), ("documents", document)):
        (home / name).mkdir()
        write_rows(home / name / "train.jsonl", map(row, TRAIN))
        write_rows(home / name / "validation.jsonl", map(row, VALIDATION))
    common = {"model_name_or_path": str(home / "base"), **SHORT}
    sft = {**common, "dataset_name": str(home / "demonstrations"), "output_dir": str(home / "sft")}
    sft |= {"num_train_epochs": 3, "max_length": 64}
    reward = {**common, "dataset_name": str(home / "comparisons"), "output_dir": str(home / "reward")}
    reward |= {"sft_model_path": str(home / "sft"), "calibration_dataset": str(home / "demonstrations")}
    choose = {"sft_path": str(home / "sft"), "reward_model_path": str(home / "reward")}
    choose |= {"dataset_name": sft["dataset_name"], "choice_prompts": 4, "choice_max_new_tokens": 8}
    for name, config in (("sft", sft), ("reward", reward), ("choose", choose)):
        (home / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def sft(home):
    process = launch("sft", home / "sft.yaml", "--per_device_train_batch_size", 4)
    assert process.returncode == 0, process.stderr[-3000:]
    return home / "sft"


@pytest.fixture(scope="module")
def reward(home, sft):
    process = launch("reward", home / "reward.yaml", "--num_train_epochs", 6, "--gradient_accumulation_steps", 1)
    assert process.returncode == 0, process.stderr[-3000:]
    return home / "reward"


def test_sft_keeps_the_epoch_with_the_lowest_validation_loss(sft):
    result = read_result(sft)
    assert [row["epoch"] for row in result["epochs"]] == [1.0, 2.0, 3.0]
    best = min(result["epochs"], key=lambda row: row["eval_loss"])
    assert (result["chosen"], result["chosen_by"]) == (best["checkpoint"], "eval_loss")
    assert result["epochs"][-1]["eval_loss"] < result["epochs"][0]["eval_loss"]
    chosen = (sft / result["chosen"] / "adapter_model.safetensors").read_bytes()
    assert (sft / "adapter_model.safetensors").read_bytes() == chosen
    assert any("loss" in row for row in read_metrics(sft))
    assert {"config.yaml", "environment.json", "README.md", "tokenizer.json"} <= {path.name for path in sft.iterdir()}
    config = yaml.safe_load((sft / "config.yaml").read_text())
    assert (config["per_device_train_batch_size"], config["lora_dropout"]) == (4, 0.2)


def test_sft_loads_with_plain_peft(sft):
    model = AutoPeftModelForCausalLM.from_pretrained(sft)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "Question 3?"}], add_generation_prompt=True)
    prompt = torch.tensor([ids["input_ids"]])
    with model.disable_adapter():
        base = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8)
    tuned = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8)
    assert base.tolist() != tuned.tolist()


def test_pretraining_text_is_mixed_in(home, sft, tmp_path):
    options = ["--pretrain_mix", 0.5, "--pretrain_dataset_name", home / "documents", home / "documents" / "train.jsonl"]
    options += ["--pretrain_mix_weights", 1, 2, "--num_train_epochs", 2, "--output_dir", tmp_path / "run"]
    process = launch("sft", home / "sft.yaml", "--per_device_train_batch_size", 4, *options)
    assert process.returncode == 0, process.stderr[-3000:]
    result, plain = read_result(tmp_path / "run"), read_result(sft)
    tokenizer = AutoTokenizer.from_pretrained(sft)
    # max_length 64 means 63 predicted tokens per block. A mix of 0.5: as many as in the responses with their EOS.
    responses = sum(len(tokenizer(" " + demonstration(i)["completion"])["input_ids"]) + 1 for i in TRAIN)
    assert result["n_text_blocks"] == round(responses / 63) > 0
    assert (result["n_train"], result["n_validation"]) == (plain["n_train"], plain["n_validation"]) == (24, 10)
    assert plain["n_text_blocks"] == 0
    assert result["chosen_by"] == "eval_loss"
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["pretrain_mix"], config["pretrain_mix_weights"]) == (0.5, [1.0, 2.0])


def test_reward_learns_reports_and_calibrates(home, reward):
    result = read_result(reward)
    assert result["accuracy"] > 0.7  # the order is the same for every prompt
    assert result["low"] <= result["accuracy"] <= result["high"]
    assert set(result["accuracy_by_k"]) == {"2", "3", "4", "5"}
    assert set(result["accuracy_by_group"]) == {"training", "heldout"}
    assert sum(row["n_pairs"] for row in result["accuracy_by_k"].values()) == result["n_pairs"]
    assert sum(row["n_pairs"] for row in result["reliability"]) == result["n_pairs"]
    assert json.loads((reward / "calibration.json").read_text())["bias"] == result["calibration"]["bias"]

    tokenizer = AutoTokenizer.from_pretrained(reward)
    model = load_reward_model(reward)
    scores = []
    for row in map(demonstration, VALIDATION):
        messages = [*row["prompt"], {"role": "assistant", "content": row["completion"]}]
        text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip("\n")
        scores.append(model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item())
    assert sum(scores) / len(scores) == pytest.approx(0.0, abs=1e-4)


def test_reward_draws_what_it_reports(reward):
    result = read_result(reward)
    assert f"| all | {result['accuracy']:.3f} |" in (reward / "report.md").read_text()
    assert "<svg" in (reward / "reliability.svg").read_text()
    assert len(result["accuracy_by_margin"]) == 5
    assert 0 <= result["calibration_error"] <= 1
    assert -1 <= result["length"]["correlation_within_prompts"] <= 1
    assert result["labeler_gap"] is None  # both groups are trained on


def test_cross_validation_by_labelers(home, tmp_path):
    options = ["--cross_validate", "labelers", "--num_train_epochs", 6, "--gradient_accumulation_steps", 1]
    config = yaml.safe_load((home / "reward.yaml").read_text())
    config["sft_model_path"] = ""  # overrides the path of a recipe
    config["output_dir"] = str(tmp_path / "reward")
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(config))
    process = launch("reward", tmp_path / "reward.yaml", *options)
    assert process.returncode == 0, process.stderr[-3000:]
    folder = tmp_path / "reward" / "cross_validate_labelers"
    assert [path.name for path in (tmp_path / "reward").iterdir()] == [folder.name]
    assert not any(path.name.startswith(("checkpoint", "adapter")) for path in folder.iterdir())
    result = read_result(folder)
    assert sorted(name for fold in result["folds"] for name in fold["held_out"]) == [f"labeler {i}" for i in range(6)]
    assert sum(fold["n_pairs"] for fold in result["folds"]) == result["n_pairs"]
    assert result["accuracy"] > 0.7
    assert result["training_labelers"]["n_pairs"] > 0
    text = (folder / "report.md").read_text()
    assert text in process.stdout
    assert f"| all |  | {result['accuracy']:.3f} |" in text

    (folder / "fold-2.json").unlink()  # as if the run had been stopped before its end
    written = (folder / "fold-1.json").stat().st_mtime_ns
    process = launch("reward", tmp_path / "reward.yaml", *options, "--resume_from_checkpoint", "true")
    assert process.returncode == 0, process.stderr[-3000:]
    again = read_result(folder)
    assert (folder / "fold-1.json").stat().st_mtime_ns == written  # trained once
    assert again | {"seconds": 0} == result | {"seconds": 0}  # a fold does not depend on those before it

    settings = (folder / "config.yaml").read_text()
    other = ["--resume_from_checkpoint", "true", "--learning_rate", 0.5]
    process = launch("reward", tmp_path / "reward.yaml", *options, *other)
    assert process.returncode and "was trained with learning_rate" in process.stderr, process.stderr[-3000:]
    assert (folder / "config.yaml").read_text() == settings  # as of the result in the folder


def test_reward_loads_with_plain_peft(home, reward):
    classifier = AutoModelForSequenceClassification.from_pretrained(home / "base", num_labels=1)
    model = PeftModel.from_pretrained(classifier, reward).eval()
    ids = torch.tensor([[5, 6, 7]])
    raw, calibrated = model(ids).logits.item(), load_reward_model(reward)(ids).logits.item()
    assert raw - read_result(reward)["calibration"]["bias"] == pytest.approx(calibrated, abs=1e-5)


def test_choosing_by_reward_afterwards(home, sft, reward):
    process = launch("choose", home / "choose.yaml")
    assert process.returncode == 0, process.stderr[-3000:]
    result = read_result(sft)
    best = max(result["epochs"], key=lambda row: row["rm_score"])
    assert (result["chosen"], result["chosen_by"]) == (best["checkpoint"], "rm_score")
    assert all("eval_loss" in row for row in result["epochs"])
    chosen = (sft / result["chosen"] / "adapter_model.safetensors").read_bytes()
    assert (sft / "adapter_model.safetensors").read_bytes() == chosen


def test_two_processes_train_as_one_does(home, tmp_path):
    """24 prompts with K = 2..5, in the same order: the two processes have different numbers of completions."""
    options = ["--train_sampling_strategy", "sequential", "--adam_epsilon", 1e-3, "--completions_per_forward", 3]
    options += ["--num_train_epochs", 2, "--save_strategy", "no"]
    config = yaml.safe_load((home / "reward.yaml").read_text())
    del config["sft_model_path"]
    (tmp_path / "reward.yaml").write_text(yaml.safe_dump(config))
    results = []
    for processes, batch in ((1, 4), (2, 2)):
        folder = tmp_path / str(processes)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", processes, "--standalone"]
        command += ["recipes/reward.py", "--config", tmp_path / "reward.yaml", "--output_dir", folder, *options]
        command += ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", 1, "--use_cpu", "true"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        process = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        assert process.returncode == 0, process.stderr[-3000:]
        results.append((load_file(folder / "adapter_model.safetensors"), read_metrics(folder), read_result(folder)))
    (one, one_metrics, one_result), (two, two_metrics, two_result) = results
    for name, weight in one.items():
        torch.testing.assert_close(weight, two[name], atol=1e-5, rtol=1e-4)
    losses = [[row["loss"] for row in metrics if "loss" in row] for metrics in (one_metrics, two_metrics)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name in ("accuracy", "low", "high", "n_pairs", "n_prompts", "eval_loss"):
        assert one_result[name] == pytest.approx(two_result[name], abs=1e-5), name


def refused(recipe, config, *options, capsys, monkeypatch):
    """Runs a recipe that must end with one error line and exit code 2; returns the line."""
    monkeypatch.setattr(sys, "argv", [recipe, "--config", str(config), *map(str, options)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(f"recipes/{recipe}.py", run_name="__main__")
    assert exit.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def no_model_is_loaded(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rlhf.models.loading._load", fail)


def test_bad_input_is_one_sentence_before_a_model_is_loaded(home, sft, tmp_path, capsys, monkeypatch):
    no_model_is_loaded(monkeypatch)
    other_base = str(save_toy(tmp_path / "other", seed=5))
    row = comparison(0)
    cases = [
        ("sft", ["--resume_from_checkpoint", "true", "--output_dir", tmp_path / "new"], "no checkpoint to resume from"),
        ("sft", ["--reward_model_path", tmp_path / "none"], "does not exist"),
        ("sft", ["--max_length", 12], "more than max_length (12 tokens"),
        ("sft", ["--learning_rat", 1], "learning_rate"),
        ("sft", ["--pretrain_mix", 0.1], "needs both pretrain_mix and pretrain_dataset_name"),
        ("sft", ["--pretrain_dataset_name", home / "documents"], "needs both pretrain_mix and pretrain_dataset_name"),
        ("sft", ["--pretrain_mix", 1.5], "pretrain_mix is 1.5"),
        ("sft", ["--pretrain_mix", 0.1, "--pretrain_dataset_name", home / "comparisons"], "text"),
        ("reward", ["--sft_model_path", tmp_path / "none"], "does not exist"),
        ("reward", ["--model_name_or_path", other_base], "was trained on"),
        ("reward", ["--lora_r", 8], "lora_r 4, not 8"),
        ("reward", ["--max_length", 12], "more than max_length (12 tokens"),
        ("reward", ["--calibration_dataset", tmp_path / "none"], "does not exist"),
        ("reward", ["--calibration_size", 0], "calibration_size is 0; it must be at least 1"),
        ("reward", ["--completions_per_forward", 0], "completions_per_forward is 0"),
        ("reward", ["--cross_validate", "labels"], "invalid choice"),
        ("reward", ["--cross_validate", "labelers", "--resume_from_checkpoint", "runs/x"], "every finished fold"),
        ("choose", ["--reward_model_path", sft], "is not a reward model"),
        ("choose", ["--sft_path", tmp_path], "missing"),
        ("reward", {**row, "completions": ["one"], "ranks": [0]}, "K = 1"),
        ("reward", {**row, "ranks": [0]}, "ranks"),
        ("reward", {**row, "completions": ["", "b"]}, "empty"),
        ("reward", {"prompt": "p"}, "completions"),
    ]
    for recipe, options, sentence in cases:
        if isinstance(options, dict):
            path = tmp_path / "bad.jsonl"
            write_rows(path, [*map(comparison, range(1, 9)), options])
            options = ["--dataset_name", path]
        if recipe != "choose" and "--output_dir" not in options:  # not where a finished run is
            options = [*options, "--output_dir", tmp_path / "new"]
        config = home / f"{recipe.removesuffix('_sft')}.yaml"
        error = refused(recipe, config, *options, capsys=capsys, monkeypatch=monkeypatch)
        assert sentence in error, error


def test_long_rows_are_skipped_and_listed_if_wanted(home, tmp_path):
    rows = [demonstration(i) for i in TRAIN[:8]]
    rows[3]["completion"] = "very " * 100
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    write_rows(tmp_path / "data" / "validation.jsonl", [demonstration(VALIDATION[0])])
    options = ["--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "run", "--on_bad_rows", "skip"]
    process = launch("sft", home / "sft.yaml", *options, "--num_train_epochs", 1)
    assert process.returncode == 0, process.stderr[-3000:]
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "skipped_rows.jsonl").read_text().splitlines()]
    assert "more than max_length (64 tokens" in record["reason"]
    assert read_result(tmp_path / "run")["n_train"] == 7
