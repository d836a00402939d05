"""Comparisons as single pairs, for the ablation `shuffled_pairs`."""

from itertools import permutations

from datasets import Dataset


def as_pairs(dataset: Dataset) -> Dataset:
    """Makes each strictly ordered pair of each comparison a row of its own.

    Args:
        dataset: rows of `rlhf.reward.trainer.tokenize_comparisons`.

    Returns:
        rows with the same columns and K = 2, the chosen completion first.
    """

    def split(batch):
        rows = {name: [] for name in batch}
        for number, ranks in enumerate(batch["ranks"]):
            for better, worse in permutations(range(len(ranks)), 2):
                if ranks[better] < ranks[worse]:
                    ids = batch["completions_ids"][number]
                    pair = {"completions_ids": [ids[better], ids[worse]], "ranks": [0, 1]}
                    for name in rows:
                        rows[name].append(pair[name] if name in pair else batch[name][number])
        return rows

    return dataset.map(split, batched=True, batch_size=100, desc="One row for each pair")
