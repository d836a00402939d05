"""rlhf.runs.markdown: the pages and tables that a run writes."""

import json

import jinja2
import pytest
import yaml

from rlhf.data.card import DataCard
from rlhf.data.prepare import Decision, PrepareArguments
from rlhf.runs.markdown import markdown_table, render_template
from rlhf.runs.model_card import model_card

SYNTAX = "{{ 7 * 7 }} {% raw %} {# no #} <b>&"  # of Jinja and HTML


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


def test_a_template_inserts_values_as_they_are(tmp_path):
    (tmp_path / "page.md.j2").write_text("# {{ title }}\n{% if rows %}\n{{ rows }}\n{% endif %}\nend\n")
    assert render_template(tmp_path / "page.md.j2", title=SYNTAX, rows="") == f"# {SYNTAX}\nend\n"
    assert render_template(tmp_path / "page.md.j2", title="t", rows=SYNTAX) == f"# t\n{SYNTAX}\nend\n"


def test_a_template_needs_all_its_values(tmp_path):
    (tmp_path / "page.md.j2").write_text("# {{ title }}\n")
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render_template(tmp_path / "page.md.j2")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_model_card_shows_what_looks_like_a_template(tmp_path, stage):
    config = {"dataset_name": f"/data/{SYNTAX}", "dataset_train_split": SYNTAX, "note": SYNTAX}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": SYNTAX}))
    (tmp_path / "result.json").write_text(json.dumps({SYNTAX: SYNTAX}))
    card = model_card(tmp_path, stage)
    assert f"- Base model: {SYNTAX} (not on the Hub)\n" in card and f"- Data: {SYNTAX} ({SYNTAX})\n" in card
    assert f"\n| {SYNTAX} | {SYNTAX} |\n" in card
    assert f"base, adapter = {json.dumps(SYNTAX)}, " in card
    assert "49" not in card.replace(str(tmp_path), "")


def test_a_fence_in_the_configuration_does_not_end_its_block(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"note": "a ``` fence\n```\n# heading\n"}))
    card = model_card(tmp_path, "sft")
    assert "\n````yaml\n" in card and card.count("\n````\n") == 1


def test_a_data_card_shows_what_looks_like_a_template():
    card = DataCard()
    card.add(Decision({"prompt": SYNTAX, "category": SYNTAX}, "train", tokens=9, reason=None))
    page = card.render(SYNTAX, PrepareArguments("out", SYNTAX), rows_read=1, bad_rows=0)
    assert page.startswith(f"# Prompts from {SYNTAX}\n")
    assert f"(tokenizer of {SYNTAX})" in page
    assert f"\n| {SYNTAX} | 1 | 0 | 0 |\n" in page
    assert page.endswith(f"\n> {SYNTAX}\n")
