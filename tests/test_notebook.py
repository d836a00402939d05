"""The notebook of the three steps: what it claims, clean outputs, its page, and a base other than the sandbox's."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from toys import save_toy

from rlhf.sandbox.tasks import task_of, task_split

ROOT = Path(__file__).resolve().parent.parent
MACHINE_PATH = re.compile(r"(?<![\w.~:/*])/(?:[\w.-]+/)+[\w.-]+")
MODEL = 'model_name = "sandbox"\n'


@pytest.fixture(scope="module")
def script():
    """Returns examples/execute.py as a module."""
    spec = importlib.util.spec_from_file_location("execute_notebook", ROOT / "examples" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def notebook(script) -> NotebookNode:
    """Returns the committed notebook, which the test may change."""
    return nbformat.read(script.NOTEBOOK, as_version=4)


def cell_of(notebook: NotebookNode, cell_id: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == cell_id)


def printed(notebook: NotebookNode, cell_id: str) -> str:
    return "".join(output.text for output in cell_of(notebook, cell_id).outputs if output.get("name") == "stdout")


def table_of(notebook: NotebookNode, cell_id: str) -> list[list[str]]:
    """Returns the rows of the Markdown table of a cell, the header first."""
    [text] = [output.data["text/markdown"] for output in cell_of(notebook, cell_id).outputs if "data" in output]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return [rows[0], *rows[2:]]


def numbers_of(notebook: NotebookNode) -> dict[str, dict[str, list[float]]]:
    """Returns {row: {model: [mean, low, high]}} of the table of the evaluation."""
    (_, *models), *rows = table_of(notebook, "numbers")
    values = {name: [[float(n) for n in re.findall(r"-?\d+\.\d+", cell)] for cell in cells] for name, *cells in rows}
    return {name: dict(zip(models, row, strict=True)) for name, row in values.items()}


def check_claims(notebook: NotebookNode) -> None:
    """Checks what the text says of the outputs."""
    numbers = numbers_of(notebook)
    base, sft, rlhf = ({row: values[model][:1] for row, values in numbers.items()} for model in ("base", "SFT", "RLHF"))
    assert sft["reward"] < rlhf["reward"]
    assert base["true quality, 0 to 1"] < sft["true quality, 0 to 1"] < rlhf["true quality, 0 to 1"]
    for row in ("is rude", "is padded"):
        assert rlhf[row] < sft[row], row
    win_rates = numbers["true win rate against SFT"]
    assert win_rates["base"][2] < 0.5 < win_rates["RLHF"][1]  # whole intervals
    low = re.search(r"interval (\d+)%", printed(notebook, "accuracy"))
    assert low and int(low[1]) > 50


# ---- As committed


def test_what_the_notebook_claims_is_in_its_outputs(notebook):
    check_claims(notebook)


def test_every_code_cell_was_executed_in_order(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_outputs_are_clean(script, notebook):
    assert script.clean(notebook) == notebook
    text, _ = script.page_of(notebook)
    assert MACHINE_PATH.findall(text) == []
    assert "Warning" not in text


def test_the_page_is_that_of_the_notebook(script, notebook):
    text, figures = script.page_of(notebook)
    assert script.PAGE.read_text(encoding="utf-8") == text, "run `make notebook`"
    assert len(figures) >= 2
    committed = {path.name: path.read_bytes() for path in script.PAGE.parent.glob(f"{script.PAGE.stem}-*.png")}
    assert committed == figures, "run `make notebook`"


def test_the_instructions_of_the_end_are_held_out(notebook):
    _, *rows = table_of(notebook, "side-by-side")
    tasks = [task_of(instruction) for instruction, *_ in rows]
    assert len(tasks) >= 4
    assert {task and task_split(task) for task in tasks} == {"test"}


def test_cells_are_short(notebook):
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.id != "imports"]
    assert max(source.count("\n") + 1 for source in code) <= 27


# ---- The script


def test_progress_is_left_out_and_warnings_are_found(script):
    bar = "Rows:   0%|    | 0/4 [00:00<?, ? examples/s]\rRows: 100%|████| 4/4 [00:00<00:00, 99.1 examples/s]\n"
    outputs = [
        new_output("stream", name="stderr", text=bar + "trainer.py:1: FutureWarning: old\n"),
        new_output("display_data", {"text/html": "<progress>", "text/plain": "<HTML>"}),
        new_output("execute_result", {"text/markdown": "| a |", "text/plain": "<Markdown>"}, execution_count=1),
        new_output("stream", name="stdout", text="2 pairs\n"),
        new_output("display_data", {"image/png": "iVBO", "text/plain": "<Figure>"}),
    ]
    code = new_code_cell("x", id="figure", outputs=outputs, metadata={"execution": {"iopub.status.idle": "2026"}})
    made = new_notebook(cells=[new_markdown_cell("Why.", id="why"), code])
    assert script.warnings_of(made) == ["trainer.py:1: FutureWarning: old"]
    cleaned = script.clean(made)
    assert cleaned.cells[1].metadata == {}
    assert len(cleaned.cells[1].outputs) == 3
    text, figures = script.page_of(cleaned)
    expected = "Why.\n\n```python\nx\n```\n\n| a |\n\n```text\n2 pairs\n```\n\n![figure](instructgpt-figure.png)\n"
    assert text == script.HEAD + expected
    assert figures == {"instructgpt-figure.png": b"\x89PN"}


# ---- Executed


@pytest.mark.slow
@pytest.mark.architectures
def test_the_notebook_runs_and_its_claims_hold(script, notebook, tmp_path):
    script.execute(notebook, tmp_path)
    assert script.warnings_of(notebook) == []
    check_claims(notebook)


@pytest.mark.slow
@pytest.mark.architectures
def test_the_notebook_runs_on_another_base(script, notebook, tmp_path):
    """A toy GPT-2: another architecture, another tokenizer, no chat template. Random weights learn nothing."""
    save_toy(tmp_path / "gpt2", "gpt2", n_positions=1024)
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and MODEL in cell.source]
    cell.source = cell.source.replace(MODEL, f"model_name = {str(tmp_path / 'gpt2')!r}\n")
    script.execute(notebook, tmp_path)
    own = [line for line in script.warnings_of(notebook) if not line.startswith("[transformers]")]  # the new pad token
    assert own == []
    assert all(numbers_of(notebook)["reward"].values())
