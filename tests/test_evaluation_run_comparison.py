"""`rlhf report` of several runs: its page, numbers over seeds, paired win rates, and what it never overwrites."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from test_runs_listing import write_stage
from test_runs_stage_report import metrics, write_jsonl

from rlhf.evaluation.preferences import compare, score_of
from rlhf.evaluation.run_comparison import MARK, write_comparison
from rlhf.evaluation.run_seeds import groups_of, over_seeds, seeds_table
from rlhf.evaluation.run_wins import agree, win_parts
from rlhf.runs.listing import find_runs
from rlhf.statistics import cluster_mean

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "report.py"


def write_run(folder, score=1.0, stage="ppo", **settings):
    write_stage(folder / stage, stage, {"objective/score": score, "objective/kl": 2.0}, **settings)
    write_jsonl(folder / stage / "metrics.jsonl", metrics(stage))
    return folder


def write_evaluation(folder, scores, judge="gold", about="the truth", keys=None, base=0.0):
    """Writes an evaluation in which `ppo` has one answer for each score, and `base` gives the same one everywhere."""
    keys = keys or [f"p{i}" for i in range(len(scores))]
    own = {"kind": "scores", "about": about, "win_rate": {"ppo": {"mean": 0.5, "low": 0.4, "high": 0.6}}, "mean": None}
    (folder / "summary.json").write_text(json.dumps({"judges": {judge: own}, "baseline": "sft"}))
    rows = [
        {"prompt_id": i, "key": key, "system": system, "response": f"{system} {score}", "ended": True,
         "scores": {judge: score}}
        for i, (key, own) in enumerate(zip(keys, scores, strict=True))
        for system, score in (("base", base), ("ppo", own))
    ]  # fmt: skip
    write_jsonl(folder / "evaluate" / "completions.jsonl", rows)
    write_stage(folder / "evaluate", result={"prompts": len(keys)})


@pytest.fixture
def report(monkeypatch, tmp_path, capsys):
    """Returns a function that runs the command in tmp_path and returns its exit code and what it printed."""
    monkeypatch.chdir(tmp_path)

    def function(*args):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, args)])
        code = 0
        try:
            runpy.run_path(str(RECIPE), run_name="__main__")
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, (printed.out + printed.err).strip()

    return function


# ---- The page


def test_the_page_of_several_runs_stands_alone_and_beside_no_report(report, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, kl_coef={"a": 0.02, "b": 0.2}[name])
    assert report("runs/a", "runs/b") == (0, "runs/compare-a-b.html")
    page = Path("runs/compare-a-b.html").read_text()
    assert MARK in page and "kl_coef 0.02" in page and page.count("<svg") == 1
    assert "KL from the reference" in page and "report/" not in page
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|(src|href)=\"(?!#)", page)
    assert not list(tmp_path.rglob("report.html"))
    assert report("runs/a", "runs/b", "runs/compare-a-b.html") == (0, "runs/compare-a-b.html"), "as runs/* has it"
    assert report("runs") == (0, "runs/compare.html")


def test_many_names_become_a_digest_of_the_folders(report, tmp_path):
    folders = [write_run(tmp_path / "runs" / f"{'long' * 10}-{i}", seed=i) for i in range(3)]
    code, printed = report(*folders)
    assert code == 0 and re.fullmatch(r"runs/compare-3-runs-[0-9a-f]{8}\.html", printed)
    assert report(*folders[:2])[1] != printed


def test_nothing_but_an_earlier_comparison_is_overwritten(report, tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / "runs" / name, seed=ord(name))
    Path("notes.html").write_text("<p>mine")
    assert report("runs/a", "runs/b", "--output", "other/page.html") == (0, "other/page.html")
    assert report("runs/a", "runs/b", "--output", "other/page.html")[0] == 0
    for output in ("notes.html", "runs/a/ppo/report.html", "runs", "page.txt"):
        code, printed = report("runs/a", "runs/b", "--output", output)
        assert code == 2 and f"output {output}" in printed.replace("output is", "output"), printed
    assert Path("notes.html").read_text() == "<p>mine"


def test_one_run_gets_its_own_reports_again(report, tmp_path):
    write_run(tmp_path / "runs" / "a")
    assert report("runs/a") == (0, "runs/a/ppo/report.html")
    assert report("runs/a/ppo") == (0, "runs/a/ppo/report.html")
    assert "Finished" in Path("runs/a/ppo/report.html").read_text()
    assert report("runs/a", "--output", "page.html")[0] == 2
    write_run(tmp_path / "runs" / "a", stage="sft")
    assert report("runs/a/sft", "runs/a/ppo") == (0, "runs/a/sft/report.html\nruns/a/ppo/report.html")


@pytest.mark.parametrize(
    ("args", "part"), [(["none"], "none does not exist"), (["empty"], "holds no run"), ([], "runs")]
)
def test_folders_without_runs_are_a_mistake(report, args, part):
    Path("empty").mkdir()
    code, printed = report(*args)
    assert code == 2 and part in printed and "Traceback" not in printed


def test_runs_of_one_name_are_told_apart_by_the_folder_above(report, tmp_path):
    for home in ("x", "y"):
        write_run(tmp_path / home / "a")
    assert report("x/a", "y/a") == (0, "compare-a-a.html")
    assert "x/a" in Path("compare-a-a.html").read_text()


def test_a_run_without_numbers_does_not_spoil_the_page(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_stage(tmp_path / "b" / "ppo", seed=2)
    (tmp_path / "b" / "ppo" / "metrics.jsonl").write_text('{"step": 1, "objective/score": null}\n{"st')
    page = write_comparison(find_runs(tmp_path), folder=tmp_path).read_text()
    assert "Not finished: b." in page


# ---- Over seeds


def test_runs_that_differ_in_seeds_alone_are_a_group_with_a_t_interval(tmp_path):
    for beta in (0.02, 0.2):
        for seed in (0, 1, 2):
            write_run(tmp_path / f"{beta}-{seed}", score=seed + beta, kl_coef=beta, seed=seed, output_dir="")
    runs = find_runs(tmp_path)
    groups = groups_of(runs)
    assert {name: len(members) for name, members in groups.items()} == {"kl_coef 0.02": 3, "kl_coef 0.2": 3}
    table = seeds_table(groups)
    row = dict(zip([column.title for column in table.columns], table.rows[0], strict=True))
    expected = cluster_mean([0.02, 1.02, 2.02], [0, 1, 2])
    assert row["ppo: reward in training"] == pytest.approx(expected.__dict__)
    assert expected.high - expected.mean == pytest.approx(4.303 / 3**0.5, rel=1e-3), "Student's t of 2 degrees, sd 1"
    assert "in the seed of ppo." in table.note
    page = write_comparison(runs, folder=tmp_path).read_text()
    assert "Over seeds" in page and page.count("<svg") == 2


def test_a_measured_run_is_of_the_same_group_as_one_that_was_not_measured(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", score=float(seed), seed=seed)
    for stage in ("benchmark", "evaluate"):
        write_stage(tmp_path / "seed-0" / stage, result={}, limit=100)
    assert [len(members) for members in groups_of(find_runs(tmp_path)).values()] == [3]


def test_a_number_that_not_all_seeds_have_says_how_many_do(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", score=float(seed), seed=seed)
    assert "has no such number" not in seeds_table(groups_of(find_runs(tmp_path))).note
    (tmp_path / "seed-2" / "ppo" / "result.json").unlink()
    note = seeds_table(groups_of(find_runs(tmp_path))).note
    assert re.search(r"ppo: reward in training of .* is over 2 of its 3 runs: the others have no such number", note)


def test_evaluations_with_other_settings_are_not_averaged_over_seeds(tmp_path):
    for seed in range(3):
        write_run(tmp_path / f"seed-{seed}", score=float(seed), seed=seed)
        write_evaluation(tmp_path / f"seed-{seed}", [0.0, 1.0])
        write_stage(tmp_path / f"seed-{seed}" / "evaluate", result={"prompts": 2}, max_new_tokens=64, seed=seed)
    table = seeds_table(groups_of(find_runs(tmp_path)))
    assert any(column.title.startswith("evaluate: ") for column in table.columns) and "left out" not in table.note
    write_stage(tmp_path / "seed-2" / "evaluate", result={"prompts": 2}, max_new_tokens=8, seed=2)
    table = seeds_table(groups_of(find_runs(tmp_path)))
    assert not any(column.title.startswith("evaluate: ") for column in table.columns)
    assert "differ in their settings, and are left out" in table.note


def test_the_same_seed_again_is_no_further_seed(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_run(tmp_path / name, seed=seed)
    assert sorted(map(len, groups_of(find_runs(tmp_path)).values())) == [1, 2]
    assert over_seeds([1.0])["low"] is None and over_seeds([]) is None


def test_runs_without_a_common_setting_are_groups_of_their_own(tmp_path):
    for name, beta in (("a", 0.1), ("b", 0.2)):
        write_run(tmp_path / name, seed=0, kl_coef=beta)
    assert list(groups_of(find_runs(tmp_path))) == ["a", "b"]
    assert seeds_table(groups_of(find_runs(tmp_path))).rows == []


# ---- Win rates


def wins(root):
    *tables, last = [*win_parts(find_runs(root)), None]
    return tables if last is None else [*tables, last]


def test_win_rates_are_paired_by_prompt_and_clustered(tmp_path):
    ours, theirs = [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 4.0, 1.0]
    keys = ["p", "q", "r", "r"]  # a prompt that comes twice
    for name, scores in (("a", ours), ("b", theirs)):
        write_run(tmp_path / name)
        write_evaluation(tmp_path / name, scores, keys=keys)
    (table,) = wins(tmp_path)
    rows = [
        {"prompt_id": i, "key": key, "system": name, "scores": {"gold": score}}
        for name, scores in (("a", ours), ("b", theirs))
        for i, (key, score) in enumerate(zip(keys, scores, strict=True))
    ]
    expected = compare(rows, "a", "b", score_of("gold"))
    assert table.rows[0][2]["mean"] == expected.mean == 0.625
    assert table.rows[0][2]["low"] == expected.low
    assert table.rows[1][1]["mean"] == pytest.approx(1 - expected.mean)
    assert table.rows[1][1]["low"] == pytest.approx(1 - expected.high)
    assert [row[0] for row in table.rows] == ["a", "b"] and table.rows[0][1] == ""


def test_only_common_prompts_count(tmp_path):
    for name, keys in (("a", ["p", "q"]), ("b", ["q", "r"]), ("c", ["s", "t"])):
        write_run(tmp_path / name)
        write_evaluation(tmp_path / name, [1.0, 2.0], keys=keys)
    table, remarks = wins(tmp_path)
    assert table.rows[0][2]["mean"] == 1.0, "of prompt q alone"
    assert remarks.sentences == ["a and c have no prompt in common.", "b and c have no prompt in common."]


@pytest.mark.parametrize(
    ("base", "about", "comparable"), [(0.0, "other words", True), (9.0, "the truth", False), (None, "other", False)]
)
def test_scores_of_two_judges_of_one_name_are_not_compared(tmp_path, base, about, comparable):
    for name, one, words in (("a", 0.0, "the truth"), ("b", base, about)):
        write_run(tmp_path / name)
        write_evaluation(tmp_path / name, [1.0, 2.0], about=words, base=one)
    if base is not None:  # the same answer of the base with the same or another score
        path = tmp_path / "b" / "evaluate" / "completions.jsonl"
        path.write_text(path.read_text().replace(f'"base {base}"', '"base 0.0"'))
    else:
        path = tmp_path / "b" / "evaluate" / "completions.jsonl"
        path.write_text(path.read_text().replace('"ppo ', '"other ').replace('"system": "other', '"system": "ppo'))
    parts = wins(tmp_path)
    assert (parts[0].kind == "table") is comparable
    if not comparable:
        assert "another judge" in parts[0].sentences[0]


def test_runs_that_were_not_evaluated_are_named_with_the_remedy(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    write_evaluation(tmp_path / "a", [1.0])
    (tmp_path / "b" / "evaluate").mkdir()
    (tmp_path / "b" / "evaluate" / "completions.jsonl").write_text("{")
    (remarks,) = wins(tmp_path)
    assert remarks.sentences[0].startswith("Not evaluated, so not compared here: b. Run rlhf evaluate")


def test_agreement_on_equal_answers():
    row = {"key": "p", "response": "x", "ended": True, "scores": {"gold": 1.0}}
    assert agree("gold", [row], [row]) is True
    assert agree("gold", [row], [row | {"scores": {"gold": 2.0}}]) is False
    assert agree("gold", [row], [row | {"ended": False}]) is None
