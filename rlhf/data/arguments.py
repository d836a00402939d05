"""Which data a stage reads: the same options in every recipe."""

from dataclasses import dataclass, field
from typing import Literal

from rlhf.data.formats import FORMATS
from rlhf.errors import InputError, require_at_least


@dataclass
class DataArguments:
    """Where rows come from, which of them, and what happens to bad ones.

    Args:
        dataset_name: a name on the Hub (`trl-lib/ultrafeedback_binarized`), a file of a Hub repository
            (`OpenAssistant/oasst1/2023-04-12_oasst_ready.trees.jsonl.gz`), a local file or folder (json, jsonl, csv,
            parquet), or `sandbox`.
        dataset_seed: draws the rows of the sandbox (its world stays the same); other sources do not depend on it.
    """

    dataset_name: str = field(
        metadata={"help": "Hub name, Hub file (owner/name/path), local file or folder, or sandbox."}
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub dataset; for OpenAssistant the language, e.g. en."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(
        default="validation",
        metadata={"help": "Split to evaluate on. Where the source has none, 10 %% of the train prompts are held out."},
    )
    dataset_size: int | None = field(default=None, metadata={"help": "Train on the first N rows; all if not given."})
    dataset_eval_size: int | None = field(default=None, metadata={"help": "Evaluate on the first N rows."})
    dataset_seed: int = field(default=0, metadata={"help": "Seed of the sandbox's data."})
    dataset_format: str | None = field(
        default=None,
        metadata={"help": "Published format to convert from (docs/data.md); recognised by its columns if not given."},
    )
    on_bad_rows: Literal["error", "skip"] = field(
        default="error",
        metadata={"help": "skip: leave bad rows out, count them and list them in skipped_rows.jsonl of the run."},
    )

    def __post_init__(self):
        if not self.dataset_name:
            raise InputError("dataset_name is empty; give a Hub name, a local file or folder, or sandbox.")
        if self.dataset_format is not None and self.dataset_format not in FORMATS:
            raise InputError(f"dataset_format {self.dataset_format} is unknown; it is one of {', '.join(FORMATS)}.")
        require_at_least(self, 1, "dataset_size", "dataset_eval_size")
        if self.dataset_train_split == self.dataset_test_split:
            raise InputError(
                f"dataset_train_split and dataset_test_split are both {self.dataset_train_split}; "
                "evaluating on what was trained on measures nothing, so name two different splits."
            )


@dataclass
class PretrainingArguments:
    """Which pretraining text a stage mixes in; `rlhf.data.pretraining.open_sources` opens it.

    Args:
        pretrain_dataset_name: as `dataset_name`, one or several; rows need `text`. Hub data sets are streamed.
    """

    pretrain_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Sources of pretraining text: Hub names (streamed), files, folders, sandbox."}
    )
    pretrain_dataset_config: list[str] | None = field(
        default=None, metadata={"help": "Configuration of each of these that is on the Hub; '-' for none."}
    )
    pretrain_dataset_size: int | None = field(
        default=None, metadata={"help": "Use the first N documents of each source; all if not given."}
    )

    def __post_init__(self):
        names, configs = self.pretrain_dataset_name or [], self.pretrain_dataset_config
        if configs is not None and len(configs) != len(names):
            raise InputError(f"{len(configs)} pretrain_dataset_config for {len(names)} pretrain_dataset_name.")
        require_at_least(self, 1, "pretrain_dataset_size")
