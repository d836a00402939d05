"""rlhf.runs.markdown: the tables of cards and reports."""

import pytest

from rlhf.runs.markdown import markdown_table


def test_table_by_hand():
    assert markdown_table(["measure", "value"], [["loss", 0.5], ["pairs", "12"]]) == (
        "| measure | value |\n|---|---|\n| loss | 0.5 |\n| pairs | 12 |"
    )


def test_header_may_be_empty_and_rows_may_be_absent():
    assert markdown_table(["", ""], []) == "|  |  |\n|---|---|"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("two\nlines\r\nor  three", "two lines or three"),
        (r"C:\runs", r"C:\runs"),
    ],
)
def test_a_cell_cannot_end_its_row_or_its_column(text, cell):
    assert markdown_table([text], [[text]]) == f"| {cell} |\n|---|\n| {cell} |"
