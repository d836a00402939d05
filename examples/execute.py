"""Executes instructgpt.ipynb, writes it with its outputs, and makes the page docs/instructgpt.md of it.

    make notebook

Outputs are text, Markdown and figures. Progress bars and tables of losses are for the reader at the screen and are left
out. Anything else on stderr is a warning, and ends in an error.
"""

import base64
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, PAGE = ROOT / "examples" / "instructgpt.ipynb", ROOT / "docs" / "instructgpt.md"

PROGRESS_BAR = re.compile(r"\d+%\||\d+(it|ex|examples| examples)? ?\[\d\d:\d\d")  # tqdm's
KEPT = ("text/markdown", "image/png", "text/plain")  # of several, the first
HEAD = f"*Made from [examples/{NOTEBOOK.name}](../examples/{NOTEBOOK.name}) by `make notebook`.*\n\n"


def execute(notebook: NotebookNode, folder: str | Path) -> None:
    """Executes the cells in `folder`, in a kernel of this environment; their outputs are then in the notebook."""
    NotebookClient(
        notebook,
        timeout=3600,  # seconds for a cell
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # the kernel warns that it listens on a local port
    ).execute()


def warnings_of(notebook: NotebookNode) -> list[str]:
    """Returns the lines on stderr that are no progress bars."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "\n".join(output.text for output in outputs if output.get("name") == "stderr")
    lines = re.split(r"[\r\n]|\x1b\[A", text)
    return [line for line in lines if line.strip() and not PROGRESS_BAR.search(line)]


def clean(notebook: NotebookNode) -> NotebookNode:
    """Returns the notebook with the outputs that a page keeps, and without metadata of its execution."""
    cells = []
    for cell in notebook.cells:
        cell = NotebookNode({**cell, "metadata": {}})
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output)) is not None]
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return NotebookNode({**notebook, "cells": cells, "metadata": metadata})


def _kept(output: NotebookNode) -> NotebookNode | None:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if not data.keys() <= set(KEPT):  # HTML and widgets show progress
        return None
    kind = next(kind for kind in KEPT if kind in data)
    return NotebookNode({**output, "data": {kind: data[kind]}, "metadata": {}})


def page_of(notebook: NotebookNode) -> tuple[str, dict[str, bytes]]:
    """Returns the Markdown page of an executed notebook, and its figures by their file names."""
    parts, figures = [], {}
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", ()):
            data = {"text/plain": output.text} if output.output_type == "stream" else output.data
            if "text/markdown" in data:
                parts.append(data["text/markdown"])
            elif "image/png" in data:
                name = f"{PAGE.stem}-{cell.id}.png"
                figures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![{cell.id}]({name})")
            else:
                parts.append(f"```text\n{data['text/plain'].rstrip()}\n```")
    return HEAD + "\n\n".join(parts) + "\n", figures


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, folder)
    if noise := warnings_of(notebook):
        sys.exit("\n".join(["error: the notebook has printed warnings:", *noise]))
    notebook = clean(notebook)
    nbformat.write(notebook, NOTEBOOK)
    text, figures = page_of(notebook)
    PAGE.write_text(text, encoding="utf-8")
    for name, png in figures.items():
        (PAGE.parent / name).write_bytes(png)


if __name__ == "__main__":
    main()
