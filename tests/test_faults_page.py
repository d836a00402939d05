"""docs/faults.md names a test for every fault, and every such test exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = re.compile(r"\btest_seam_[a-i][0-9a-z_]*")


def test_every_fault_names_tests_that_exist():
    page = set(NAME.findall((ROOT / "docs/faults.md").read_text(encoding="utf-8")))
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    defined = {name for text in files for name in re.findall(r"^def (test_seam_\w+)", text, flags=re.MULTILINE)}
    assert page == defined
