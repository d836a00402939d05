"""Console of a stage: facts, the table of progress, the end."""

import io
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf.data.first_example import shortened
from rlhf.runs import console, progress
from rlhf.runs.console import amount, duration, next_command, parameters, say, show, show_end, show_rows, skipped_rows
from rlhf.runs.progress import COLUMNS, ProgressTable, watch
from tests.toys import bpe_model


def toy_trainer(folder, **options) -> Trainer:
    rows = Dataset.from_dict({"input_ids": [[i % 40 + 1] * 4 for i in range(40)]})
    rows = rows.map(lambda row: {"labels": row["input_ids"]}).with_format("torch")
    plain = {"report_to": "none", "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "seed": 0}
    args = TrainingArguments(str(folder), per_device_train_batch_size=2, **plain | options)
    return Trainer(bpe_model(), args, train_dataset=rows, eval_dataset=rows.select(range(4)))


def test_a_training_prints_few_rows_and_no_dict(tmp_path, capsys):
    trainer = toy_trainer(tmp_path, num_train_epochs=2, eval_strategy="epoch")
    watch(trainer, "sft", "toy")
    capsys.readouterr()
    trainer.train()
    shown = capsys.readouterr()
    assert "{" not in shown.out and not shown.err.strip()  # no dict, and no bar where there is no terminal
    lines = shown.out.splitlines()
    head = next(i for i, line in enumerate(lines) if "time left" in line)
    rows = lines[head + 1 :]
    assert 5 <= len(rows) <= progress.ROWS + 2 <= 8  # of 40 logs, so that two stages fit on a screen
    assert rows[-1].split()[:2] == ["40", "2.00"] and rows[-1].endswith("0 s")
    assert len({len(line) for line in lines[head:]}) == 1  # columns are flush
    evaluated = trainer.state.log_history[-2]["eval_loss"]
    assert f"{evaluated:.3f}" in rows[-1]  # beside the training loss of the same step
    assert any(line.startswith("run       2 epochs, 40 steps of 2 rows") for line in lines)


def test_transformers_own_output_is_replaced(tmp_path):
    for hidden in (True, False):
        trainer = toy_trainer(tmp_path, disable_tqdm=hidden)
        watch(trainer, "sft", "toy")
        kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
        assert ProgressTable in kinds and not kinds & {ProgressCallback, PrinterCallback}


def test_rows_of_a_slow_run_are_five_minutes_apart_and_the_time_is_estimated(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    args, state = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True), TrainerState(max_steps=10_000)
    table = ProgressTable(COLUMNS["sft"], "toy")
    table.on_train_begin(args, state, None)
    for step in range(1, 31):  # of a minute each
        now[0] += 60
        table.on_step_begin(args, state, None)
        state.global_step, state.epoch = step, step / 100
        table.on_step_end(args, state, None)
        table.on_log(args, state, None, logs={"loss": 1.0, "learning_rate": 0.1, "num_tokens": 6000 * step})
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [int(line.split()[0]) for line in rows] == [1, 6, 11, 16, 21, 26]
    assert rows[1].split()[-5:] == ["100", "166", "h", "34", "min"]  # tokens a second, time left
    assert "estimate  166 h 41 min in all, until " in out and out.count("estimate") == 1


def test_a_run_of_minutes_has_no_line_about_its_end(tmp_path, monkeypatch, capsys):
    """The table's last column says it."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    args, state = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True), TrainerState(max_steps=9)
    table = ProgressTable(COLUMNS["sft"], "toy")
    table.on_train_begin(args, state, None)
    for step in range(1, 9):
        now[0] += 60
        table.on_step_begin(args, state, None)
        state.global_step, state.epoch = step, step / 9
        table.on_step_end(args, state, None)
        table.on_log(args, state, None, logs={"loss": 1.0})
    shown = capsys.readouterr().out
    assert "estimate" not in shown and "7 min" in shown


def test_a_row_says_the_validation_loss_only_where_it_was_measured():
    table = ProgressTable(COLUMNS["sft"], "toy")
    table.active, table.values, table.left, table.estimated, table.headed = True, {"loss": 1.0}, None, True, True
    table.started = table.printed = table.next_row = 0.0
    table._print_row(TrainerState(max_steps=10, global_step=1))
    assert table.values == {}


def test_other_processes_print_nothing(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    show("rows", "3")
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_codes_of_a_color_take_no_room(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    show("result", "word " * 18, "1")  # 90 columns beside the name
    assert out.getvalue().count("\n") == 1 and "\033[1mword" in out.getvalue()


@pytest.mark.parametrize(
    ("stream", "variables", "colored"),
    [(Terminal, {}, True), (Terminal, {"NO_COLOR": "1"}, False), (Terminal, {"TERM": "dumb"}, False),
     (io.StringIO, {}, False)],
)  # fmt: skip
def test_colors_are_for_terminals(monkeypatch, stream, variables, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", out := stream())
    show("rows", "3")
    assert ("\033[" in out.getvalue()) == colored and "3" in out.getvalue()


def test_a_character_that_the_terminal_lacks_ends_no_stage(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    say("Grüße ⏎")
    out.seek(0)
    assert out.read() == "Gr??e ?\n"


def test_skipped_rows_are_counted_by_reason(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    reasons = ["prompt is empty", "312 tokens, more than 256", "900 tokens, more than 256"]
    lines = [json.dumps({"file": "a.jsonl", "row": "line 1", "reason": reason}) for reason in reasons]
    (tmp_path / console.SKIPPED).write_text("\n".join(lines) + "\n", encoding="utf-8")
    show_rows("a.jsonl", 2, 1, [10, 30], 256, str(tmp_path))
    out = capsys.readouterr().out
    assert "rows      2 to train on, 1 held out; 20 tokens on average, 30 at most (limit 256); from a.jsonl" in out
    assert "3 rows (" in out and "2 because of: 312 tokens, more than 256" in out and "1 because of: prompt is" in out
    assert skipped_rows(tmp_path / "none") == ""


def test_long_texts_are_shortened_in_the_middle():
    assert shortened("a\nb") == "a⏎b"
    assert shortened("a" * 1000 + "end").endswith("aend") and len(shortened("a" * 1000)) < 350


def test_the_next_command_is_the_recipes_next_stage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, elsewhere = Path("recipes", "mine"), Path("elsewhere", "recipes", "mine")
    for folder in (recipe, elsewhere):
        folder.mkdir(parents=True)
        for stage in ("sft", "reward", "ppo"):
            (folder / f"{stage}.yaml").touch()
    argv = ["recipes/sft.py", "--config", str(recipe / "sft.yaml"), "--seed", "1"]
    assert next_command("sft", argv) == "rlhf reward mine"
    assert next_command("reward", argv) == "rlhf ppo mine"  # the recipe has no choose.yaml
    assert next_command("ppo", argv) is None
    other = ["recipes/sft.py", "--config", str(elsewhere / "sft.yaml")]
    assert next_command("sft", other) == f"rlhf reward {elsewhere}", "the name is that of another recipe"
    assert next_command("sft", ["recipes/sft.py"]) is None
    assert next_command("sft", [*argv, "--output_dir=runs/other"]) is None, "the recipe's next stage would not read it"
    monkeypatch.setattr(console, "SHOW_NEXT", False)
    assert next_command("sft", argv) is None, "the demo starts it"


def test_seam_f22_a_finished_stage_says_where_its_results_are(tmp_path, capsys):
    show_end("epoch 2 of 3 has the lowest loss", tmp_path, 130.0, "sft")
    out = capsys.readouterr().out
    assert "result    epoch 2 of 3 has the lowest loss" in out and "time      2 min" in out
    assert str(tmp_path) in out.replace("\n          ", "")


def test_numbers_for_people():
    assert [amount(n) for n in (12, 1234, 135_000_000, 8.03e9)] == ["12", "1.23 k", "135 M", "8.03 B"]
    assert [duration(s) for s in (5, 89, 600, 11_100)] == ["5 s", "89 s", "10 min", "3 h 05 min"]


def test_trained_parameters_are_counted():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.requires_grad = False
    assert parameters(model) == (8, 2)
