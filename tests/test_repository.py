"""The repository itself: committed files, commands of the pages, recipes and their YAMLs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf.cli
from rlhf.runs.artifacts import resolved_config, start_run

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
OTHER_SCRIPT = {"pretrain_stage2": "pretrain"}  # one script trains both stages of the sandbox's base model

# In pieces, so that this file does not name what it forbids.
FORBIDDEN = {
    "package index": re.compile(
        "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "download" + r"\.pytorch\.org"])
    ),
    "index option": re.compile("--" + r"((extra-)?index-url|find-links)"),
    "machine path": re.compile(
        r"(?<![\w.~])/(" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + r"me/(?!me\b|you\b)\w+"]) + ")/"
    ),
    "token": re.compile(r"\bhf_[A-Za-z]{30,}"),
}


def tracked_files() -> list[Path]:
    """Returns the files that git tracks and that exist."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_package_index_a_machine_or_a_token():
    matches = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # weights
        matches += [
            f"{path.relative_to(ROOT)}: {match.group()} ({kind})"
            for kind, pattern in FORBIDDEN.items()
            for match in pattern.finditer(text)
        ]
    assert matches == []


def test_no_tracked_file_is_a_pickle_or_too_large():
    files = tracked_files()
    assert [path.name for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")] == []
    assert [path.name for path in files if path.stat().st_size > 12_000_000] == []


def test_constraints_are_exact_versions_and_nothing_else():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", line), line


def test_the_default_environment_has_trls_own_ppo():
    assert "trl==1.12.0" in (ROOT / "constraints.txt").read_text().splitlines()


def makefile_targets() -> set[str]:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    return set(phony.split())


def test_make_help_lists_every_target():
    out = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = {line.split()[0] for line in out.splitlines() if not line.startswith("Variables")}
    assert listed == makefile_targets()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_commands_of_the_pages_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"(?m)(?:^[ \t]*(?:\$ )?|`)make (?!sure)([a-z]+)\b", "\n".join(_code(text))):
        assert target in makefile_targets(), f"{page}: make {target}"
    for command in re.findall(r"(?<!from )\brlhf ([a-z]+)\b", "\n".join(_code(text))):
        assert command in SCRIPTS, f"{page}: rlhf {command}"
    for path in re.findall(r"\b(?:recipes|accelerate_configs|examples|benchmarks)/[\w./-]+\w", text):
        assert (ROOT / path).exists() or path.startswith("recipes/mine"), f"{page}: {path}"  # mine: the reader's own


def _code(text: str) -> list[str]:
    """Returns the code blocks, indented lines and `spans` of a Markdown text."""
    return [
        *re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL),
        *re.findall(r"^ {4}.*$", text, flags=re.MULTILINE),
    ]


# ---- Recipes


def test_make_runs_commands_under_their_names():
    block = r"^([a-z]+): \$.*\n((?:\t.*\n)+)"
    targets = dict(re.findall(block, (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    run = {name: re.findall(r"\$\((?:RLHF\) |call STAGE,)(\w+)", lines) for name, lines in targets.items()}
    assert {"demo", "check", "sft", "reward", "choose", "ppo", "evaluate", "compare", "push"} <= set(SCRIPTS)
    for name in set(SCRIPTS) & targets.keys():
        assert set(run[name]) == {name}, name


def test_each_yaml_has_the_name_of_its_script():
    names = {config.stem for config in RECIPES}
    assert names - OTHER_SCRIPT.keys() <= set(SCRIPTS)
    assert OTHER_SCRIPT.keys() <= names


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_the_options(script, load_recipe, monkeypatch, capsys):
    """A bare per cent sign in a help text would end it in a traceback."""
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        load_recipe(script).main()
    assert stopped.value.code == 0
    assert "options:" in capsys.readouterr().out


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipe_is_read_by_its_stage_and_can_be_run_again(config, parse_recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    classes, parsed = parse_recipe(OTHER_SCRIPT.get(config.stem, config.stem), str(config))
    start_run(tmp_path, *parsed, stage=config.stem)
    again = rlhf.cli.parse(*classes, args=["--config", str(tmp_path / "config.yaml")])
    assert [resolved_config(one) for one in again] == [resolved_config(one) for one in parsed]
