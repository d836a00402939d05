"""Lengths of a stage's rows in tokens: read as the stage reads them where the data is local, else the limits."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from rlhf.data import DataArguments, load_comparisons, load_demonstrations, load_prompts
from rlhf.data.label_stores import is_label_store
from rlhf.data.prompt_style import in_prompt_style
from rlhf.errors import InputError
from rlhf.noise import without_log
from rlhf.ppo.rollout import encode_prompts
from rlhf.reward.trainer import tokenize_comparisons
from rlhf.sft.trainer import tokenize_demonstrations

READ = 2000  # rows that are tokenized, spread evenly over the data
COMPLETIONS = 4  # of a prompt, where the data is not local


@dataclass(frozen=True)
class Rows:
    """Rows of a stage.

    Attributes:
        prompts: [n] tokens of the prompt of each row that was read.
        completions: [n][K] tokens of its completions; one in SFT, none in PPO.
        number: rows to train on, in all; None if it is not known.
        source: where the lengths are from, for the reader.
    """

    prompts: list[int]
    completions: list[list[int]]
    number: int | None
    source: str

    @property
    def longest_prompt(self) -> int:
        return max(self.prompts)

    @property
    def longest_completion(self) -> int:
        return max(max(row) for row in self.completions)

    @property
    def lengths(self) -> list[int]:
        """[n] tokens of each prompt and its longest completion."""
        return [p + max(row, default=0) for p, row in zip(self.prompts, self.completions, strict=True)]


def stage_rows(stage: str, data_args: DataArguments, tokenizer, limit: int) -> Rows:
    """Returns the rows of a stage ("sft", "reward", "ppo").

    Args:
        tokenizer: None where it cannot be had.
        limit: tokens of the longest row, in PPO of the longest prompt; longer rows are left out.

    Raises:
        InputError: the data cannot be read, as the stage would say, or no row is short enough.
    """
    name = data_args.dataset_name
    if tokenizer is None or not (name == "sandbox" or Path(name).exists() or is_label_store(name)):
        half = limit // 2
        prompt, completions = {
            "sft": (limit - half, [half]), "reward": (half, [limit - half] * COMPLETIONS), "ppo": (limit, []),
        }[stage]  # fmt: skip
        why = f"{name} is not on this machine" if tokenizer is not None else "the tokenizer is not on this machine"
        k = f" and {COMPLETIONS} completions" if stage == "reward" else ""
        text = f"{why}, so all rows are taken to have the limit of {limit:,} tokens{k}; real rows are shorter"
        return Rows([prompt], [completions], data_args.dataset_size, text)
    with tempfile.TemporaryDirectory(prefix="rlhf-plan-") as folder, quietly():
        dataset = LOADERS[stage](data_args, "train", folder)
        rows = dataset.select(range(0, len(dataset), -(-len(dataset) // READ)))
        rows = in_prompt_style(rows, data_args, tokenizer, "train", output_dir=folder)
        prompts, completions = TOKENIZED[stage](rows, tokenizer)
    fits = [i for i, prompt in enumerate(prompts) if prompt + max(completions[i], default=0) <= limit]
    if not fits:
        raise InputError(
            f"No row of {name} has at most {limit} tokens, so the {stage} stage would have none to train on."
        )
    number = round(len(dataset) * len(fits) / len(prompts))
    read = "all" if len(prompts) == len(dataset) else f"{len(prompts):,}"
    text = f"{number:,} rows of {name}, {read} of them read"
    return Rows([prompts[i] for i in fits], [completions[i] for i in fits], number, text)


def _demonstrations(rows: Dataset, tokenizer) -> tuple[list[int], list[list[int]]]:
    masks = tokenize_demonstrations(rows, tokenizer)["completion_mask"]
    return [mask.count(0) for mask in masks], [[sum(mask)] for mask in masks]


def _comparisons(rows: Dataset, tokenizer) -> tuple[list[int], list[list[int]]]:
    encoded = tokenize_comparisons(rows, tokenizer)
    prompts = list(encoded["prompt_length"])
    pairs = zip(prompts, encoded["completions_ids"], strict=True)
    return prompts, [[len(ids) - prompt for ids in completions] for prompt, completions in pairs]


def _prompts(rows: Dataset, tokenizer) -> tuple[list[int], list[list[int]]]:
    prompts = [len(ids) for ids in encode_prompts(rows, tokenizer, None)["input_ids"]]
    return prompts, [[] for _ in prompts]


LOADERS: dict[str, Callable[..., Dataset]] = {
    "sft": load_demonstrations, "reward": load_comparisons, "ppo": load_prompts,
}  # fmt: skip
TOKENIZED: dict[str, Callable[..., tuple[list[int], list[list[int]]]]] = {
    "sft": _demonstrations, "reward": _comparisons, "ppo": _prompts,
}  # fmt: skip


@contextlib.contextmanager
def quietly():
    """No progress bars, no log of the loaders."""
    with without_log(), contextlib.redirect_stderr(io.StringIO()):
        yield


# ---- Padding


def padded(lengths: list[int], rows: int, sorted_by_length: bool = False) -> float:
    """Returns tokens of a micro-batch of `rows` rows that are padded to its longest, on average.

    `rows` are drawn at random: with F(x) the share of lengths up to x, the longest is at most x with probability
    F(x)^rows. With `sorted_by_length`, neighbors in the order of their lengths are together.
    """
    ordered, n = sorted(lengths), len(lengths)
    if sorted_by_length:
        starts = range(0, n, rows)
        return rows * sum(ordered[min(start + rows, n) - 1] for start in starts) / len(starts)
    return rows * sum(x * (((i + 1) / n) ** rows - (i / n) ** rows) for i, x in enumerate(ordered))
