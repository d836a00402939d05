"""`rlhf new`: what it says of data, model and machine, and the recipe that it writes."""

import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from small_stages import write_rows
from toys import bpe_tokenizer, toy_config
from transformers import LlamaConfig

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_prompts
from rlhf.data.formats import detect
from rlhf.data.splits import split_of
from rlhf.errors import InputError
from rlhf.models.fitting import USABLE, in_process
from rlhf.models.loading import load_config, load_tokenizer
from rlhf.models.memory import sft_memory
from rlhf.models.model_sizes import Layout, shape_of
from rlhf.plan import devices
from rlhf.plan.devices import GPUS, Launch, this_cpu
from rlhf.plan.stages import layout_of
from rlhf.setup.data import choose_sources, look_at_data, rows_text
from rlhf.setup.fit import Lengths, fit, too_large
from rlhf.setup.languages import count_scripts, languages_text
from rlhf.setup.machine import Machine
from rlhf.setup.model import Model, look_at_model, similar_shape
from rlhf.setup.recipe import render
from rlhf.setup.settings import batch, gather_facts
from rlhf.setup.stages import STAGES, stages_of
from rlhf.sft.trainer import SFTModelConfig

ROOT = Path(__file__).resolve().parent.parent
CPU = Machine(cores=2, memory=16 * 10**9)
H100 = Machine(cores=16, memory=10**11, gpus=1, gpu="H100", gpu_memory=80 * 10**9, bf16=True)


def rankings(n: int) -> list[dict]:
    return [
        {"prompt": f"Question {i}?", "completions": [f"Bad {i}.", f"Good {i} it is."], "ranks": [1, 0]}
        for i in range(n)
    ]


@pytest.fixture
def csv(tmp_path, monkeypatch):
    """Writes 60 rankings as pandas does; returns the file's name in the current folder."""
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(rankings(60)).to_csv("rankings.csv", index=False)
    return "rankings.csv"


@pytest.fixture
def new(monkeypatch):
    """Runs recipes/new.py with a command line."""

    def start(*args: str) -> None:
        monkeypatch.setattr(sys, "argv", ["new.py", *args])
        runpy.run_path(str(ROOT / "recipes" / "new.py"), run_name="__main__")

    return start


def model_of(config: LlamaConfig, parameters: int, gguf: bool = False) -> Model:
    return Model("base", parameters, shape_of(config), 8192, ("q_proj",), gguf, True)


SMALL = model_of(LlamaConfig(num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                             num_key_value_heads=3, vocab_size=49152), 135_000_000)  # fmt: skip
LARGE = model_of(LlamaConfig(num_hidden_layers=32, hidden_size=4096, intermediate_size=14336, num_attention_heads=32,
                             num_key_value_heads=8, vocab_size=128256), 8_000_000_000)  # fmt: skip


# ---- Data


def test_the_best_answer_of_a_ranking_is_a_demonstration_if_it_is_asked_for(tmp_path, all_train):
    rows = [
        {"prompt": "Q", "completions": ["b", "a", "a too"], "ranks": [2, 0, 0], "labeler_id": "ann"},
        {"prompt": "tie", "completions": ["b", "a"], "ranks": [0, 0]},
        {"prompt": "R", "chosen": "yes", "rejected": "no"},
    ]
    path = str(write_rows(tmp_path / "a.jsonl", rows))
    found = load_demonstrations(DataArguments(path, dataset_format="best_answer"), "train")
    assert [(row["prompt"], row["completion"], row["labeler_id"]) for row in found] == [
        ("Q", "a", "ann"),
        ("R", "yes", None),
    ]
    assert all(detect(row) != "best_answer" for row in rows)
    with pytest.raises(InputError, match="no column completion"):
        load_demonstrations(DataArguments(path), "train")


def test_what_is_said_of_a_file_is_what_the_stages_read(csv, toy_tokenizer):
    held, missing = look_at_data(DataArguments(csv), toy_tokenizer)
    assert held.keys() == {"demonstrations", "comparisons", "prompts"}
    assert "no column text" in missing["pretraining"]
    for kind, load in {
        "demonstrations": load_demonstrations, "comparisons": load_comparisons, "prompts": load_prompts,
    }.items():  # fmt: skip
        for split, number in held[kind].rows.items():
            assert number == len(load(held[kind].args, split)), (kind, split)
    assert held["comparisons"].k == (2, 2)
    assert held["demonstrations"].args.dataset_format == "best_answer"
    assert held["comparisons"].lengths == [
        a + b for a, b in zip(held["comparisons"].prompts, held["comparisons"].answers, strict=True)
    ]
    assert rows_text(held["comparisons"]).startswith("60 (")


def test_a_folder_keeps_what_it_holds_out(tmp_path, toy_tokenizer):
    write_rows(tmp_path / "data" / "train.jsonl", rankings(60))
    write_rows(
        tmp_path / "data" / "validation.jsonl", [{**row, "prompt": "New " + row["prompt"]} for row in rankings(40)]
    )
    held, _ = look_at_data(DataArguments(str(tmp_path / "data")), toy_tokenizer)
    only = look_at_data(DataArguments(str(tmp_path / "data" / "train.jsonl")), toy_tokenizer)[0]
    assert held["comparisons"].rows["train"] == only["comparisons"].rows["train"]
    assert held["comparisons"].rows["test"] > only["comparisons"].rows["test"]
    assert f"{held['comparisons'].set_aside} that the source holds out are set aside" in rows_text(held["comparisons"])


def test_few_bad_rows_are_counted_and_named(tmp_path, toy_tokenizer):
    rows = rankings(60)
    rows[3]["ranks"] = [1]
    held, _ = look_at_data(DataArguments(str(write_rows(tmp_path / "a.jsonl", rows))), toy_tokenizer)
    assert (held["comparisons"].bad, held["comparisons"].read) == (1, 60)
    assert re.search(r"a.jsonl, line 4: column ranks is 1 entries for 2 completions", held["comparisons"].first_bad)


def test_held_out_rows_that_the_chat_template_refuses_are_bad(tmp_path, toy_folder):
    tokenizer = load_tokenizer(toy_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    )
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}], "completion": f"{i}."} for i in range(60)]
    refused = [row for row in rows if split_of(row) == "validation"][:2]
    for row in refused:
        row["prompt"] += [{"role": "assistant", "content": "42"}, {"role": "user", "content": "And?"}]
    held, _ = look_at_data(DataArguments(str(write_rows(tmp_path / "a.jsonl", rows))), tokenizer)
    assert held["demonstrations"].bad == len(refused) == 2
    assert held["demonstrations"].rows["validation"] == sum(split_of(row) == "validation" for row in rows) - 2
    assert "leaves out message 2" in held["demonstrations"].first_bad


def test_a_file_that_holds_nothing_is_an_error_with_row_field_and_remedy(tmp_path, toy_tokenizer):
    path = str(write_rows(tmp_path / "a.jsonl", [{"frage": "Q", "antwort": "A"}]))
    with pytest.raises(InputError, match=r"a.jsonl, line 1: no column prompt \(there is frage, antwort\); .*--columns"):
        look_at_data(DataArguments(path), toy_tokenizer)
    with pytest.raises(InputError, match=r"none.csv does not exist"):
        look_at_data(DataArguments("none.csv"), toy_tokenizer)


def test_people_s_demonstrations_and_prompts_of_their_own_are_preferred(tmp_path, toy_tokenizer):
    files = {
        "rankings": rankings(60),
        "written": [{"prompt": f"Say {i}.", "completion": f"{i}."} for i in range(60)],
        "asked": [{"prompt": f"Tell {i}."} for i in range(60)],
        "text": [{"text": f"Document {i}."} for i in range(60)],
    }
    looked = [
        look_at_data(DataArguments(str(write_rows(tmp_path / f"{name}.jsonl", rows))), toy_tokenizer)[0]
        for name, rows in files.items()
    ]
    chosen = {kind: Path(found.args.dataset_name).stem for kind, found in choose_sources(looked).items()}
    assert chosen == {"comparisons": "rankings", "demonstrations": "written", "prompts": "asked", "pretraining": "text"}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([{"lang": "en"}] * 2 + [{"lang": "ru"}], "en 67 %, ru 33 %, by the column lang or language"),
        ([{"lang": "en"}, {"lang": " "}], "en 50 %, none named 50 %, by the column lang or language"),
        ([{"prompt": {"text": "Q", "lang": "de"}}], "de, by the column lang or language"),
        ([{}], "Latin 60 %, Cyrillic 40 % script; no column names the language"),
    ],
)
def test_the_languages_are_those_of_a_column_else_the_scripts_of_the_letters(tmp_path, columns, expected):
    rows = [{"prompt": "Q", "completion": "A"} | more for more in columns]
    args = DataArguments(str(write_rows(tmp_path / "a.jsonl", rows)))
    assert languages_text("demonstrations", args, count_scripts(["Hello, a1 ", "мир!", "ы"])) == expected


def test_the_scripts_of_prompts_and_answers_are_counted(tmp_path, toy_tokenizer):
    rows = [{"prompt": f"Вопрос {i}?", "completion": f"Answer {i}."} for i in range(60)]
    held, _ = look_at_data(DataArguments(str(write_rows(tmp_path / "a.jsonl", rows))), toy_tokenizer)
    scripts = held["demonstrations"].scripts
    assert set(scripts) == {"Latin", "Cyrillic"} and scripts["Latin"] == scripts["Cyrillic"]


# ---- Model and machine


def test_a_model_is_looked_at_without_its_weights(tmp_path, toy_folder):
    model, tokenizer = look_at_model(toy_folder)
    assert model.shape == shape_of(load_config(toy_folder))
    assert model.parameters == model.shape.parameters
    assert set(model.layers) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert tokenizer.get_vocab() == load_tokenizer(toy_folder).get_vocab()
    for saved in (toy_config("opt", width=32, heads=4, positions=256, vocab_size=300), bpe_tokenizer()):
        saved.save_pretrained(tmp_path)
    opt, _ = look_at_model(str(tmp_path))
    assert opt.shape == similar_shape(load_config(str(tmp_path)), opt.parameters)


def test_the_precision_is_the_first_that_fits():
    lengths = Lengths(row=2048, prompt=1024, response=512, k=4)
    assert fit(SMALL, H100, lengths).precision == "bfloat16"
    assert fit(SMALL, CPU, lengths).precision == "float32"
    assert fit(SMALL, replace(CPU, bf16=True), lengths).precision == "bfloat16"
    assert fit(LARGE, H100, lengths).precision == "bfloat16"
    small_gpu = Machine(8, 10**11, 1, "A4500", 20 * 10**9, bf16=True)
    found = fit(LARGE, small_gpu, lengths)
    assert found.precision == "nf4-nested" and found.fits and found.rows["sft"] >= 1
    old = Machine(8, 10**11, 1, "T4", 12 * 10**9, bf16=False)
    assert "Take a smaller model" in too_large(LARGE, old, fit(LARGE, old, lengths))
    assert fit(model_of(LlamaConfig(), 7 * 10**9, gguf=True), small_gpu, lengths).precision == "bfloat16"
    assert min(fit(SMALL, CPU, Lengths(256, 128, 64)).rows.values()) >= 4


def test_a_pass_has_fewer_rows_if_its_layers_need_not_be_computed_again():
    lengths = Lengths(row=2048, prompt=1024, response=512, k=4)
    layout = Layout("bfloat16", checkpointing=0).on("gpu", dropout=True)
    for memory, rows in ((141, 4), (80, 16)):  # in 80 GB, 4 rows do not fit without recomputation
        assert fit(LARGE, replace(H100, gpu_memory=memory * 10**9), lengths).rows["sft"] == rows
        assert (sft_memory(LARGE.shape, layout, 4, 2048).peak <= USABLE * memory * 10**9) == (rows == 4)


@pytest.mark.parametrize(
    ("machine", "device"),
    [(H100, GPUS["h100"]), (CPU, this_cpu), (replace(CPU, bf16=True), this_cpu)],
    ids=["gpu", "cpu", "cpu with bfloat16"],
)
def test_the_memory_of_a_stage_is_that_of_its_plan(machine, device, monkeypatch):
    """Both count masks of dropout, and rows that a GPU packs."""
    monkeypatch.setattr(devices, "matmul_flops_per_s", lambda device, dtype: 1e11)
    monkeypatch.setattr(devices, "copied_bytes_per_s", lambda device: 1e10)
    device = device() if callable(device) else device
    found, adapters = fit(SMALL, machine, Lengths(512, 256, 128)), SFTModelConfig()
    options = {"load_in_8bit": False, "load_in_4bit": False, "dtype": found.precision}
    args = SimpleNamespace(bf16=machine.bf16, fp16=False, gradient_checkpointing=False)
    dropout = adapters.lora_dropout > 0
    layout = layout_of(options | {"args": args}, None, Launch("ddp", 1, device), adapters.lora_r, dropout)
    memory = sft_memory(SMALL.shape, layout, found.rows["sft"], 512)
    assert found.needed["sft"] == in_process(memory, device.kind).peak


def test_batches_are_the_papers_where_there_are_rows_for_them():
    assert batch(100_000, 64, 20) == 64
    assert batch(160, 64, 20) == 8
    assert batch(10, 64, 20) == 4


@pytest.mark.parametrize("gpus", [1, 3, 8, 24])
def test_batches_are_multiples_of_the_gpus(csv, toy_folder, gpus):
    model, tokenizer = look_at_model(toy_folder)
    chosen = gather_facts(
        "mine", model, replace(H100, gpus=gpus), choose_sources([look_at_data(DataArguments(csv), tokenizer)[0]])
    )
    for stage in ("sft", "reward"):
        assert yaml.safe_load(render(chosen, stage))["batch_size"] % gpus == 0
    ppo = yaml.safe_load(render(chosen, "ppo"))
    assert ppo["mini_batch_size"] % gpus == 0
    assert ppo["batch_size"] == 8 * ppo["mini_batch_size"] and ppo["total_episodes"] == 32 * ppo["batch_size"]


# ---- The recipe


def test_every_setting_of_a_recipe_has_a_reason_and_paths_follow_from_its_name(csv, toy_folder):
    model, tokenizer = look_at_model(toy_folder)
    held, _ = look_at_data(DataArguments(csv), tokenizer)
    for machine in (CPU, H100):
        chosen = gather_facts("mine", model, machine, choose_sources([held]))
        assert stages_of(chosen) == ["sft", "reward", "choose", "ppo", "evaluate"]
        for stage in stages_of(chosen):
            text = render(chosen, stage)
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            assert max(map(len, text.splitlines())) <= 120
            settings = yaml.safe_load(text)
            assert len(settings) == len(lines) == len(STAGES[stage](chosen))
            for line in lines:
                name, value = line.split(": ", 1)
                assert " # " in value or name in ("dataset_name", "value_learning_rate") or "runs/mine/" in value, line
            assert not any(isinstance(v, str) and re.fullmatch(r"[\d.]+e-\d", v) for v in settings.values())


@pytest.mark.parametrize(("split", "stage", "other"), [("validation", "sft", "evaluate"), ("test", "evaluate", "sft")])
def test_a_long_row_that_is_held_out_is_skipped(tmp_path, toy_folder, split, stage, other):
    long = [{"role": "assistant", "content": "word " * 400}, {"role": "user", "content": "And?"}]
    rows = [{"prompt": [{"role": "user", "content": f"Say {i}."}], "completion": f"{i}."} for i in range(60)]
    for row in [row for row in rows if split_of(row) == split][:2]:
        row["prompt"] += long
    model, tokenizer = look_at_model(toy_folder)
    held, _ = look_at_data(DataArguments(str(write_rows(tmp_path / "a.jsonl", rows))), tokenizer)
    chosen = gather_facts("mine", model, CPU, held)
    assert re.search(rf"^on_bad_rows: skip  # 2 of \d+ {split} rows are longer", render(chosen, stage), re.MULTILINE)
    assert "on_bad_rows" not in render(chosen, other)


def test_a_format_that_was_given_is_written_once(csv, toy_folder):
    model, tokenizer = look_at_model(toy_folder)
    held = look_at_data(DataArguments(csv, dataset_format="best_answer", on_bad_rows="skip"), tokenizer)[0]
    text = render(gather_facts("mine", model, CPU, choose_sources([held])), "reward")
    assert text.count("dataset_format: best_answer") == 1


def test_demonstrations_alone_give_sft_and_its_evaluation(tmp_path, toy_folder, new, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", [{"prompt": f"Say {i}.", "completion": f"{i}."} for i in range(60)])
    new("mine", "--model", toy_folder, "--data", "a.jsonl")
    assert sorted(path.name for path in (tmp_path / "recipes" / "mine").iterdir()) == ["evaluate.yaml", "sft.yaml"]
    out = capsys.readouterr().out
    assert "there are no rankings" in out and "rlhf sft mine --smoke" in out


def test_a_recipe_is_never_overwritten(csv, toy_folder, new, capsys):
    new("mine", "--model", toy_folder, "--data", csv)
    before = Path("recipes/mine/sft.yaml").read_text()
    for name, message in (("mine", "never overwritten"), ("sandbox", "never overwritten"), ("a/b", "other characters")):
        with pytest.raises(SystemExit) as end:
            new(name, "--model", toy_folder, "--data", csv)
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert Path("recipes/mine/sft.yaml").read_text() == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "A document."}] * 60, "pretraining alone: a.jsonl, line 1: no column prompt"),
        (rankings(3), "none for "),
        ([{"prompt": "Q", "completions": ["a"], "ranks": [0]}], "at least 2 are needed for a comparison"),
    ],
)
def test_data_that_no_stage_can_use_is_refused(tmp_path, monkeypatch, toy_folder, new, capsys, rows, message):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(SystemExit) as end:
        new("mine", "--model", toy_folder, "--data", "a.jsonl")
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "recipes").exists()


@pytest.mark.slow
def test_a_written_recipe_runs_as_it_is(csv, toy_folder, new, monkeypatch, capsys):
    new("mine", "--model", toy_folder, "--data", csv)
    monkeypatch.setattr(sys, "argv", ["check.py", "mine"])
    runpy.run_path(str(ROOT / "recipes" / "check.py"), run_name="__main__")
    out = capsys.readouterr().out
    for stage in ("sft", "reward", "choose", "ppo", "evaluate"):
        assert re.search(rf"^{stage} +ok", out, re.MULTILINE), out
