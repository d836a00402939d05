"""`make compare` and `make evaluate` on toy adapters, through the real command line; messages for bad input."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toys import save_toy
from trl import ModelConfig

import rlhf.cli
from rlhf.data.encode import encode_prompt
from rlhf.errors import InputError
from rlhf.evaluation.compare import Answer, answers, answers_to_all, as_text
from rlhf.generation.completions import completion_rewards, sample_completions
from rlhf.models.loading import load_base, load_tokenizer, lora_config
from rlhf.models.shared_base import SharedBase
from rlhf.models.stages import load_adapters, stage_folders

ROOT = Path(__file__).resolve().parent.parent
PROMPT = [{"role": "user", "content": "Name three fruits."}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with toy adapters of sft, reward and ppo, each with weights of its own."""
    root = tmp_path_factory.mktemp("generate")
    base = str(save_toy(root / "base"))
    tokenizer = load_tokenizer(base)
    shared = SharedBase(load_base(ModelConfig(model_name_or_path=base), tokenizer))
    for seed, name in enumerate(("sft", "reward", "ppo")):
        shared.add_adapter(name, lora_config=lora_config(ModelConfig(lora_r=4)), head=name == "reward")
        torch.manual_seed(seed)
        for key, parameter in shared.named_parameters():
            if f"lora_B.{name}." in key:
                torch.nn.init.normal_(parameter, std=0.1)
        shared.save_adapter(name, root / "runs" / "toy" / name)
    tokenizer.save_pretrained(root / "runs" / "toy" / "sft")
    return root / "runs" / "toy"


def recipe(name, *arguments):
    """Runs the recipe in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def load_main(name, arguments, monkeypatch):
    """Returns the recipe's `main`, to be run in this process with these arguments."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where the argument parser looks up type hints
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return module.main


def refusal(name, arguments, monkeypatch, capsys):
    """Returns the message on stderr with which the recipe exits with code 2."""
    monkeypatch.setattr("rlhf.models.stages.load_base", lambda *_: pytest.fail("a model was loaded"))
    main = load_main(name, arguments, monkeypatch)
    with pytest.raises(SystemExit) as exit_:
        rlhf.cli.run(main)
    assert exit_.value.code == 2
    return capsys.readouterr().err


# -- loading ----------------------------------------------------------------------------------------------------------


def test_finished_stages_of_a_run_are_found(run):
    assert stage_folders(run) == {name: str(run / name) for name in ("sft", "ppo", "reward")}


@pytest.mark.parametrize(
    ("name", "message"),
    [("sandbox", "runs/sandbox does not exist. Run `rlhf demo`"), ("mine", "Run `rlhf sft mine`")],
)
def test_missing_run_names_the_target_that_makes_it(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        stage_folders(tmp_path / "runs" / name)


def test_run_whose_sft_has_not_finished_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no finished SFT stage"):
        stage_folders(tmp_path)


def test_base_is_the_one_that_the_adapters_name(run):
    shared, tokenizer = load_adapters(ModelConfig(), stage_folders(run))
    assert shared.adapters == ("sft", "ppo", "reward")
    assert not shared.training
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_wrong_base_is_refused_before_it_is_loaded(run, tmp_path, monkeypatch):
    other = save_toy(tmp_path / "other", "gpt2")
    monkeypatch.setattr("rlhf.models.stages.load_base", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError, match="was trained on"):
        load_adapters(ModelConfig(model_name_or_path=str(other)), stage_folders(run))


def test_nothing_to_load_is_refused():
    with pytest.raises(InputError, match="nothing to load"):
        load_adapters(ModelConfig(), {})


# -- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_evaluation_and_carry_the_reward(run):
    shared, tokenizer = load_adapters(ModelConfig(), stage_folders(run))
    results = answers(shared, tokenizer, PROMPT, max_new_tokens=8)
    assert [answer.name for answer in results] == ["base", "sft", "ppo"]
    ids = encode_prompt(tokenizer, PROMPT)
    [completion] = sample_completions(
        shared, "ppo", [ids], tokenizer, max_new_tokens=8, temperature=0.0, progress=False
    )
    [reward] = completion_rewards(shared, "reward", [ids], [completion.ids])
    assert results[2] == Answer("ppo", completion.text, completion.ended, reward)


def test_answers_take_what_the_context_leaves(run):
    shared, tokenizer = load_adapters(ModelConfig(), {"sft": run / "sft"})
    room = 256 - len(encode_prompt(tokenizer, "fruit " * 40))
    assert 0 < room < 250
    at_most_room = answers(shared, tokenizer, "fruit " * 40, max_new_tokens=1000)
    assert at_most_room == answers(shared, tokenizer, "fruit " * 40, max_new_tokens=room)
    assert at_most_room[0].reward is None
    with pytest.raises(InputError, match="shorten it"):
        answers(shared, tokenizer, "fruit " * 200)


def test_prompts_are_read_without_the_mark_that_windows_writes(tmp_path, monkeypatch):
    load_main("compare", [], monkeypatch)
    read_prompts = sys.modules["recipe_compare"].read_prompts
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne?\r\n\r\nTwo\xe2\x80\xa8lines?\r\n")
    assert read_prompts(str(tmp_path / "a.txt")) == ["One?", "Two\u2028lines?"]
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "One?"}\n')
    assert read_prompts(str(tmp_path / "b.jsonl")) == ["One?"]
    (tmp_path / "c.txt").write_text("One?", encoding="utf-16")
    with pytest.raises(InputError, match=r"c.txt is not UTF-8 text\. Save it as UTF-8"):
        read_prompts(str(tmp_path / "c.txt"))


def test_a_long_prompt_shortens_no_answer_but_its_own(run):
    shared, tokenizer = load_adapters(ModelConfig(), {"sft": run / "sft"})
    prompts = ["Once", "fruit " * 46, "Name three"]
    most = 256 - len(encode_prompt(tokenizer, prompts[1])) + 20
    found = answers_to_all(shared, tokenizer, prompts, max_new_tokens=most)
    alone = [answers(shared, tokenizer, prompt, max_new_tokens=most)[0].text for prompt in prompts]
    assert [row[0].text for row in found] == alone and not any(row[0].ended for row in found)


def test_text_is_wrapped_beside_the_names():
    results = [Answer("base", "one two three four five six seven", False, -1.0), Answer("ppo", "", True, 2.5)]
    assert as_text("Count.", results, width=40) == "\n".join(
        [
            "Prompt        Count.",
            "-" * 40,
            "Base          one two three four five",
            "reward -1.00  six seven … (cut)",
            "-" * 40,
            "RLHF          (empty)",
            "reward +2.50",
        ]
    )


# -- the command line -------------------------------------------------------------------------------------------------


def test_compare_prints_what_three_models_answer(run):
    result = recipe("compare", "--run", run, "--prompt", "Name three fruits.", "--max_new_tokens", 8)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line[:1].isalpha()] == [
        *("Prompt", "Base", "reward", "SFT", "reward", "RLHF", "reward"),
    ]


def test_compare_takes_adapters_from_anywhere_and_passes_its_options_on(run, monkeypatch, capsys):
    options = ["--sft_model_path", run / "sft", "--temperature", "1", "--seed", "3", "--max_new_tokens", "8"]
    load_main("compare", ["--prompt", "Once", "--prompt_style", "text", *options], monkeypatch)()
    shared, tokenizer = load_adapters(ModelConfig(), {"sft": run / "sft"})
    results = answers(shared, tokenizer, "Once", max_new_tokens=8, temperature=1.0, seed=3)
    assert capsys.readouterr().out == as_text("Once", results) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "runs/nowhere", "--prompt", "Hello."], "Run `rlhf sft nowhere`"),
        (["--run", "runs/nowhere", "--prompt", ""], "The prompt is empty"),
        (["--prompt", "Hello.", "--temperature", "-1"], "temperature is -1.0"),
        (["--prompt", "Hello.", "--sft_model_path", "./nowhere"], "Adapter folder ./nowhere does not exist"),
    ],
)
def test_compare_refuses_bad_input_in_one_sentence(arguments, message, monkeypatch, capsys):
    assert message in refusal("compare", arguments, monkeypatch, capsys)


@pytest.mark.slow
def test_evaluate_writes_answers_numbers_and_the_page(run, tmp_path):
    prompts = tmp_path / "data"
    prompts.mkdir()
    texts = ["Name three fruits.", "Is the moon made of cheese?", "Name three fruits.", "Write a story."]
    for split in ("train", "test"):
        lines = [json.dumps({"prompt": [{"role": "user", "content": f"{text} ({split})"}]}) for text in texts]
        (prompts / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    paths = {f"--{name}_model_path": run / name for name in ("sft", "ppo", "reward")}
    options = {"--dataset_name": prompts, "--dataset_test_split": "test", "--max_new_tokens": 6, **paths}
    options["--output_dir"] = tmp_path / "run" / "evaluate"
    shutil.copytree(run / "ppo", tmp_path / "run" / "ppo")  # the report lies beside it
    result = recipe("evaluate", *(word for option in options.items() for word in option))
    assert result.returncode == 0, result.stderr

    rows = [json.loads(line) for line in (tmp_path / "run/evaluate/completions.jsonl").read_text().splitlines()]
    assert len(rows) == 6 * 4
    assert {row["system"] for row in rows} >= {"base", "sft", "ppo", "ppo_greedy"}
    assert all(row["tokens"] <= 6 and list(row["scores"]) == ["reward"] for row in rows)
    greedy = [row["response"] for row in rows if row["system"] == "sft_greedy"]
    assert greedy[0] == greedy[2]  # the same prompt twice
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["prompts"], summary["distinct_prompts"], list(summary["judges"])) == (4, 3, ["reward"])
    assert 0 <= summary["judges"]["reward"]["win_rate"]["ppo"]["mean"] <= 1
    assert summary["systems"]["ppo"]["kl"]["mean"] == pytest.approx(
        sum(row["kl"] for row in rows if row["system"] == "ppo") / 4
    )
    assert summary["seconds"]["evaluate"] == json.loads((tmp_path / "run/evaluate/result.json").read_text())["seconds"]
    assert "What people prefer: no person judged" in " ".join((tmp_path / "run/report.html").read_text().split())
    assert "the judge “reward” prefers" in (tmp_path / "run/report.md").read_text()
    assert "## How it compares" in (tmp_path / "run/ppo/README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sft_model_path", "./nowhere"], "Adapter folder ./nowhere does not exist"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["--sft_model_pth", "x"], "did you mean --sft_model_path?"),
        ([], "System base: the run has no base. Set model_name_or_path"),
    ],
)
def test_evaluate_refuses_bad_input_before_it_loads_anything(options, message, tmp_path, monkeypatch, capsys):
    options = ["--dataset_name", "sandbox", "--dataset_eval_size", "4", "--output_dir", tmp_path / "evaluate", *options]
    assert message in refusal("evaluate", options, monkeypatch, capsys)


# -- several prompts, and adapters under their own names --------------------------------------------------------------


def test_compare_answers_a_file_of_prompts_with_adapters_of_any_name(run, tmp_path, monkeypatch, capsys):
    rows = ['{"prompt": "Name three fruits."}', "", json.dumps({"prompt": PROMPT}), '{"prompt": "Write a story."}']
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    output = tmp_path / "new" / "answers.jsonl"
    options = ["--prompts", tmp_path / "prompts.jsonl", "--adapters", f"twin={run / 'ppo'}", f"first={run / 'sft'}"]
    load_main("compare", [run, *options, "--max_new_tokens", 8, "--output", output], monkeypatch)()
    out = capsys.readouterr().out
    text = output.read_text()
    with pytest.raises(InputError):  # before it answers: the earlier answers stay
        load_main("compare", [run, *options, "--output", output, "--model_name_or_path", "nowhere"], monkeypatch)()
    assert output.read_text() == text
    load_main("compare", [run, *options, "--max_new_tokens", 8, "--output", output], monkeypatch)()
    assert output.read_text() == text, "new answers take the place of earlier ones"
    answers_ = [json.loads(line) for line in text.splitlines()]
    systems = ["base", "sft", "ppo", "twin", "first"]
    assert [(row["prompt_id"], row["system"]) for row in answers_] == [(i, name) for i in range(3) for name in systems]
    by = {(row["prompt_id"], row["system"]): row for row in answers_}
    assert by[0, "twin"]["response"] == by[0, "ppo"]["response"] == by[1, "ppo"]["response"] != by[0, "sft"]["response"]
    assert by[1, "twin"]["reward"] == pytest.approx(by[1, "ppo"]["reward"], abs=1e-4)
    assert by[1, "base"]["prompt"] == PROMPT and by[2, "base"]["prompt"] == "Write a story."
    mean = sum(by[i, "ppo"]["reward"] for i in range(3)) / 3
    assert f"RLHF          reward {mean:+.2f}  ended" in out and out.count("Prompt  ") == 3
    assert "twin          " in out


def test_prompts_may_be_lines_of_text(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompts.txt").write_text("Name three fruits.\n\nOnce upon a time\n")
    options = ["--prompts", tmp_path / "prompts.txt", "--sft_model_path", run / "sft", "--max_new_tokens", 8]
    load_main("compare", options, monkeypatch)()
    out = capsys.readouterr().out
    shared, tokenizer = load_adapters(ModelConfig(), {"sft": run / "sft"})
    assert as_text("Name three fruits.", answers(shared, tokenizer, PROMPT, max_new_tokens=8)) in out
    assert "Once upon a time" in out and "Of 2 prompts" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Pass either --prompt"),
        (["--prompt", "Hello.", "--prompts", "x.txt"], "Pass either --prompt"),
        (["--prompts", "{tmp}/nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--prompts", "{tmp}/empty.txt"], "empty.txt holds no prompt"),
        (["--prompts", "{tmp}/bad.jsonl"], "bad.jsonl, line 2: it is no JSON object with a prompt"),
        (["--prompts", "{tmp}/answered.jsonl"], "line 1: column prompt ends in a message of the assistant"),
        (["--prompt", "Hello.", "--output", "{tmp}/answers.csv"], "Name a .jsonl file"),
        (["--prompt", "Hello.", "--output", "{tmp}/empty.txt/answers.jsonl"], "cannot be written"),
        (["--prompt", "Hello.", "--adapters", "{run}/ppo"], "Write NAME=FOLDER"),
        (["--prompt", "Hello.", "--adapters", "ppo={run}/ppo"], "the name ppo is taken"),
        (["--prompt", "Hello.", "--adapters", "mine={run}/reward"], "is a reward model"),
        (["--prompt", "Hello.", "--adapters", "mine={tmp}/nowhere"], "does not exist"),
    ],
)
def test_compare_refuses_bad_files_and_names(run, tmp_path, arguments, message, monkeypatch, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Hi."}\n{"question": "Hi."}\n')
    answered = [*PROMPT, {"role": "assistant", "content": "Pears."}]
    (tmp_path / "answered.jsonl").write_text(json.dumps({"prompt": answered}) + "\n")
    words = [word.format(tmp=tmp_path, run=run) for word in arguments]
    assert message in refusal("compare", [run, *words], monkeypatch, capsys)
