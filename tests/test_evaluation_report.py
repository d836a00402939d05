"""The report: complete, self-contained, explicit about missing stages, and safe against markup in answers."""

import json
import re

import pytest

from rlhf.evaluation.report import duration, faults, read_stages, render, write_report
from rlhf.evaluation.report_fields import ARMS
from rlhf.evaluation.summary import summarize

SETTINGS = {
    "systems": {"sft_best": {"best_of": 16}},
    "dataset": "sandbox",
    "model": "sandbox",
    "split": "test",
    "seed": 0,
    "max_new_tokens": 8,
}
LIMITS = {"labeler_agreement": 0.73, "attainable_accuracy": 0.78}


def make_rows(arms=ARMS, gold=True, reward=True):
    rows = []
    for i in range(6):
        for j, arm in enumerate(arms):
            overall = min(1.0, (i + j) / 8)
            flags = {"follows_instruction": overall > 0.3, "rude": i == j}
            rows.append(
                {
                    "prompt_id": i,
                    "key": f"key {i}",
                    "category": "open_qa" if i % 2 else "chat",
                    "prompt": [{"role": "user", "content": f"instruction {i}"}],
                    "system": arm,
                    "response": f"<script>answer of {arm} to {i}</script>",
                    "ended": i != 1,
                    "tokens": 5,
                    "kl": 3.0 if arm == "ppo" else None,
                    "scores": ({"gold": overall} if gold else {}) | ({"reward": overall - 0.2} if reward else {}),
                    "likert": {"gold": 4} if gold else {},
                    "flags": {"gold": flags} if gold else {},
                    "preferences": {},
                }
            )
    return rows


def accuracy(value):
    return {"accuracy": value, "low": value - 0.02, "high": value + 0.02, "n_pairs": 100, "n_prompts": 10}


@pytest.fixture
def run(tmp_path):
    """Folders as three finished stages leave them."""

    def stage(name, result, metrics=()):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
        (folder / "config.yaml").write_text(f"learning_rate: 0.001 # of {name}\n")
        (folder / "environment.json").write_text(json.dumps({"python": "3.11.2", "packages": {"trl": "1.12.0"}}))

    checkpoints = [
        {"epoch": e, "checkpoint": f"checkpoint-{e}", "eval_loss": 2.0 - e, "rm_score": e, "rm_score_se": 0.1}
        for e in (1, 2)
    ]
    losses = [{"step": e, "epoch": e, "seconds": e, "loss": 2.0 - e, "eval_loss": 2.5 - e} for e in (1, 2)]
    stage("sft", {"seconds": 75.0, "choice_seconds": 12.0, "epochs": checkpoints, "chosen": "checkpoint-2"}, losses)
    by_k, by_group = {"4": accuracy(0.7)}, {"training": accuracy(0.71), "heldout": accuracy(0.69)}
    curve = [{"predicted": 0.6, "observed": 0.62, "n_pairs": 50}, {"predicted": 0.9, "observed": 0.8, "n_pairs": 50}]
    reward = {**accuracy(0.7), "accuracy_by_k": by_k, "accuracy_by_group": by_group, "reliability": curve}
    stage("reward", {"seconds": 100.0, **reward})
    rollouts = [{"step": 8 * i, "episode": 64 * i, "objective/score": i, "objective/kl": i} for i in (1, 2)]
    stage("ppo", {"seconds": 200.0}, rollouts)
    return tmp_path


def judges_of(rows):
    kinds = {"gold": {"kind": "scores", "about": ""}, "reward": {"kind": "scores", "about": "", "optimized": True}}
    return {name: kinds[name] for name in rows[0]["scores"]}


def page(run, rows, **settings):
    stages = read_stages(run)
    results = {name: stage.result for name, stage in stages.items()}
    return render("A run", summarize(rows, judges_of(rows), results, {**SETTINGS, **settings}, 30.0), rows, stages)


def test_everything_is_on_the_page(run):
    html = page(run, make_rows(), **LIMITS)
    assert "Not run" not in html
    assert "not run" not in html
    assert html.count("data:image/svg+xml;base64,") == 6
    assert "On 6 held-out prompts, the gold judge prefers" in " ".join(html.split())
    assert "epoch 2, by the reward model" in " ".join(html.split())
    for text in ("instruction 0", "open qa", "learning_rate: 0.001 # of ppo", "1.12.0", "3 min 20 s", "78\u202f%"):
        assert text in html


def test_page_needs_nothing_from_outside(run):
    html = page(run, make_rows(), **LIMITS)
    assert re.findall(r"""(?:src|href)=["'](?!data:)[^"']*""", html) == []
    assert not re.search(r"https?://|@import|url\(|<script", html)


def test_markup_in_answers_and_prompts_is_text(run):
    html = page(run, make_rows())
    assert "<script>" not in html
    assert "&lt;script&gt;answer of ppo_greedy to 0&lt;/script&gt;" in html


def test_same_numbers_same_page(run):
    assert page(run, make_rows()) == page(run, make_rows())


def test_stages_that_were_not_run_are_named(tmp_path):
    html = page(tmp_path, make_rows(("base", "base_greedy")))
    text = " ".join(html.split())
    assert "Neither SFT nor PPO was run" in text
    for absent in ("SFT loss and reward-model score by epoch", "PPO: reward, KL, length, entropy"):
        assert f"there is no data for “{absent}”" in text
    assert "there is no result of the reward model’s stage" in text


def test_run_that_is_cut_short_is_read_as_far_as_it_went(run):
    (run / "ppo" / "result.json").unlink()
    (run / "reward" / "result.json").write_text(json.dumps({"seconds": 1.0}))  # no comparisons to evaluate on
    html = page(run, make_rows(("base", "sft", "base_greedy", "sft_greedy")))
    assert "PPO was not run." in html
    assert "there is no data for “Reward model accuracy”" in html
    assert "there is no data for “PPO: reward, KL, length, entropy”" not in html  # its curves are there


def test_without_gold_the_page_says_who_judged(run):
    text = " ".join(page(run, make_rows(gold=False)).split())
    assert "There is no gold judge for this data" in text
    assert "the reward model prefers RLHF’s answer" in text
    assert "Mean reward" in text
    assert "Mean gold score" not in text


def test_without_any_judge_there_is_still_a_page(run):
    text = " ".join(page(run, make_rows(gold=False, reward=False)).split())
    assert "there is no data for “Win rates”" in text
    assert "No judge was given" in text


def test_write_report_takes_the_summary_as_it_is_in_memory(run, tmp_path):
    rows = make_rows()
    write_report(
        tmp_path / "report.html", "A run", summarize(rows, judges_of(rows), {}, SETTINGS, 1.0), rows, read_stages(run)
    )
    assert (tmp_path / "report.html").read_text(encoding="utf-8").endswith("</html>\n")


def test_faults_are_unwanted_axes_that_hold_and_wanted_ones_that_do_not():
    verdict = {
        "follows_instruction": False,
        "complete": True,
        "satisfies_constraint": None,
        "rude": True,
        "padded": False,
    }
    assert faults(verdict) == ["misses the instruction", "rude"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (8.6, "9 s"), (59.7, "1 min 0 s"), (512.3, "8 min 32 s"), (7300, "2 h 1 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
