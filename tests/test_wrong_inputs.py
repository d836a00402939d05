"""Wrong inputs by kind, one row of a table each: one sentence with the remedy, exit code 2, no traceback.

Each command runs in this process through `rlhf.command`; tests/test_bad_input.py has the rows, adapters and bases. The
last tests are faults of the machine, and processes that are stopped.
"""

import errno
import json
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_stages import options_of, write_data
from toys import finish_stage, save_toy

import rlhf.command
from rlhf.cli import run
from rlhf.errors import MEMORY, InputError, machine_fault
from rlhf.ppo.reward_functions import find_reward_functions, function_table

SHORT = ("sft", "reward", "ppo")
SAME = {"reward": {"lora_r": 2}}  # as of the SFT adapter


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, two bases, and the folders of finished stages, with which all stages would start."""
    home = tmp_path_factory.mktemp("home")
    write_data(home)
    save_toy(home / "base")
    save_toy(home / "gpt2", "gpt2")
    for stage in SHORT:
        finish_stage(home / "base", home / stage, stage)
    return home


@pytest.fixture
def refused(home, tmp_path, monkeypatch, capsys):
    """Runs `rlhf <words>`, which must end with one sentence, and returns that sentence."""
    monkeypatch.chdir(tmp_path)

    def start(script, args):  # the launcher's part is to start the script in another process
        if script.name == "launch.py":
            first = next(i for i, arg in enumerate(args) if arg.endswith("start.py"))
            script, args = Path(args[first + 1]), args[first + 2 :]
        launch(script, args)

    launch = rlhf.command.start
    monkeypatch.setattr(rlhf.command, "start", start)

    def refuse(words: str | list[str]) -> str:
        words = words.split() if isinstance(words, str) else words
        command, *given = [word.format(home=home, tmp=tmp_path) for word in words]
        options = (
            options_of(command, home) | {"output_dir": tmp_path / "out", **SAME.get(command, {})}
            if command in SHORT
            else {}
        )
        stage = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        recipe = given[:1] if given and not given[0].startswith("-") else []
        monkeypatch.setattr(sys, "argv", ["rlhf", command, *recipe, *stage, *given[len(recipe) :]])
        with pytest.raises(SystemExit) as end:
            rlhf.command.main()
        return one_sentence(end.value.code, capsys.readouterr().err)

    return refuse


def one_sentence(code: object, stderr: str) -> str:
    lines = stderr.strip().splitlines()
    assert code == 2, stderr
    assert [line.startswith("error: ") for line in lines].count(True) == 1, stderr
    assert lines[-1].startswith("error: "), stderr
    assert lines[-1].endswith((".", "?")), lines[-1]
    return lines[-1].removeprefix("error: ")


# ---- Options

OPTIONS = {
    "pppo sandbox": "Did you mean rlhf ppo?",
    "sft sandbx": "Did you mean sandbox?",
    "sft --learning_rate fast": "argument --learning_rate: invalid float value: 'fast'",
    "sft --learning_rate": "argument --learning_rate: expected one argument",
    "sft --learning_rate nan": "learning_rate is nan",
    "sft --learning_rate inf": "learning_rate is inf. Give a finite number",
    "sft --num_train_epochs nan": "num_train_epochs is nan. Give a finite number",
    "ppo --temperature nan": "temperature is nan. Give a finite number",
    "ppo --temperature inf": "temperature is inf. Give a finite number",
    "ppo --reward_weights 1 inf": "reward_weights is inf. Give a finite number",
    "sft --lr_scheduler_type cosin": "lr_scheduler_type: cosin is not a valid SchedulerType",
    "sft --eval_strategy sometimes": "eval_strategy: sometimes is not a valid IntervalStrategy",
    "sft --lora_r 0": "lora_r is 0; it must be at least 1.",
    "sft --lora_alpha 0": "lora_alpha is 0, and the adapter is scaled by it. Make it positive.",
    "reward --sft_model_path= --lora_dropout 2": "lora_dropout is 2.0; it must be at least 0 and below 1.",
    "ppo --stop_token_id 999999": "stop_token_id is 999999, and the tokenizer has no token of this id. Its ids are 0",
    "ppo --stop_token_id -1": "stop_token_id is -1",
    "pretrain --output_dir {tmp} --n_documents 0": "n_documents is 0; it must be at least 1.",
    "pretrain --output_dir {tmp} --block_size 0": "block_size is 0; it must be at least 2.",
    "pretrain --output_dir {tmp} --graded_share 2": "graded_share is 2.0; it must be at least 0 and at most 1.",
    "pretrain --output_dir {tmp} --continue_from {tmp}/no": "no does not exist",
    "pretrain --output_dir {tmp} --resume_from_checkpoint true": "holds no checkpoint to resume from",
    "inspect": "arguments are required: folder. Run with --help",
    "inspect a b c": "c in the command line is not an option of this command; run with --help",
    "demo sandbox": "sandbox in the command line is not an option of this command; run with --help",
    "runs --jsn": "--jsn in the command line is not an option of this command; did you mean --json?",
    "runs --js": "did you mean --json?",
    "doctor --hlp": "did you mean --help?",
    "chat {home} --temprature=0": "--temprature in the command line is not an option of this command; did you mean --",
    "sft --accelerat cpu": "did you mean --accelerate?",
    "push {home}/sft": "required: --hub_id. Run with --help",
    "chat {tmp}/no": "Run folder {tmp}/no does not exist",
    "compare {home} --prompts {tmp}/no.txt": "no.txt cannot be read: No such file or directory. Check its path.",
    "agreement --dataset_name {home}/comparisons": "names a labeler. Add a column labeler_id",
}  # fmt: skip


@pytest.mark.parametrize(("words", "part"), OPTIONS.items(), ids=OPTIONS)
def test_options(refused, tmp_path, words, part):
    assert part.format(tmp=tmp_path) in refused(words)


YAML = {
    "learning_rate: {a: 1}\n": "key learning_rate: expected a single value, not the mapping",
    "learning_rate: [1, 2]\n": "key learning_rate: expected a single value, not the list",
    "warmup_steps: .nan\n": "warmup_steps",
    "1: 2\n": "line 1: the key is 1. Write the name of an option.",
    "seed: 1\n[a, b]: 1\n": "line 2: the key is a list or mapping.",
    "seed: 1\nseed: 1\n": "sets seed twice, in lines 1 and 2",
    "- seed\n": "is no mapping of options. Write lines such as",
    "": "is no mapping of options. Write lines such as",
    "seed:\t1\n\tbf16: 2\n": "not valid YAML",
    "training: {learning_rate: 1}\n": "training in config file",
}


@pytest.mark.parametrize(("text", "part"), YAML.items(), ids=map(repr, YAML))
def test_yaml(refused, tmp_path, text, part):
    (tmp_path / "a.yaml").write_text(text)
    sentence = refused("sft {tmp}/a.yaml")
    assert part in sentence
    assert "a.yaml" in sentence or ".nan" in text


LAUNCHES = {
    "use_cpu: true\n": "A `distributed_type` must be specified",
    "distributed_type: MULTI_GPUS\n": "'MULTI_GPUS' is not a valid DistributedType",
    'distributed_type: "NO"\nnum_procesess: 2\n': "num_procesess",
    'distributed_type: "NO"\nnum_processes: 0\n': "sets num_processes to 0. Set it to 1 or more.",
    'distributed_type: "NO"\nmixed_precision: bf17\n': "sets mixed_precision to bf17. Set it to no, fp16,",
}


@pytest.mark.parametrize(("text", "part"), LAUNCHES.items(), ids=map(repr, LAUNCHES))
def test_launches(refused, tmp_path, text, part):
    (tmp_path / "a.yaml").write_text(text + "compute_environment: LOCAL_MACHINE\n")
    sentence = refused("sft --accelerate {tmp}/a.yaml")
    assert part in sentence
    assert "a.yaml" in sentence


def test_several_processes_report_a_mistake_once(capsys, monkeypatch):
    """The first at once, the others later, when a launcher has ended them; alone with its mistake, one reports it."""
    waited = []
    monkeypatch.setattr("rlhf.cli.time.sleep", waited.append)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit):
            run(mistake)
        assert one_sentence(2, capsys.readouterr().err) == "Correct it."
    assert waited == [3.0]


def mistake() -> None:
    raise InputError("Correct it.")


# ---- Files

FILES = {
    "rows.jsonl.gz": (b'{"prompt": "a"}', "Check its permissions, or copy it here again."),
    "rows.parquet": (b"PAR1", "not a readable Parquet file"),
    "rows.xlsx": (b"PK", "Data files must end in"),
    "rows.csv": (b"a,b\n1,2\n", "line 2: no column prompt (there is a, b)"),
}


@pytest.mark.parametrize("stage", SHORT)
@pytest.mark.parametrize("name", FILES)
def test_data_files(refused, tmp_path, stage, name):
    content, part = FILES[name]
    (tmp_path / name).write_bytes(content)
    sentence = refused(f"{stage} --dataset_name {{tmp}}/{name}")
    assert name in sentence
    assert part in sentence


def test_output_folder(refused, tmp_path, home):
    (tmp_path / "file").write_text("")
    for command in ("sft", "ppo", "evaluate --dataset_name {home}/prompts", "data --dataset_name {home}/prompts"):
        model = " --model_name_or_path {home}/base" if command.startswith(("data", "evaluate")) else ""
        assert "cannot be written: Not a directory" in refused(f"{command}{model} --output_dir {{tmp}}/file")
        assert refused([*f"{command}{model} --output_dir".split(), ""]) == "output_dir is empty. Set it to a folder."
    before = sorted((home / "prompts").iterdir())
    words = "--dataset_name {home}/prompts --output_dir {home}/prompts --model_name_or_path {home}/base"
    assert "which dataset_name names, too" in refused(f"evaluate {words}")
    assert "which dataset_name names, too" in refused(f"data {words}")
    assert sorted((home / "prompts").iterdir()) == before


# ---- Models


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def half_gguf(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 100)


MODELS = {
    "half": (lambda m: cut(m / "model.safetensors", 3000), "damaged or was not copied to its end"),
    "pointer": (lambda m: (m / "model.safetensors").write_text("version https://git-lfs"), "not copied to its end"),
    "pickle": (pickle_weights, "its weights are a pickle (.bin)"),
    "adapter": (lambda m: (m / "config.json").rename(m / "adapter_config.json"), "is an adapter and no model."),
    "sizes": (lambda m: change(m, hidden_size=64), "the sizes in config.json are not those of its weights"),
    "heads": (lambda m: change(m, num_attention_heads=7), "not a multiple of the number of attention heads"),
    "text": (lambda m: change(m, hidden_size="many"), "expected int, got str"),
    "encoder": (lambda m: change(m, model_type="bert", architectures=["BertForMaskedLM"]), "to a causal model"),
    "encoder-decoder": (lambda m: change(m, model_type="t5"), "has an encoder and does not continue text"),
    "gguf": (half_gguf, "Check model_name_or_path and the files."),
    "tokenizer": (lambda m: cut(m / "tokenizer.json", 300), "Copy or download its tokenizer.json again."),
}


@pytest.mark.parametrize("name", MODELS)
def test_base_model(refused, home, tmp_path, name):
    damage, part = MODELS[name]
    shutil.copytree(home / "base", tmp_path / "m")
    damage(tmp_path / "m")
    sentence = refused("sft --model_name_or_path {tmp}/m")
    assert part in sentence
    assert f"{tmp_path}/m" in sentence


def test_adapter_configuration_of_nothing(refused, home, tmp_path):
    shutil.copytree(home / "sft", tmp_path / "m")
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    assert "has PEFT type None. Pass a LORA adapter." in refused("ppo --sft_model_path {tmp}/m")


def test_result_of_sft_without_epochs(refused, home, tmp_path):
    shutil.copytree(home / "sft", tmp_path / "m")
    words = "choose --sft_path {tmp}/m --reward_model_path {home}/reward --dataset_name {home}/demonstrations"
    assert "has no checkpoints to choose from" in refused(words)
    (tmp_path / "m" / "result.json").write_text('{"epochs": [{"epoch": 1}]}')
    assert "names no checkpoints of its epochs. Run the SFT stage again." in refused(words)


# ---- Reward functions

FUNCTIONS = {
    "return [1 / 0 for _ in completions]": "raised ZeroDivisionError: division by zero (",
    "pass": "gave None for 8 completions; return a list with one number for each.",
    "return 1.0": "gave 1.0 for 8 completions",
    "return {1: 2.0}": "gave {1: 2.0} for 8 completions",
    "return [1.0]": "gave 1 scores for 8 completions",
    "return [[1.0]] * len(completions)": "gave [1.0] for a completion; return a finite number",
    "return [float('nan')] * len(completions)": "gave nan for a completion; return a finite number",
}


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize(("body", "part"), FUNCTIONS.items(), ids=FUNCTIONS)
def test_reward_functions(tmp_path, kind, body, part):
    (tmp_path / "r.py").write_text(f"{kind} f(completions):\n    {body}\n")
    functions = find_reward_functions([f"{tmp_path}/r.py:f"])
    with pytest.raises(InputError) as error:
        function_table(functions, ["a"] * 8, ["b"] * 8)
    assert part in str(error.value)
    assert "line 2)" in str(error.value) or "raised" not in part


# ---- Training


def test_a_loss_that_is_not_finite_ends_sft(refused):
    sentence = refused("sft --learning_rate 1e30 --max_grad_norm 0 --per_device_train_batch_size 4")
    assert sentence.startswith("The loss is nan after ")
    assert "Start again with a learning_rate below 1e+30" in sentence
    assert "resume" not in sentence  # the rate decides the result: no checkpoint goes on with another one


def test_an_adapter_with_weights_that_are_nan(refused, home, tmp_path):
    shutil.copytree(home / "sft", tmp_path / "m")
    file = tmp_path / "m" / "adapter_model.safetensors"
    save_file({name: torch.full_like(w, torch.nan) for name, w in load_file(file).items()}, file, {"format": "pt"})
    assert "of a rollout are not finite at step 0" in refused("ppo --sft_model_path {tmp}/m")


def test_damaged_checkpoint_and_what_was_kept(refused, tmp_path):
    function = (
        "calls = []\ndef f(completions):\n    calls.append(1)\n    return [1 / (len(calls) < 2)] * len(completions)\n"
    )
    (tmp_path / "r.py").write_text(function)
    words = "ppo --save_strategy steps --save_steps 1 --reward_funcs {tmp}/r.py:f"
    sentence = refused(words)
    assert "raised ZeroDivisionError" in sentence
    assert sentence.endswith("The run stopped at step 2 of 4. Go on from step 2 with --resume_from_checkpoint true.")
    for file in ("optimizer.pt", "ppo_state.json", "ppo_state.safetensors", "rng_state.pth"):
        path = tmp_path / "out" / "checkpoint-2" / file
        whole = path.read_bytes()
        cut(path, 10)
        sentence = refused(f"{words} --resume_from_checkpoint true")
        assert "checkpoint-2 is damaged: " in sentence, file
        assert "--overwrite_output_dir true" in sentence
        path.write_bytes(whole)


def test_paths_without_an_end(refused, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop does not exist" in refused("sft --dataset_name {tmp}/loop")
    assert "determine home directory" in refused("sft --dataset_name ~nobody-of-this-name/rows.jsonl")
    assert "~ and a user without a home" in refused("chat ~nobody-of-this-name/runs/mine")


def test_further_sources_have_options_of_their_own(refused, home):
    text = "ppo --pretrain_dataset_name "
    assert "--pretrain_columns text=" in refused(f"{text}{home}/prompts")
    assert refused(text + "{tmp}/no.txt").startswith("pretrain_dataset_name ")
    assert refused("reward --calibration_dataset {tmp}/no.jsonl").startswith("calibration_dataset ")


# ---- The machine


def test_faults_of_the_machine_are_sentences():
    assert "The disk is full" in machine_fault(OSError(errno.ENOSPC, "No space left on device"))
    assert "a.txt: permission denied" in machine_fault(PermissionError(errno.EACCES, "Permission denied", "a.txt"))
    assert "read only" in machine_fault(OSError(errno.EROFS, "Read-only file system", "a.txt"))
    assert machine_fault(MemoryError()) == MEMORY
    assert machine_fault(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) == MEMORY
    assert machine_fault(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")) == MEMORY
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise ValueError("in the handler") from None
    except ValueError as error:
        assert "The disk is full" in machine_fault(error)
    for bug in (ValueError("a"), KeyError("a"), RuntimeError("a"), FileNotFoundError(errno.ENOENT, "a", "b")):
        assert machine_fault(bug) is None


def test_a_file_that_cannot_grow(refused, home):
    """As of a full disk: the file system refuses the bytes in the middle of a run."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        sentence = refused("ppo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "another disk. The run stopped at step" in sentence
