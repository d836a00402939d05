"""`rlhf`: commands, recipes, help, the launch, exit codes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from help_pages import page_of

import rlhf.runs.launch as launch
from rlhf.command import find_scripts, main, overview, run, summary, take_option, with_config
from rlhf.errors import InputError
from rlhf.help_page import PAGES, stored_page, wrapped
from rlhf.runs.installation import find_config, find_recipe, installed_folder

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(find_scripts())


@pytest.fixture
def started(monkeypatch):
    """Returns the scripts that `run` starts, with their arguments, instead of starting them."""
    calls = []
    monkeypatch.setattr("rlhf.command.start", lambda script, args: calls.append((script.name, args)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.delenv("NNODES", raising=False)
    return calls


@pytest.fixture
def gpus(monkeypatch):
    return lambda number: monkeypatch.setattr(launch, "count_gpus", lambda: number)


# ---- What is started


def test_a_stage_of_a_recipe_is_launched_with_its_yaml(started, gpus, tmp_path, monkeypatch):
    gpus(0)
    monkeypatch.chdir(tmp_path)
    run(["ppo", "sandbox", "--kl_coef", "0.1"])
    ((program, args),) = started
    recipes, configs = installed_folder("recipes"), installed_folder("accelerate_configs")
    assert program == "launch.py"
    assert args == [
        *("--config_file", f"{configs}/cpu.yaml", "--num_cpu_threads_per_process", "1"),
        *(f"{configs}/start.py", f"{recipes}/ppo.py", "--config", f"{recipes}/sandbox/ppo.yaml", "--kl_coef", "0.1"),
    ]
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize(
    ("number", "asked", "config", "processes"),
    [
        (0, [], "cpu", None),
        (1, [], "single_gpu", "1"),
        (4, [], "multi_gpu", "4"),
        (4, ["--accelerate", "fsdp"], "fsdp", "4"),
        (4, ["--accelerate=single_gpu"], "single_gpu", "1"),
        (4, ["--accelerate", "multi_cpu"], "multi_cpu", None),
    ],
)
def test_the_machine_decides_on_the_launch(started, gpus, number, asked, config, processes):
    gpus(number)
    run(["sft", *asked, "sandbox"])
    ((_, args),) = started
    assert args[1].endswith(f"/{config}.yaml")
    assert (args[args.index("--num_processes") + 1] if "--num_processes" in args else None) == processes


@pytest.mark.parametrize(("asked", "config"), [([], "multi_node"), (["--accelerate", "zero3"], "zero3")])
def test_on_several_machines_the_launcher_counts_the_processes(started, gpus, monkeypatch, asked, config):
    gpus(4)
    monkeypatch.setenv("NNODES", "2")
    run(["sft", "sandbox", *asked])
    ((_, args),) = started
    assert args[1].endswith(f"/{config}.yaml")
    assert "--num_processes" not in args


@pytest.mark.parametrize("machines", ["", "0", "1"])
def test_one_machine_is_no_launch_over_several(started, gpus, monkeypatch, machines):
    gpus(2)
    monkeypatch.setenv("NNODES", machines)
    run(["sft", "sandbox"])
    ((_, args),) = started
    assert args[1].endswith("/multi_gpu.yaml")


def test_the_processes_of_an_own_file_are_as_it_says(started, gpus, tmp_path):
    gpus(4)
    path = tmp_path / "mine.yaml"
    path.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")
    run(["sft", "sandbox", "--accelerate", str(path)])
    ((_, args),) = started
    assert args[:2] == ["--config_file", str(path)]
    assert "--num_processes" not in args


def test_the_demo_runs_in_two_processes_on_the_cpu(started, gpus):
    gpus(1)
    run(["demo"])
    assert started[0][1][1].endswith("multi_cpu.yaml")


def test_cores_are_shared_by_the_processes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(5)), raising=False)
    assert [launch.threads(n) for n in (1, 2, 8)] == [5, 3, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert launch.threads(2) == 7


def test_other_commands_run_in_this_process_with_their_arguments(started):
    run(["compare", "runs/mine", "--prompt", "--accelerate is an option"])
    assert started == [("compare.py", ["runs/mine", "--prompt", "--accelerate is an option"])]


def test_help_all_loads_no_launcher(started):
    run(["ppo", "--help-all"])
    assert started == [("ppo.py", ["--help-all"])]


# ---- Recipes


def test_a_recipe_of_the_working_folder_comes_before_one_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_recipe("sandbox", "sft")
    assert packaged == installed_folder("recipes") / "sandbox"
    own = Path("recipes/sandbox")
    own.mkdir(parents=True)
    assert find_recipe("sandbox", "sft") == packaged, "a folder without this stage"
    (own / "sft.yaml").touch()
    assert find_recipe("sandbox", "sft") == own
    assert find_config(str(tmp_path / own), "sft") == tmp_path / own / "sft.yaml"
    assert find_config("recipes/sandbox/sft.yaml", "ppo") == own / "sft.yaml", "a file is taken as it is"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["pop"], ["pop is not a command", "rlhf ppo"]),
        (["zzz"], ["zzz", "rlhf --help"]),
        (["ppo"], ["recipe is missing", "sandbox", "rlhf ppo <recipe>"]),
        (["ppo", "sandbx"], ["no recipe sandbx", "Did you mean sandbox?"]),
        (["ppo", "zzz"], ["no recipe zzz", "Choose from", "sandbox"]),
        (["choose", "gpt2"], ["Recipe gpt2 has no choose.yaml", "sandbox"]),
        (["ppo", "nowhere/ppo.yaml"], ["nowhere/ppo.yaml does not exist"]),
        (["ppo", "./nowhere"], ["no recipe ./nowhere"]),
        (["ppo", "sandbox", "--accelerate"], ["--accelerate needs a value"]),
        (["ppo", "sandbox", "--accelerate", "--kl_coef"], ["--accelerate needs a value"]),
        (["ppo", "sandbox", "--accelerate", "gpus"], ["gpus does not exist", "single_gpu"]),
        (["ppo", "sandbox", "--accelerate", "no.yaml"], ["no.yaml does not exist"]),
        (["ppo", "sandbox", "--accelerate", "bad.yaml"], ["bad.yaml cannot be read"]),
        (["ppo", "sandbox", "--accelerate", "list.yaml"], ["list.yaml is no configuration of Accelerate"]),
        (["ppo", "sandbox", "--accelerate", "text.yaml"], ["text.yaml is no configuration of Accelerate"]),
        (["ppo", "sandbox", "--accelerate", "single_gpu"], ["needs a GPU", "--accelerate cpu"]),
        (["ppo", "sandbox", "--accelerate", "fsdp"], ["needs a GPU"]),
    ],
)
def test_mistakes_are_found_before_a_library_is_loaded(started, gpus, tmp_path, monkeypatch, args, parts):
    gpus(0)
    monkeypatch.chdir(tmp_path)
    for name, text in {"bad": "a: [", "list": "- 1\n", "text": "num_processes: many\n"}.items():
        Path(f"{name}.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        run(args)
    assert all(part in str(error.value) for part in parts), error.value
    assert started == []


def test_options_without_a_recipe_are_the_scripts_own():
    assert with_config("sft", ["--dataset_name", "x"]) == ["--dataset_name", "x"]
    assert with_config("toxicity", []) == []


def test_take_option_takes_one_of_either_form():
    assert take_option(["a", "--x", "1", "b"], "--x") == ("1", ["a", "b"])
    assert take_option(["--x=1", "--xy", "2"], "--x") == ("1", ["--xy", "2"])
    assert take_option(["a"], "--x") == (None, ["a"])


# ---- Help


def test_the_overview_has_a_line_for_each_command_and_recipe(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = overview().splitlines()
    for name, script in find_scripts().items():
        assert f"  {name:<10} {summary(script)}" in lines
        assert 20 < len(summary(script)) < 120, name
    assert any("sandbox" in line and "gpt2" in line for line in lines)


@pytest.mark.slow  # against another TRL the texts differ
@pytest.mark.parametrize("command", COMMANDS)
def test_the_stored_help_is_what_the_parser_says(command):
    assert stored_page(command) == page_of(command), "run `make format`, which writes rlhf/help/"


def test_there_is_a_page_for_each_command_and_no_other():
    assert sorted(path.stem for path in PAGES.glob("*.txt")) == COMMANDS


def test_each_own_option_has_a_help_text_and_a_default():
    options = [
        (command, *lines.split("\n")[:2])
        for command in COMMANDS
        for lines in (stored_page(command) or "").split("\n  --")[1:]
        if "options:" in (stored_page(command) or "")
    ]
    assert len(options) > 300
    without = ("config FILE", "smoke")
    for command, option, text in options:
        assert text.strip(), f"{command}: {option}"
        said = option in without or any(word in text for word in ("Default: ", "Required.", "None"))
        assert said, (command, option)


def test_pages_fit_the_terminal():
    page = wrapped(stored_page("ppo") or "", 72)
    options = page[page.index("Data options:") :].splitlines()
    assert max(map(len, options)) <= 72
    assert "".join(page.split()) == "".join((stored_page("ppo") or "").split())


# ---- The process


@pytest.mark.parametrize("args", [["--help"], ["ppo", "--help"], ["--version"], ["ppo", "zzz"]])
def test_help_and_mistakes_need_no_library(args):
    code = "import sys; from rlhf import command; sys.argv = ['rlhf', *sys.argv[1:]]\ntry: command.main()\n"
    code += "finally: print(sorted({'torch', 'trl', 'numpy', 'yaml'} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.returncode == (2 if "zzz" in args else 0)


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu", "multi_cpu"])
def test_a_mistake_in_a_launched_stage_is_one_line_and_exit_code_2(tmp_path, accelerate):
    command = [sys.executable, "-m", "rlhf.command", "sft", "sandbox", "--accelerate", accelerate]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--learning_rate", "fast"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2, result.stderr
    lines = set(result.stderr.splitlines())  # each process says it
    assert len(lines) == 1 and "learning_rate" in lines.pop(), result.stderr


def test_ctrl_c_while_libraries_load_is_one_word_in_the_command_and_in_a_stage(tmp_path, monkeypatch, capsys):
    def interrupted(script, args):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf.command.start", interrupted)
    monkeypatch.setattr(sys, "argv", ["rlhf", "compare", "runs/mine"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert (stopped.value.code, capsys.readouterr().err) == (130, "\nstopped\n")

    stage = tmp_path / "stage.py"
    stage.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(60)\n")
    starter = installed_folder("accelerate_configs") / "start.py"
    for rank, printed in (("0", "stopped"), ("1", "")):
        environment = os.environ | {"RANK": rank}
        result = subprocess.run([sys.executable, starter, stage], capture_output=True, text=True, env=environment)
        assert (result.returncode, result.stderr.strip()) == (130, printed)


def test_threads_that_are_no_number_are_one_line(tmp_path):
    launcher = installed_folder("accelerate_configs") / "launch.py"
    environment = os.environ | {"OMP_NUM_THREADS": "abc"}
    result = subprocess.run([sys.executable, launcher, "stage.py"], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stderr.endswith("error: OMP_NUM_THREADS is abc. Set it to a whole number.\n")


def test_the_exit_code_is_the_stages(load_launcher, capsys):
    assert load_launcher.exit_code(subprocess.CalledProcessError(2, "stage")) == 2
    assert load_launcher.exit_code(subprocess.CalledProcessError(-9, "stage")) == 137, "killed, as a shell says it"
    assert "SIGKILL, often for lack of memory" in capsys.readouterr().err
    assert load_launcher.exit_code(ConnectionError("port `1234` is used by another process")) == 2
    assert "Port 29500 is in use on this machine. Set MASTER_PORT" in capsys.readouterr().err
    with pytest.raises(OSError):
        load_launcher.exit_code(OSError("the launcher's own"))


@pytest.fixture
def load_launcher():
    path = installed_folder("accelerate_configs") / "launch.py"
    spec = importlib.util.spec_from_file_location("accelerate_launcher", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
