"""rlhf.cli: a mistake on the command line or in the YAML gives one line and exit code 2."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Literal

import pytest
from trl import ModelConfig, SFTConfig

from rlhf.cli import parse, run
from rlhf.errors import InputError


@dataclass
class Arguments:
    name: str = "none"
    rows: int = 4
    rate: float = 1.0
    shuffle: bool = True
    on_bad_rows: Literal["error", "skip"] = "error"
    layers: list[int] = field(default_factory=list)

    def __post_init__(self):
        if self.rows < 0:
            raise ValueError(f"rows is {self.rows}, but must not be negative")


@pytest.fixture
def config(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_command_line_overrides_yaml_which_overrides_defaults(config):
    path = config("rows: 7\nrate: 1e-3\nshuffle: false\nlayers: [1, 2]\n")
    (arguments,) = parse(Arguments, args=["--config", path, "--rows", "9"])
    assert arguments == Arguments(rows=9, rate=0.001, shuffle=False, layers=[1, 2])
    assert isinstance(arguments.rate, float)  # YAML reads 1e-3, which has no decimal point, as text


def test_config_may_be_written_with_an_equals_sign(config):
    (arguments,) = parse(Arguments, args=[f"--config={config('rows: 7')}"])
    assert arguments.rows == 7


def test_yaml_types_follow_the_field(config):
    (arguments,) = parse(Arguments, args=["--config", config("name: 5\nrate: 2\nlayers: 3\n")])
    assert arguments.name == "5"
    assert arguments.rate == 2.0
    assert arguments.layers == [3]


@pytest.mark.parametrize(
    ("yaml", "parts"),
    [
        ("rwos: 3", ["rwos", "config.yaml", "did you mean rows?"]),
        ("zzz: 3", ["zzz", "--help"]),
        ("rows: 2.5", ["rows", "2.5", "int"]),
        ("rows: many", ["rows", "many", "int"]),
        ("rows: [1, 2]", ["rows", "single value"]),
        ("shuffle: perhaps", ["shuffle", "perhaps"]),
        ("layers: [1, x]", ["layers", "x"]),
        ("on_bad_rows: ignore", ["on_bad_rows", "ignore", "skip"]),
        ("rows: -1", ["rows is -1"]),
        ("- a\n- b", ["mapping"]),
        ("rows: [1", ["config.yaml", "YAML"]),
        (b"name: \xff\xfe\xfa", ["config.yaml"]),
    ],
)
def test_bad_yaml(config, yaml, parts):
    with pytest.raises(InputError) as error:
        parse(Arguments, args=["--config", config(yaml)])
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--rwos", "3"], ["--rwos", "did you mean --rows?"]),
        (["--row", "3"], ["--row"]),  # no abbreviations: a new option could change their meaning
        (["--rows", "x"], ["--rows", "x"]),
        (["--rows"], ["--rows"]),
        (["--on_bad_rows", "ignore"], ["ignore"]),
        (["stray"], ["stray"]),
        (["--config"], ["--config needs"]),
        (["--config", "a", "--config", "b"], ["more than once"]),
        (["--config", "/nowhere/c.yaml"], ["/nowhere/c.yaml", "No such file"]),
    ],
)
def test_bad_command_line(args, parts):
    with pytest.raises(InputError) as error:
        parse(Arguments, args=args)
    assert all(part in str(error.value) for part in parts), error.value


def test_unknown_key_is_found_among_trl_configs(config):
    with pytest.raises(InputError, match="did you mean learning_rate"):
        parse(SFTConfig, ModelConfig, args=["--config", config("learning_rat: 1e-3")])


def test_run_prints_one_line_and_exits_with_2(capsys):
    def main():
        raise InputError("row 3 of data.jsonl\nhas no prompt; add one.")

    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: row 3 of data.jsonl has no prompt; add one.\n"


def test_run_lets_other_errors_through():
    def main():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run(main)


def test_run_puts_the_level_of_the_log_back():
    log = logging.getLogger("rlhf")
    before = log.level
    run(lambda: log.setLevel(logging.ERROR))  # as `rlhf new` does
    assert log.level == before


def test_an_error_that_follows_ctrl_c_is_no_bug(capsys):
    """A process in a collective operation sees the connection close before it sees the signal."""

    def main():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert (stopped.value.code, capsys.readouterr().err) == (130, "\nstopped\n")


def test_the_collector_waits_for_the_libraries_and_passes_over_them():
    code = """
import gc
at_first = gc.get_threshold()
from rlhf.cli import run
assert gc.isenabled() and gc.get_threshold()[0] > 500_000, "while a recipe imports"
run(lambda: print(gc.get_threshold() == at_first, gc.get_freeze_count() > 10_000))
frozen = gc.get_freeze_count()
garbage = [[] for _ in range(10_000)]
run(lambda: print(gc.get_freeze_count() <= frozen))  # what a recipe leaves is no library
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True True\nTrue\n"
