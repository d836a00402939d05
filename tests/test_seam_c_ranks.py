"""Ranks that were not meant so are seen before training."""

import json

import pytest
from datasets import Dataset

from rlhf.data import DataArguments
from rlhf.reward import calibration
from rlhf.reward.ranks import first_ordered, warn_of_odd_ranks


@pytest.mark.parametrize(
    ("rows", "warned"),
    [
        ({"ranks": [[0, 1], [1, 0]]}, None),
        ({"ranks": [[0, 0]] * 19 + [[0, 1]]}, "19 of 20 pairs of rows.jsonl are ties"),
        ({"ranks": [[0, 1, 2]], "ratings": [[9.0, 5.0, 1.0]]}, None),
        (
            {"ranks": [[2, 1, 0]], "ratings": [[9.0, 5.0, 1.0]]},
            "contradict its ratings in 3 of 3 pairs: rank 0 is the best",
        ),
        ({"ranks": [[0, 1], [0, 1], [1, 0]], "ratings": [[2.0, 1.0], [2.0, 1.0], [2.0, 1.0]]}, None),
        ({"ranks": [[0, 1], [1, 0]], "ratings": [[2.0, 1.0], None]}, None),
    ],
)
def test_seam_c_ranks_that_look_like_ratings_or_ties_alone(caplog, rows, warned):
    warn_of_odd_ranks(Dataset.from_dict(rows), "rows.jsonl")
    assert (warned is None and not caplog.records) or warned in caplog.text


def test_seam_c_the_comparison_that_is_shown_has_a_best_and_a_worst():
    assert first_ordered([[0, 0], [0, 0], [1, 0]]) == 2
    assert first_ordered([[0, 0]]) == 0


def test_seam_c_columns_of_the_comparisons_rename_nothing_of_the_calibration(tmp_path, monkeypatch):
    class Args:
        calibration_dataset, calibration_dataset_config = str(tmp_path / "demonstrations.jsonl"), None
        calibration_size, max_length = 1000, None

    monkeypatch.setattr(calibration, "in_prompt_style", lambda rows, *others: rows)
    monkeypatch.setattr(calibration, "_sequences", lambda rows, tokenizer, max_length: rows)
    rows = [{"prompt": f"Q{i}", "completion": "A", "label": i % 2} for i in range(200)]
    (tmp_path / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataArguments(str(tmp_path / "pairs.jsonl"), columns=["prompt=frage", "ignore=label"])
    read = calibration.load_calibration_rows(Args(), data, tokenizer=None)
    asked = {row["prompt"] for row in rows if row["label"]}
    assert len(read) > 5 and {row["prompt"] for row in read} <= asked  # the label is still read
    # Columns of the same source are renamed.
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"frage": r["prompt"], **r}) + "\n" for r in rows))
    Args.calibration_dataset = data.dataset_name
    data.columns = ["prompt=frage", "ignore=prompt"]
    assert calibration.load_calibration_rows(Args(), data, tokenizer=None)["prompt"][:] == read["prompt"][:]
