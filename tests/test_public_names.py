"""The names of `rlhf` itself: each can be imported, none costs anything before it is used, and model cards use them."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf
from rlhf.runs.model_card import model_card

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "numpy")


def imports_of(text: str) -> list[str]:
    return re.findall(r"^(?:from|import) rlhf\b.*$", text, flags=re.MULTILINE)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", rlhf.__all__)
def test_every_name_is_there_and_is_what_its_module_defines(name):
    value = getattr(rlhf, name)
    assert value.__name__ == name
    assert value.__module__.startswith("rlhf.")
    assert name in dir(rlhf)


def test_type_checkers_see_the_same_names_in_the_same_modules():
    tree = ast.parse(Path(rlhf.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module.startswith("rlhf.")]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == rlhf.__all__
    assert seen == {name: f"rlhf.{module}" for name, module in rlhf._MODULES.items()}
    assert (Path(rlhf.__file__).parent / "py.typed").exists()


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'rlhf' has no attribute 'PPOTrainr'"):
        _ = rlhf.PPOTrainr
    with pytest.raises(ImportError, match="PPOTrainr"):
        from rlhf import PPOTrainr  # noqa: F401


def test_import_rlhf_imports_no_library():
    assert run_python(f"import rlhf, sys; print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_a_name_alone_imports_its_module():
    out = run_python("import rlhf, sys; from rlhf import InputError; print('rlhf.errors' in sys.modules)")
    assert out == "True\n"


@pytest.mark.parametrize("base", ["sandbox", "org/base"])
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_imports_that_a_model_card_prints_work(tmp_path, stage, base):
    base = str(Path(rlhf.__file__).parent / "sandbox" / "base") if base == "sandbox" else base
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    lines = imports_of(model_card(tmp_path, stage))
    assert len(lines) == (base != "org/base") + (stage == "reward")
    for line in lines:
        assert line.startswith("from rlhf import ")  # modules may move; a card on the Hub cannot follow them
        exec(line, {})
