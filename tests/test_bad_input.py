"""Wrong input to the recipes: one sentence, exit code 2, no traceback, before a model is loaded.

The recipes run in this process, since each start of Python with torch takes seconds; the last tests start them like the
README.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from toys import finish_stage, save_adapter, save_toy

import rlhf.models.loading
from rlhf.cli import run
from rlhf.runs.artifacts import write_result

ROOT = Path(__file__).resolve().parent.parent
LONG = "Tell me all about the river and the sea. " * 40  # longer than the toys' context of 256 tokens


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two bases, the stages of a run on the first, an SFT adapter on the second, and a good file for each stage."""
    root = tmp_path_factory.mktemp("world")
    save_toy(root / "base")
    save_toy(root / "other-base", seed=1)
    for stage in ("sft", "reward"):
        finish_stage(root / "base", root / stage, stage)
    save_adapter(root / "base", root / "sft" / "checkpoint-1", "sft")
    write_result(root / "sft", {"epochs": [{"epoch": 1.0, "checkpoint": "checkpoint-1", "eval_loss": 2.0}]})
    finish_stage(root / "other-base", root / "other-sft", "sft")
    for stage, rows in GOOD.items():
        write_rows(root / f"{stage}.jsonl", rows)
    return root


GOOD = {
    "sft": [{"prompt": f"Name fruit {i}.", "completion": "Pears."} for i in range(20)],
    "reward": [{"prompt": f"Name fruit {i}.", "completions": ["Pears.", "No."], "ranks": [0, 1]} for i in range(20)],
    "ppo": [{"prompt": f"Name fruit {i}."} for i in range(20)],
}
OPTIONS = {
    "sft": "--model_name_or_path {base} --dataset_name {sft_file} --output_dir {out} --lora_r 2",
    "reward": "--model_name_or_path {base} --dataset_name {reward_file} --output_dir {out} --lora_r 2",
    "ppo": "--dataset_name {ppo_file} --output_dir {out} --sft_model_path {sft} --reward_model_path {reward} "
    "--total_episodes 8 --batch_size 8 --mini_batch_size 4 --per_device_train_batch_size 4 --response_length 8",
    "evaluate": "--dataset_name {ppo_file} --output_dir {out} --sft_model_path {sft} --reward_model_path {reward} "
    "--max_new_tokens 8",
    "choose": "--sft_path {sft} --reward_model_path {reward} --dataset_name {sft_file}",
    "compare": "--prompt Hello --sft_model_path {sft} --max_new_tokens 8",
    "compare_run": "--prompt Hello --run {root}",
    "push": "--run_folder {sft} --hub_id me/toy",
}
CPU = " --use_cpu true --bf16 false --report_to none"
TRAINING = ("sft", "reward", "ppo")


def write_rows(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command_line(world: Path, tmp_path: Path, recipe: str, options: str = "") -> list[str]:
    """Options that work, followed by those of the test, which override them."""
    names = {name: world / name for name in ("base", "sft", "reward", "other-base", "other-sft")}
    names |= {f"{stage}_file": world / f"{stage}.jsonl" for stage in GOOD} | {
        "root": world,
        "out": tmp_path / "out",
        "tmp": tmp_path,
    }
    text = OPTIONS[recipe] + (CPU if recipe in TRAINING else "") + " " + options
    return [word.format(**names) for word in text.split()]


@pytest.fixture
def refusal(world, tmp_path, monkeypatch, capsys):
    """Runs a recipe that must refuse its input, and returns its one sentence."""

    def refuse(recipe: str, options: str = "", loads: bool = False) -> str:
        def loaded(*args, **kwargs):
            raise AssertionError("a model was loaded before the input was found to be bad")

        if not loads:
            monkeypatch.setattr(rlhf.models.loading, "_load", loaded)
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *command_line(world, tmp_path, recipe, options)])
        script = ROOT / "recipes" / f"{recipe.removesuffix('_run')}.py"
        spec = importlib.util.spec_from_file_location(f"recipe_{script.stem}", script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            run(module.main)
        assert exit_.value.code == 2
        return one_sentence(capsys.readouterr().err)

    return refuse


def one_sentence(stderr: str) -> str:
    """Returns the sentence after `error: `, which must be the last line, and the only one of its kind."""
    assert "Traceback" not in stderr
    lines = stderr.rstrip("\n").split("\n")
    assert [line.startswith("error: ") for line in lines].count(True) == 1, stderr
    assert lines[-1].startswith("error: "), stderr
    return lines[-1].removeprefix("error: ")


def assert_names(sentence: str, *parts: str) -> None:
    assert sentence.endswith((".", "?")), sentence
    for part in parts:
        assert part in sentence, f"{part!r} is not in: {sentence}"


SFT, REWARD, PPO = GOOD["sft"][0], GOOD["reward"][0], GOOD["ppo"][0]


@pytest.mark.parametrize(
    ("recipe", "row", "parts"),
    [
        ("sft", {"completion": "Pears."}, ["prompt"]),
        ("sft", {"prompt": "Name a fruit."}, ["completion"]),
        ("sft", {**SFT, "completion": ""}, ["completion", "empty"]),
        ("sft", {**SFT, "completion": " \n"}, ["completion", "empty"]),
        ("sft", {**SFT, "prompt": 5}, ["prompt"]),
        ("sft", {**SFT, "prompt": []}, ["prompt", "empty"]),
        ("sft", {**SFT, "prompt": LONG}, ["256", "tokens"]),
        ("reward", {"prompt": "p", "ranks": [0, 1]}, ["completions"]),
        ("reward", {"prompt": "p", "completions": ["a", "b"]}, ["ranks"]),
        ("reward", {**REWARD, "completions": ["a", ""]}, ["completions[1]", "empty"]),
        ("reward", {**REWARD, "completions": ["a"], "ranks": [0]}, ["K = 1"]),
        ("reward", {**REWARD, "ranks": [0]}, ["ranks", "1", "2"]),
        ("reward", {**REWARD, "ranks": [0, 1, 2]}, ["ranks", "3", "2"]),
        ("reward", {**REWARD, "ranks": [0, 1.5]}, ["ranks", "1.5"]),
        ("reward", {**REWARD, "completions": ["a", LONG]}, ["256", "tokens"]),
        ("ppo", {"topic": "Name a fruit."}, ["prompt", "topic"]),
        ("ppo", {"prompt": ""}, ["prompt", "empty"]),
        ("evaluate", {"topic": "Name a fruit."}, ["prompt", "topic"]),
        ("choose", {"prompt": "Name a fruit."}, ["completion"]),
    ],
)
def test_bad_row_is_named_by_file_and_line(refusal, world, tmp_path, recipe, row, parts):
    good = GOOD[{"evaluate": "ppo", "choose": "sft"}.get(recipe, recipe)]
    path = write_rows(tmp_path / "rows.jsonl", [*good[:6], row, *good[7:]])
    sentence = refusal(recipe, f"--dataset_name {path}")
    assert_names(sentence, "rows.jsonl", *parts)
    if "tokens" not in parts:
        assert_names(sentence, "line 7")


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo", "evaluate"])
@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b'{"prompt": "caf\xe9"}\n', ["line 1", "UTF-8"]),
        (b'{"prompt": "cut', ["line 1", "JSON"]),
        (b"", ["rows.jsonl"]),
        (b"[1, 2]\n", ["rows.jsonl"]),
    ],
)
def test_bad_file(refusal, tmp_path, recipe, content, parts):
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert_names(refusal(recipe, f"--dataset_name {tmp_path / 'rows.jsonl'}"), *parts)


@pytest.mark.parametrize("recipe", ["sft", "reward", "ppo", "evaluate", "choose"])
def test_missing_data(refusal, recipe):
    assert_names(refusal(recipe, "--dataset_name {tmp}/nowhere.jsonl"), "nowhere.jsonl")


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("ppo", ""), ("ppo", "--max_prompt_length 100"), ("evaluate", "")],
)
def test_prompt_longer_than_the_context(refusal, tmp_path, recipe, options):
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i} {LONG}"} for i in range(20)])
    sentence = refusal(recipe, f"--dataset_name {path} {options}", loads=True)
    assert_names(sentence, "tokens")


def test_prompt_of_compare_longer_than_the_context(refusal):
    assert_names(refusal("compare", f"--prompt {LONG.replace(' ', '_')}", loads=True), "tokens", "256")


def test_batches_that_do_not_divide(refusal):
    assert_names(refusal("ppo", "--batch_size 10"), "batch_size is 10", "4")
    assert_names(refusal("ppo", "--mini_batch_size 6"), "batch_size is 8", "6")
    assert_names(refusal("ppo", "--num_ppo_epochs 0"), "num_ppo_epochs", "0")


@pytest.mark.parametrize("recipe", OPTIONS)
def test_unknown_key_in_yaml_and_on_the_command_line(refusal, tmp_path, recipe):
    (tmp_path / "recipe.yaml").write_text("learning_rat: 1.0e-3\n")
    assert_names(refusal(recipe, "--config {tmp}/recipe.yaml"), "learning_rat", "recipe.yaml")
    assert_names(refusal(recipe, "--no_such_option 1"), "--no_such_option")
    assert_names(refusal(recipe, "--config {tmp}/nowhere.yaml"), "nowhere.yaml", "No such file")


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ("ppo", "sft_model_path"),
        ("ppo", "reward_model_path"),
        ("evaluate", "sft_model_path"),
        ("evaluate", "ppo_model_path"),
        ("evaluate", "reward_model_path"),
        ("reward", "sft_model_path"),
        ("choose", "sft_path"),
        ("choose", "reward_model_path"),
        ("compare", "sft_model_path"),
        ("compare_run", "run"),
        ("sft", "reward_model_path"),
        ("push", "run_folder"),
    ],
)
def test_missing_adapter(refusal, tmp_path, recipe, option):
    assert_names(refusal(recipe, f"--{option} {{tmp}}/nowhere"), "nowhere")
    (tmp_path / "empty").mkdir()
    assert_names(refusal(recipe, f"--{option} {{tmp}}/empty"), "empty")


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("ppo", "--sft_model_path {other-sft}"),
        ("ppo", "--model_name_or_path {other-base}"),
        ("evaluate", "--sft_model_path {other-sft}"),
        ("evaluate", "--model_name_or_path {other-base}"),
        ("reward", "--sft_model_path {other-sft}"),
        ("sft", "--reward_model_path {reward} --model_name_or_path {other-base}"),
        ("compare", "--model_name_or_path {other-base}"),
        ("compare", "--ppo_model_path {other-sft}"),
        ("choose", "--model_name_or_path {other-base}"),
    ],
)
def test_wrong_base_for_an_adapter(refusal, recipe, options):
    assert_names(refusal(recipe, options), "was trained on", "base")


@pytest.mark.parametrize("recipe", ["ppo", "evaluate"])
def test_sft_adapter_in_place_of_a_reward_model(refusal, recipe):
    assert_names(refusal(recipe, "--reward_model_path {sft}"), "reward")


@pytest.mark.parametrize("recipe", ["sft", "reward"])
def test_missing_model(refusal, recipe):
    assert_names(refusal(recipe, "--model_name_or_path {tmp}/nowhere"), "nowhere", "does not exist")


@pytest.mark.parametrize("recipe", TRAINING)
def test_missing_checkpoint_to_resume_from(refusal, recipe):
    assert_names(refusal(recipe, "--resume_from_checkpoint {tmp}/nowhere"), "nowhere")


@pytest.mark.parametrize("recipe", TRAINING)
def test_push_without_a_name(refusal, recipe):
    assert_names(refusal(recipe, "--push_to_hub"), "hub_model_id")


def test_bad_rows_can_be_skipped(refusal, tmp_path):
    rows = [{"prompt": f"{i}", "completion": ""} for i in range(20)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert_names(refusal("sft", f"--dataset_name {path} --on_bad_rows skip"), "rows.jsonl")  # no row remains


def start(world, tmp_path, *program: str, recipe: str, options: str) -> subprocess.CompletedProcess:
    command = [*program, f"recipes/{recipe}.py", *command_line(world, tmp_path, recipe, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_as_a_program(world, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    done = start(world, tmp_path, sys.executable, recipe="reward", options="--dataset_name {tmp}/rows.jsonl")
    assert done.returncode == 2
    assert_names(one_sentence(done.stderr), "rows.jsonl", "line 1", "UTF-8")
    assert done.stderr.splitlines()[:-1] == ["pad token: <|pad|> (300)"]  # no other library prints a line of its own


@pytest.mark.slow
def test_through_the_launcher_of_the_makefile(world, tmp_path):
    launch = [str(Path(sys.executable).parent / "accelerate"), "launch", "--quiet"]
    launch += ["--config_file", "accelerate_configs/cpu.yaml"]
    done = start(world, tmp_path, *launch, recipe="sft", options="--reward_model_path {sft}")
    assert done.returncode != 0  # the launcher returns 1
    assert_names(one_sentence(done.stderr), "not a reward model")
    assert done.stderr.count("\n") == 1
