"""Benchmarks run, and compare equal work. No test asserts a speed."""

import importlib
import json
import runpy
import subprocess
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


# ---- gpu.py


@pytest.fixture
def gpu(monkeypatch):
    """The functions of benchmarks/gpu.py."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def test_each_row_of_the_gpu_benchmark_runs_on_toys(gpu, capsys):
    results = gpu.run_rows([*gpu.ROWS], tiny=True)
    assert [result.get("error") for result in results] == [None] * len(gpu.ROWS)
    for result in results:
        assert result["seconds"] > 0 and result["flops"] and gpu.line_of(result)
        if "share" in result:
            assert 0 < result["share"] < result["computed_share"]
            assert result["tokens_per_s"] > 0
    full = next(result for result in results if result["row"] == "ppo-full")
    assert full["tokens"] == 2 * 4 * 32  # policy and value pass four episodes of 16 + 16 tokens
    assert full["computed_tokens"] == pytest.approx(full["tokens"], rel=0.05)  # no padding


def test_a_row_of_the_gpu_benchmark_that_fails_does_not_lose_the_others(gpu, monkeypatch, capsys, tmp_path):
    """Processes: one prints a row and an error and crashes, one is never in time, one works."""
    programs = {
        "ppo-varied": 'print(\'{"device": "Some GPU"}\');'
        'print(\'{"row": "ppo-varied", "seconds": 2.0, "flops": "f"}\', flush=True); raise SystemExit(3)',
        "nf4-8b": "import time; time.sleep(60)",
        "reward": 'print(\'{"row": "reward", "error": "OutOfMemoryError"}\')',
    }

    def start(rows, tiny):
        command = [sys.executable, "-c", programs[rows[0]]]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(gpu, "start_child", start)
    monkeypatch.setattr(gpu, "HISTORY", tmp_path)
    options = ["--rows", "ppo-varied", "ppo-full", "reward", "nf4-8b", "--seconds", "5", "--save"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit):
        gpu.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["row"] for row in report["rows"]] == ["ppo-varied"]
    assert report["failed"].keys() == {"ppo-full", "reward", "nf4-8b"}
    assert report["failed"]["ppo-full"] == "exit code 3" and report["failed"]["reward"] == "OutOfMemoryError"
    (saved,) = tmp_path.glob("*some-gpu*.json")
    check_history(saved)


def check_history(path: Path) -> None:
    """Asserts that a file of benchmarks/history names machine, commit, versions and the formula of each row."""
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report.keys() >= {"started", "commit", "machine", "rows", "failed", "seconds"}
    assert path.name.startswith(report["started"][:10]) and (report["commit"] or "nocommit") in path.name
    assert report["machine"]["device"] and not report["tiny"]
    for row in report["rows"]:
        assert row.keys() >= {"row", "seconds", "flops"}
        assert all(isinstance(value, int | float | str) for value in row.values())


def test_history_has_dated_results_with_machine_and_commit(gpu):
    for path in sorted(gpu.HISTORY.glob("*.json")):
        check_history(path)
