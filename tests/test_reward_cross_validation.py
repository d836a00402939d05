"""Folds, leaks between them, and their numbers, with a trainer that scores by a known rule."""

from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from rlhf.errors import InputError
from rlhf.reward.accuracy import Predictions
from rlhf.reward.cross_validation import cross_validate, cross_validation_text, length_differences
from rlhf.reward.folds import FinishedFolds, assign_folds, fold_rows, rows_digest


def rows(n=40, labelers=("ann", "ben", "cleo", "dan", "eve", "fay"), rows_per_prompt=2, first_prompt=0):
    """Comparisons with K = 3 and a prompt of one token. `ann` ranks the longest completion first, the others last."""
    comparisons = []
    for i in range(n):
        labeler = labelers[i % len(labelers)]
        ids = [[1, 5], [1, 5, 6], [1, 5, 6, 7, 8]]
        ranks = [2, 1, 0] if labeler == "ann" else [0, 1, 2]
        row = {
            "completions_ids": ids,
            "ranks": ranks,
            "prompt_length": 1,
            "prompt_id": first_prompt + i // rows_per_prompt,
        }
        comparisons.append({**row, "labeler_id": labeler, "labeler_group": "north" if labeler < "c" else "south"})
    return Dataset.from_list(comparisons)


class ShortestFirst:
    """A trainer whose scores are minus the length, whatever the training rows."""

    def __init__(self, train, evaluation):
        self.train_dataset, self.eval_dataset = train, evaluation
        self.labeler_groups = sorted({*train["labeler_group"], *evaluation["labeler_group"]})

    def train(self):
        pass

    def predictions(self, dataset):
        lengths = np.array([[len(ids) - 1 for ids in row["completions_ids"]] for row in dataset])
        groups = np.array([self.labeler_groups.index(group) for group in dataset["labeler_group"]])
        return Predictions(
            -lengths.astype(float), np.array(dataset["ranks"]), lengths, np.array(dataset["prompt_id"]), groups
        )


@pytest.mark.parametrize(
    ("by", "sizes"), [("labelers", [4, 4, 4, 5, 6]), ("labeler_groups", [1, 4]), ("prompts", [4, 4, 5, 5, 5])]
)
def test_folds_keep_keys_together_and_have_about_one_size(by, sizes):
    keys = {"labelers": list("aaaaaabbbbbccccddddeefg"), "labeler_groups": list("nnnns"), "prompts": [*range(23)]}[by]
    fold_of = assign_folds(keys, by)
    assert sorted(Counter(fold_of).values()) == sizes
    assert len({(key, fold) for key, fold in zip(keys, fold_of, strict=True)}) == len(set(keys))
    assert fold_of == assign_folds(keys, by)


def test_another_seed_gives_other_folds():
    assert assign_folds([*range(30)], "prompts", 0) != assign_folds([*range(30)], "prompts", 1)


def test_a_conversation_is_never_on_both_sides():
    data = rows()
    fold_of = assign_folds(data["labeler_id"], "labelers")
    validation = rows(24, first_prompt=15)  # five conversations of data, and seven others
    for fold in range(5):
        train, evaluation = fold_rows(data, validation, fold_of, fold, "labelers")
        held_out = evaluation.filter(lambda row: row["labeler_group"] == "heldout")
        known = evaluation.filter(lambda row: row["labeler_group"] == "training")
        assert set(train["labeler_group"]) == {"training"}
        assert len(held_out) == fold_of.count(fold)
        assert not set(train["prompt_id"]) & set(held_out["prompt_id"])
        assert not set(train["labeler_id"]) & set(held_out["labeler_id"])
        assert set(known["labeler_id"]) <= set(train["labeler_id"])
        assert not set(known["prompt_id"]) & set(train["prompt_id"])
        assert set(known["prompt_id"]) & set(range(20, 27))


def test_hand_worked_numbers(tmp_path):
    """30 rows of six labelers: ann prefers long answers; the model and the other five labelers prefer short ones."""
    data, validation = rows(30, rows_per_prompt=1), rows(12, first_prompt=30)
    result = cross_validate(ShortestFirst, data, validation, "labelers", FinishedFolds(tmp_path, {}, False))
    assert (result["n_pairs"], result["accuracy"]) == (90, pytest.approx(5 / 6))
    by_labeler = {name: fold["accuracy"] for fold in result["folds"] for name in fold["held_out"]}
    assert by_labeler["ann"] in (0.0, 0.5)  # in a fold of its own, or with one of the other five
    # In each fold most training labelers prefer short answers, so the length model agrees with this model.
    assert result["length_only"]["accuracy"] == result["accuracy"]
    ahead = result["ahead_of_length_only"]
    assert ahead["difference"] == 0.0
    assert ahead["low"] == pytest.approx(-ahead["high"])
    assert ahead["high"] < 0.1  # 30 prompts that agree do not make it certain
    assert result["fold_mean"] == pytest.approx(np.mean([fold["accuracy"] for fold in result["folds"]]))
    assert result["training_labelers"]["n_prompts"] == 6
    assert result["labeler_gap"]["difference"] == pytest.approx(
        result["training_labelers"]["accuracy"] - result["accuracy"]
    )
    text = cross_validation_text(result)
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("|")] == [
        *("| fold", "|---" * 11 + "|", "| 1", "| 2", "| 3", "| 4", "| 5", "| all")
    ]


def test_by_prompts_there_are_no_labelers_to_compare(tmp_path):
    result = cross_validate(ShortestFirst, rows(30), rows(12), "prompts", FinishedFolds(tmp_path, {}, False))
    assert sum(fold["held_out"] for fold in result["folds"]) == 15
    assert result["training_labelers"]["accuracy"] is None
    assert result["labeler_gap"] is None
    assert "| - |" in cross_validation_text(result)


class Stopped(Exception):
    pass


def test_a_run_resumes_after_its_last_finished_fold(tmp_path):
    data, validation = rows(30, rows_per_prompt=1), rows(12, first_prompt=30)
    trained = []

    class Stopping(ShortestFirst):
        def train(self):
            if stop_at == len(trained):
                raise Stopped
            trained.append(self.train_dataset["prompt_id"])

    def run(folder, resume):
        return cross_validate(Stopping, data, validation, "labelers", FinishedFolds(folder, {"seed": 1}, resume))

    stop_at = 2
    with pytest.raises(Stopped):
        run(tmp_path, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-1.json", "fold-2.json"]
    stop_at = None
    resumed = run(tmp_path, resume=True)
    assert len(trained) == 5
    trained.clear()
    assert run(tmp_path, resume=True) == resumed
    assert not trained
    assert run(tmp_path, resume=False) == resumed  # starts over, with the same result
    assert len(trained) == 5


def test_folds_of_other_settings_or_rows_are_refused(tmp_path):
    with pytest.raises(InputError, match="no finished fold to resume from"):
        FinishedFolds(tmp_path, {}, resume=True)
    FinishedFolds(tmp_path, {"learning_rate": 1e-4, "rows": "a"}, resume=False).add(0, {"correct": [1.0]})
    assert FinishedFolds(tmp_path, {"learning_rate": 1e-4, "rows": "a"}, resume=True).predictions == {
        0: {"correct": [1.0]}
    }
    with pytest.raises(InputError, match=r"fold-1.json was trained with learning_rate 0.0001, but this run has 0.001"):
        FinishedFolds(tmp_path, {"learning_rate": 1e-3, "rows": "a"}, resume=True)
    with pytest.raises(InputError, match=r"fold-1.json was trained with rows a, but this run has b"):
        FinishedFolds(tmp_path, {"learning_rate": 1e-4, "rows": "b"}, resume=True)
    FinishedFolds(tmp_path, {"learning_rate": 1e-3, "rows": "a"}, resume=False)
    assert not list(tmp_path.iterdir())


def test_a_damaged_fold_is_an_error(tmp_path):
    (tmp_path / "fold-1.json").write_text('{"settings": {')
    with pytest.raises(InputError, match=r"fold-1.json is damaged. Delete it"):
        FinishedFolds(tmp_path, {}, resume=True)


def test_the_digest_covers_all_columns_of_all_rows():
    digests = {
        rows_digest(rows(5), rows(3)),
        rows_digest(rows(6), rows(3)),
        rows_digest(rows(5), rows(2)),
        rows_digest(rows(5, labelers=("ann", "ben")), rows(3)),
        rows_digest(rows(5, first_prompt=1), rows(3)),
        rows_digest(rows(5), rows(3).map(lambda row: {"labeler_group": "west"})),
    }
    assert len(digests) == 6
    assert rows_digest(rows(5), rows(3)) in digests


def test_a_fold_of_ties_has_no_accuracy(tmp_path):
    """Ann ranks three rows of seven, so she is a fold of her own. She ties everything."""
    data = rows(28, labelers=("ann", "ann", "ann", "ben", "cleo", "dan", "eve"), rows_per_prompt=1)
    data = data.map(lambda row: {"ranks": [0, 0, 0] if row["labeler_id"] == "ann" else row["ranks"]})
    result = cross_validate(ShortestFirst, data, data.select([]), "labelers", FinishedFolds(tmp_path, {}, False))
    assert [fold["accuracy"] for fold in result["folds"]] == [None, 1.0, 1.0, 1.0, 1.0]
    assert (result["accuracy"], result["fold_mean"], result["fold_standard_error"]) == (1.0, 1.0, 0.0)
    assert "| 1 | ann | - |" in cross_validation_text(result)


def test_rows_that_cannot_be_held_out_are_an_error(tmp_path):
    with pytest.raises(InputError, match="needs the column labeler_id"):
        assign_folds(["ann", ""], "labelers")
    with pytest.raises(InputError, match="at least 2 different"):
        assign_folds(["ann", "ann"], "labelers")
    same_prompt = Dataset.from_list([{**row, "prompt_id": 0} for row in rows(6)])
    with pytest.raises(InputError, match="nothing to train on"):
        cross_validate(ShortestFirst, same_prompt, rows(6), "labelers", FinishedFolds(tmp_path, {}, False))


def test_length_differences_of_the_labelers_choices():
    assert sorted(length_differences(rows(1)).tolist()) == [1, 2, 3]  # ann: the longest first
    assert sorted(length_differences(rows(1, labelers=("eve",))).tolist()) == [-3, -2, -1]
