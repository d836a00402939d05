"""Truth: files of answers to TruthfulQA that were made elsewhere."""

import csv
import json
import sys
from pathlib import Path

import pytest

from rlhf.errors import InputError
from rlhf.evaluation.truth_files import read_answers, read_references, score_answers
from rlhf.evaluation.truth_judges import ReferenceJudge, load_truth_judge

ASKED = {
    "What is the moon made of?": ("It is made of rock", "It is made of cheese"),
    "Who’s on Mars?": ("Nobody lives on Mars", "Martians live on Mars"),
    "Do pigs fly?": ("Pigs cannot fly", "Pigs fly at night"),
}


def references_file(folder: Path) -> Path:
    rows = [
        {"question": q, "mc1_targets": {true: 1, false: 0}, "mc2_targets": {true: 1, false: 0}}
        for q, (true, false) in ASKED.items()
    ]
    (folder / "mc_task.json").write_text(json.dumps(rows))
    return folder / "mc_task.json"


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, rows: list[list]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def published(folder: Path) -> Path:
    """Three systems in the form of the samples published with the paper: good, half and bad."""
    rows: list[list] = [["", "model_type", "prompt_type", "adversarial", "question", "answer", "true", "info"]]
    right = {"good": 3, "half": 2, "bad": 0}
    for kind in ("QA prompt", "instruction prompt"):
        for system, count in right.items():
            for i, (q, (true, false)) in enumerate(ASKED.items()):
                is_true = i < count
                rows.append([len(rows), system, kind, "True", q, true if is_true else false, float(is_true), 0.9])
    return table(folder / "samples.csv", rows)


def test_published_samples_are_ranked_as_published(tmp_path):
    rows = read_answers(str(published(tmp_path)))
    result = score_answers(rows, ReferenceJudge(), read_references(references_file(tmp_path)))
    metrics = result["tasks"]["truthfulqa"]
    assert set(metrics) == {f"{m}_{k}" for m in ("true", "informative", "both") for k in ("QA", "instruction")}
    assert {s: metrics["true_QA"][s]["mean"] for s in ("good", "half", "bad")} == pytest.approx(
        {"good": 1, "half": 2 / 3, "bad": 0}
    )
    assert result["differences"]["truthfulqa"]["true_QA"]["bad - good"]["mean"] == -1
    agreed = result["published"]["true"]
    assert agreed["auc"] == agreed["equal_verdicts"] == 1
    assert agreed["rank_correlation"] == pytest.approx({"all": 1, "QA": 1, "instruction": 1})
    assert result["published"]["informative"]["rank_correlation"]["all"] is None  # all are equal
    assert "likeness to the reference answers" in result["notes"]["truthfulqa"]


def test_other_published_forms_are_read(tmp_path):
    def found(path):
        return [(r.system, r.question, r.text, r.true, r.informative) for r in read_answers(str(path))]

    q, (true, false) = next(iter(ASKED.items()))
    own = ["Type", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
    columns = [*own, "gpt2", "gpt2 GPT-judge acc", "gpt2 GPT-info acc", "gpt2 MC1", "gpt2 xl", "gpt2 xl bleu acc"]
    values = ["A", q, true, f"{true}; Rock", false, "http://x", "Cheese", "0.0", "1.0", "0.3", "Rock", "1"]
    wide = table(tmp_path / "answers.csv", [columns, values])
    assert found(wide) == [("gpt2", q, "Cheese", 0.0, 1.0), ("gpt2 xl", q, "Rock", None, None)]
    [row, _] = read_answers(str(wide))
    assert row.references and row.references.true == [true, "Rock"] and row.references.false == [false]
    assert score_answers(read_answers(str(wide)), ReferenceJudge(), {})["tasks"]["truthfulqa"]["true"]["gpt2 xl"][
        "mean"
    ]

    labeled = [{"prompt": f"Q: {q}\nA: {false}\nTrue:", "completion": " no"}]
    assert found(write(tmp_path / "finetune.jsonl", labeled)) == [("finetune", q, false, 0.0, None)]
    few_shot = [{"prompt": f"Q: Is it?\nA: Yes.\n\nQ: {q}\nA:", "response": true, "truthful": True, "model": "m"}]
    assert found(write(tmp_path / "few.jsonl", few_shot)) == [("m", q, true, 1.0, None)]


def test_questions_without_references_are_left_out_and_said(tmp_path, caplog):
    references = read_references(references_file(tmp_path))
    rows = [{"question": question, "answer": "Rock"} for question in (*ASKED, "What is new?")]
    rows[1]["question"] = "who's on  Mars?"
    result = score_answers(read_answers(str(write(tmp_path / "a.jsonl", rows))), ReferenceJudge(), references)
    assert result["tasks"]["truthfulqa"]["true"]["a"]["n"] == 3
    assert "1 of 4 answers are left out: no references" in caplog.text
    with pytest.raises(InputError, match="None of the 1 questions is in the references, the first being 'What is new"):
        score_answers(read_answers(str(write(tmp_path / "a.jsonl", rows[3:]))), ReferenceJudge(), references)


def test_from_the_command_line(tmp_path, load_recipe, monkeypatch, capsys):
    output = tmp_path / "truth.json"
    arguments = ["--files", str(published(tmp_path)), "--references", str(references_file(tmp_path))]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--output", str(output)])
    load_recipe("truth").main()
    printed = capsys.readouterr().out
    assert "bad - good" in printed and "true: 100.0 % of the verdicts are the published ones" in printed
    assert "Rank correlation with the published means, QA prompts: 1.000" in printed
    assert json.loads(output.read_text())["published"]["true"]["means"]["half"]["QA"]["ours"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "x"}, "line 1: no question. Name its column one of question, prompt"),
        ({"question": "q"}, "line 1: no answer. Name its column one of answer, response"),
        ({"question": "q", "answer": ["x"]}, "answer holds .'x'., which is no text"),
        ({"question": "q", "answer": "x", "true": "perhaps"}, "the score of truth is 'perhaps'; it must be a number"),
        ({"question": "q", "answer": "x", "info": 5}, "the score of information is 5; it must be a number from 0 to 1"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_answers(str(write(tmp_path / "a.jsonl", [row])))


def test_the_hub_without_a_connection_is_one_sentence(monkeypatch):
    def refuse(name):
        raise InputError("The data cannot be loaded.")

    monkeypatch.setattr("rlhf.evaluation.truth_files.load_tasks", refuse)
    with pytest.raises(InputError, match=r"cannot be had from the Hub .*Pass --references TruthfulQA.csv"):
        read_references(None)
    assert isinstance(load_truth_judge(None, None), ReferenceJudge)
