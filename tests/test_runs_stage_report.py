"""The page of a stage: its curves and samples, drawn while it trains and when it ends."""

import json
import re
import time

import pytest
from transformers import TrainerState, TrainingArguments

from rlhf.runs import stage_report
from rlhf.runs.stage_report import PANELS, LiveReport, points, read_samples, with_episodes, write_stage_report


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def metrics(stage, steps=3):
    names = {metric for lines in PANELS[stage].values() for metric in lines.values()}
    row = {"epoch": 0.1, "seconds": 1.0, **dict.fromkeys(names, 0.5)}
    return [{"step": step, **row} for step in range(1, steps)]


@pytest.mark.parametrize("stage", PANELS)
def test_the_page_holds_each_curve_and_needs_no_other_file(tmp_path, stage):
    write_jsonl(tmp_path / stage / "metrics.jsonl", metrics(stage))
    assert "Not finished" in write_stage_report(tmp_path / stage, stage).read_text(encoding="utf-8")
    (tmp_path / stage / "result.json").write_text("{}")
    page = write_stage_report(tmp_path / stage, stage).read_text(encoding="utf-8")
    for title in PANELS[stage]:
        assert title in page
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|(src|href)=\"(?!#)", page)
    assert "Finished" in page and "refresh" not in page


def test_the_page_of_a_training_loads_itself_again(tmp_path):
    write_jsonl(tmp_path / "metrics.jsonl", metrics("sft"))
    page = write_stage_report(tmp_path, "sft", "step 2 of 9").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' in page and "Training, step 2 of 9" in page


def test_a_stage_without_numbers_has_a_page(tmp_path):
    assert "Nothing was logged" in write_stage_report(tmp_path, "sft").read_text(encoding="utf-8")


def test_answers_with_markup_are_shown_as_they_are(tmp_path):
    texts = {"prompt": "<b>Hi</b>", "response": "<script>alert(1)</script>"}
    sample = {"step": 0, "source": "train", **texts, "score": 1.0, "kl": 0.0, "length": 3, "ended": False}
    write_jsonl(tmp_path / "samples.jsonl", [sample])
    page = write_stage_report(tmp_path, "ppo").read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page and "<script" not in page and "3, cut" in page


def test_evaluations_get_the_episode_of_their_step():
    x, rows = with_episodes([{"step": 8, "episode": 256}, {"step": 16, "eval_loss": 1.0}, {"step": 24, "episode": 768}])
    assert x == "episode" and [row["episode"] for row in rows] == [256, 512, 768]
    assert with_episodes([{"step": 1}])[0] == "step"


def test_values_that_are_not_finite_leave_a_gap():
    assert points([{"step": 1, "loss": None}, {"step": 2, "loss": 3.0}, {"step": 3}], "step", "loss") == ([2], [3.0])
    assert len(points([{"step": i, "loss": 0.0} for i in range(10_000)], "step", "loss")[0]) <= 500


def test_samples_are_few_of_each_step_and_span_the_run(tmp_path):
    rows = [{"step": step, "source": "train", "n": n} for step in range(100) for n in range(4)]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    with open(tmp_path / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 100, "sou')  # being written
    samples = read_samples(tmp_path / "samples.jsonl")
    assert len(samples) == 40 and samples[0] == rows[0] and samples[-1]["step"] == 99
    assert {row["n"] for row in samples} == {0, 1}


@pytest.fixture
def live(tmp_path, monkeypatch):
    """Returns a callback, a function that logs at a time in seconds, and the times at which the page was drawn."""
    now, drawn, cost = [0.0], [], [0.5]

    def draw(folder, stage, progress):
        drawn.append(now[0])
        now[0] += cost[0]

    monkeypatch.setattr(stage_report.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(stage_report, "write_stage_report", draw)
    write_jsonl(tmp_path / "metrics.jsonl", metrics("sft"))
    args, state = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(max_steps=9)
    callback = LiveReport("sft")
    callback.on_train_begin(args, state, None)

    def log(seconds):
        now[0] = max(now[0], seconds)
        callback.on_log(args, state, None, logs={})

    return log, drawn, cost


def test_the_page_is_drawn_once_a_minute_at_most(live):
    log, drawn, _ = live
    for second in range(0, 300, 5):
        log(second)
    assert drawn == [60, 125, 190, 255]


def test_slow_drawing_takes_a_fiftieth_of_the_time(live):
    log, drawn, cost = live
    cost[0] = 6.0
    for second in range(0, 700, 10):
        log(second)
    assert drawn == [60, 370, 680]


def test_other_processes_do_not_draw(tmp_path):
    callback, state = LiveReport("sft"), TrainerState(is_world_process_zero=False)
    callback.on_train_begin(None, state, None)
    assert callback.due == float("inf")


def test_a_page_that_cannot_be_written_does_not_end_the_training(tmp_path, caplog):
    write_jsonl(tmp_path / "metrics.jsonl", metrics("sft"))
    (tmp_path / f".{stage_report.NAME}.new").mkdir()  # in the way
    callback, args = LiveReport("sft"), TrainingArguments(str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, TrainerState(), None)
    callback.due = time.monotonic()
    for _ in range(2):
        callback.on_log(args, TrainerState(max_steps=2), None, logs={"loss": 1.0})
    assert len(caplog.messages) == 1 and "not drawn any more" in caplog.messages[0]
