"""Agreement between labelers: verdicts by hand, and Krippendorff's own example."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from rlhf.agreement import krippendorff_alpha, pairwise_agreement
from rlhf.evaluation.agreement import agreement_report, verdicts


def ranked(labeler, ranks, prompt="Q", completions=("a", "b", "c")):
    return {"prompt": prompt, "completions": list(completions), "ranks": ranks, "labeler_id": labeler}


def test_pairs_of_labelers_by_hand():
    rows = [
        ranked("x", [0, 1, 2]),
        ranked("y", [0, 1, 1]),  # agrees on ab and ac, ties bc
        ranked("z", [1, 0], completions=("a", "b")),  # disagrees with both on ab
        ranked("z", [0, 1], prompt="R", completions=("a", "b")),  # nobody else judged it
        ranked(None, [1, 0], completions=("a", "b")),
    ]
    agreement = pairwise_agreement(verdicts(rows))
    assert (agreement.mean, agreement.n) == (pytest.approx(2 / 5), 5)  # ab: xy yes, xz no, yz no; ac: yes; bc: no


def test_order_of_completions_and_repeated_verdicts_do_not_count():
    rows = [ranked("x", [0, 1], completions=("b", "a")), ranked("y", [1, 0], completions=("a", "b"))]
    assert pairwise_agreement(verdicts(rows)).mean == 1.0
    assert verdicts([*rows, ranked("x", [1, 0], completions=("b", "a"))]) == verdicts(rows)


def test_nothing_shared_is_no_agreement():
    assert pairwise_agreement(verdicts([ranked("x", [0, 1, 2])])) is None
    assert krippendorff_alpha(verdicts([ranked("x", [0, 1, 2])])) is None
    same = [ranked("x", [0, 1], completions=("a", "b")), ranked("y", [0, 1], completions=("a", "b"))]
    assert krippendorff_alpha(verdicts(same)) is None  # chance would have agreed just as well


def test_krippendorffs_binary_example():
    """K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), A: two observers, ten units, alpha = .095."""
    pytest.importorskip("krippendorff")
    observers = {"Meg": [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], "Owen": [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]}
    rows = [
        ranked(name, [value, 1 - value], prompt=f"unit {unit}", completions=("a", "b"))
        for name, values in observers.items()
        for unit, value in enumerate(values)
    ]
    report = agreement_report(rows)
    assert report["krippendorff_alpha"] == pytest.approx(0.095, abs=5e-4)
    assert report["pairwise_agreement"]["mean"] == pytest.approx(0.6)
    assert (report["labelers"], report["items"], report["items_with_two_labelers"]) == (2, 10, 10)


def test_the_command_reads_votes(tmp_path, monkeypatch, capsys):
    pytest.importorskip("krippendorff")
    votes = [{"labeler_id": name, "better": 0, "worse": 1} for name in "xy"]
    other = [{"labeler_id": "x", "better": 0, "worse": 1}, {"labeler_id": "y", "better": 1, "worse": 0}]
    rows = [{"prompt": f"Q{i}", "completions": ["a", "b"], "votes": v} for i, v in enumerate([votes, votes, other])]
    (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = Path(__file__).parent.parent / "recipes" / "agreement.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--dataset_name", str(tmp_path / "votes.jsonl")])
    runpy.run_path(str(script), run_name="__main__")
    report = json.loads(capsys.readouterr().out)
    assert report["pairwise_agreement"]["mean"] == pytest.approx(2 / 3) and report["items"] == 3
