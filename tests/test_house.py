"""The house: the order in which the rooms of rlhf/ import each other, the length of files, American spelling."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A room is a package or a loose module of rlhf/. It imports only rooms of earlier lines, so no stage imports another.
ORDER = (
    ("errors", "help_page", "noise", "options", "plots", "smoke", "statistics", "tensors"),
    ("agreement", "option_parser"),
    ("cli",),
    ("runs", "sandbox"),
    ("models",),
    ("generation",),
    ("data",),
    ("sft", "reward", "ppo", "evaluation", "inference", "labeling"),
    ("setup", "plan"),
    ("command",),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
LOOSE = {*ORDER[0], *ORDER[1], *ORDER[2], *ORDER[-1]}
IMPORT_THE_SANDBOX = {"data", "evaluation"}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "rlhf").rglob("*.py"))
}
# Not `rlhf` itself: it offers names of all rooms, and imports each when it is first used.
ROOMS = {name: name.split(".")[1] for name in MODULES if name != "rlhf"}


@cache
def imports(module: str, types_too: bool = True) -> frozenset[str]:
    """Returns the modules of rlhf that `module` imports, in functions too; by default also those for type checkers."""
    tree, names = ast.parse(MODULES[module].read_text(encoding="utf-8")), set()
    if not types_too:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: import {node.module or '.'} by its full name"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {member if member in MODULES else node.module for member in members}
    return frozenset(names & ROOMS.keys())


def test_rooms_import_earlier_rooms_only():
    assert set(ROOMS.values()) <= LEVEL.keys(), "a new room of rlhf/: give it a line in ORDER"
    upward = {
        f"{module} imports {other}"
        for module, room in ROOMS.items()
        for other in imports(module)
        if ROOMS[other] != room and LEVEL[ROOMS[other]] >= LEVEL[room]
    }
    assert upward == set()


def test_data_and_evaluation_alone_import_the_sandbox_and_it_imports_loose_modules_only():
    for module, room in ROOMS.items():
        others = {ROOMS[other] for other in imports(module)} - {room}
        assert "sandbox" not in others or room in IMPORT_THE_SANDBOX, module
        assert room != "sandbox" or others <= LOOSE, module


def test_no_modules_import_each_other_in_a_circle():
    left = set(ROOMS)
    while left:
        free = {module for module in left if not imports(module, types_too=False) & left - {module}}
        assert free, f"a circle among {sorted(left)}"
        left -= free


def test_few_modules_are_loose():
    assert {room for module, room in ROOMS.items() if MODULES[module].parent == ROOT / "rlhf"} <= LOOSE


def test_no_file_of_the_library_is_long():
    lines = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in MODULES.values()}
    del lines["rlhf/ppo/trainer.py"]  # all of PPO's control flow, to be read from top to bottom
    assert {name: count for name, count in lines.items() if count > 350} == {}


# ---- Spelling

# Verbs that end in -ize, without that ending.
VERBS = """
    categor custom general initial maxim memor minim normal optim organ parallel penal priorit quant random recogn
    serial special standard summar synchron token util visual
"""
BRITISH = re.compile(
    rf"({'|'.join(VERBS.split())})is(e|es|ed|er|ers|ing|ation|ations)(?![a-z])|analys(e|ed|ing)(?![a-z])|(behavi|col|fav|hon|neighb)our"
    r"|artefact|\bcentre|licence|(cancel|label|model)l(ed|ing)",
    flags=re.IGNORECASE,
)
PAGES = ("*.md", "docs/*.md", "recipes/**/*.py", "recipes/**/*.yaml", "rlhf/**/*.py", "rlhf/**/*.j2")


def own_words(path: Path) -> str:
    """Returns the text of a file without what is data: code in a page, the English that the sandbox's world speaks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"```.*?```|`[^`\n]+`|^ {4}.*$", "", text, flags=re.DOTALL | re.MULTILINE)
    if path.suffix == ".py" and "sandbox" in path.parts:
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
        docstrings = {node.body[0].lineno for node in nodes if ast.get_docstring(node)}
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        text = "\n".join(
            token.string
            for token in tokens
            if token.type in (tokenize.COMMENT, tokenize.NAME)
            or (token.type == tokenize.STRING and token.start[0] in docstrings)
        )
    return text


def test_spelling_is_american():
    paths = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    words = {str(path.relative_to(ROOT)): {m.group() for m in BRITISH.finditer(own_words(path))} for path in paths}
    assert {path: british for path, british in words.items() if british} == {}
