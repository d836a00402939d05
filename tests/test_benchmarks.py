"""Benchmarks run, and compare equal work. No test asserts a speed."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_reward_vs_trl(monkeypatch, capsys):
    options = "--k 2 3 --prompts 2 --prompt_tokens 8 --hidden_size 64 --layers 1 --rounds 1 --warmup 0"
    monkeypatch.setattr(sys, "argv", ["reward_vs_trl.py", *options.split()])
    runpy.run_path(str(ROOT / "benchmarks" / "reward_vs_trl.py"), run_name="__main__")
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["k"] for result in results] == [2, 3]
    for result in results:
        assert result["loss_difference"] < 1e-5
        assert abs(result["loss"] - 0.6931) > 1e-3  # the scores differ, so equal losses mean something
        assert result["speedup"] == pytest.approx(result["comparisons_per_s"] / result["comparisons_per_s_trl"])


def test_sandbox_faults_orders_pairs_with_each_fault(monkeypatch, capsys):
    base = str(ROOT / "rlhf" / "sandbox" / "base")
    monkeypatch.setattr(sys, "argv", ["sandbox_faults.py", "--base", base, "--pairs", "10"])
    runpy.run_path(str(ROOT / "benchmarks" / "sandbox_faults.py"), run_name="__main__")
    shares = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(shares) >= {"inventing", "careless: avoid", "rude", "padded"}
    assert shares["mistaken"] > 0.8  # the base reads the person and the thing that its heading names


def test_interval_coverage_of_each_statistic(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["interval_coverage.py", "--samples", "20", "--clusters", "5", "20"])
    runpy.run_path(str(ROOT / "benchmarks" / "interval_coverage.py"), run_name="__main__")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["samples"] == 20
    for cells in result["statistics"].values():
        assert list(cells) == ["5", "20"]
        assert all(0.7 <= cell["coverage"] <= 1 for cell in cells.values())
        assert cells["20"]["median_width"] < cells["5"]["median_width"]


def test_evaluation_runs_the_parts_it_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--parts", "coverage", "--samples", "10", "--clusters", "10"])
    runpy.run_path(str(ROOT / "benchmarks" / "evaluation.py"), run_name="__main__")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["coverage"]
    assert all(0 <= share <= 1 for cells in result["coverage"].values() for share in cells.values())


def test_label_load_finds_each_judgment_once_after_a_kill(monkeypatch, capsys):
    pytest.importorskip("starlette")
    options = "--labelers 4 --judgments 60 --kills 1 --think 0"
    monkeypatch.setattr(sys, "argv", ["label_load.py", *options.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / "label_load.py"), run_name="__main__")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ended.value.code == 0
    assert result["acknowledged"] == result["stored"] == result["exported"] == 60
    assert result["lost"] == result["changed"] == result["doubled"] == 0 and result["integrity"] == "ok"
    assert len(result["seconds_down"]) == 1


def test_function_reward_trains_each_setting_from_the_same_start(monkeypatch, capsys, toy_folder):
    options = f"--cpu --model {toy_folder} --rates 1e-3 1e-2 --episodes 8 --batch_size 4 --mini_batch_size 2"
    monkeypatch.setattr(sys, "argv", ["function_reward.py", *options.split()])
    found = runpy.run_path(str(ROOT / "benchmarks" / "function_reward.py"), run_name="__main__")
    low, high = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert low["steps"] == high["steps"] == 4
    assert low["score"][0] == high["score"][0]
    assert low["held_out_score"][0] == high["held_out_score"][0]
    sentiment = found["sentiment"]
    assert sentiment(["It was good, and bad.", "a great and Lovely day", "the sadness of a sad dog"]) == [
        0.0,
        1.0,
        -0.5,
    ]


def test_memory_compares_each_setting_with_the_formula(monkeypatch, capsys):
    options = "--stages reward --base float32 --rows 2 --tokens 16 --layers 1 --hidden_size 72 --vocabulary 64"
    monkeypatch.setattr(sys, "argv", ["memory.py", *options.split()])
    runpy.run_path(str(ROOT / "benchmarks" / "memory.py"), run_name="__main__")
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [(row["autocast"], row["checkpointing"]) for row in results] == [(a, c) for a in (0, 1) for c in (0, 1)]
    for row in results:
        assert row["measured_mb"] > 0 and row["error"] == pytest.approx(row["formula_mb"] / row["measured_mb"] - 1)
