"""Options for the data of a stage, the same in every recipe."""

from dataclasses import dataclass, field
from typing import Literal

from rlhf.data.columns import parse_columns
from rlhf.data.formats import FORMATS
from rlhf.data.schemas import KNOWN
from rlhf.data.splits import split_of_name
from rlhf.errors import InputError, require_at_least


def check_columns(pairs: list[str] | None) -> None:
    """Raises `InputError` for pairs new=old that cannot be used."""
    parse_columns(pairs, KNOWN.union(*(form.columns for form in FORMATS.values())))


@dataclass
class DataArguments:
    """Source of the rows, the rows to use, and the handling of bad ones.

    Args:
        dataset_name: name on the Hub (`trl-lib/ultrafeedback_binarized`), file of a Hub repository
            (`OpenAssistant/oasst1/2023-04-12_oasst_ready.trees.jsonl.gz`), local file or folder (json, jsonl, csv,
            parquet), a store of `rlhf label` (labels.db), or `sandbox`.
        dataset_seed: seed that draws the rows of the sandbox; its world stays the same. Other sources ignore it.
    """

    dataset_name: str = field(
        metadata={"help": "Hub name, Hub file (owner/name/path), local file or folder, labels.db, or sandbox."}
    )
    dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of a Hub data set; for OpenAssistant the language, None for all."},
    )
    dataset_train_split: str = field(
        default="train",
        metadata={
            "help": "The source's split to train on. A tenth of its conversations is held out for validation and a "
            "tenth for test, whatever other splits the source has."
        },
    )
    dataset_size: int | None = field(
        default=None, metadata={"help": "Number of rows to train on, from the first. None uses all."}
    )
    dataset_eval_size: int | None = field(
        default=None, metadata={"help": "Number of rows to evaluate on, from the first. None uses all."}
    )
    dataset_seed: int = field(default=0, metadata={"help": "Seed that draws the rows of the sandbox."})
    dataset_format: str | None = field(
        default=None,
        metadata={"help": "Published format of the rows (docs/data.md). None recognizes it by the columns."},
    )
    columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "New names of columns, new=old, before the format is recognized: prompt=question ignore=score."
        },
    )
    prompt_style: Literal["chat", "text"] | None = field(
        default=None,
        metadata={
            "help": "Form of prompts that are text. chat: one message of the user. text: continued as it is. None: as "
            "the adapter that is loaded was trained; without one, chat if the tokenizer brings a chat template."
        },
    )
    on_bad_rows: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "error: end the run at a bad row. skip: leave bad rows out, list them in skipped_rows.jsonl."
        },
    )

    def __post_init__(self):
        if not self.dataset_name:
            raise InputError("dataset_name is empty. Set it to a Hub name, a local file or folder, or sandbox.")
        if self.dataset_format is not None and self.dataset_format not in FORMATS:
            raise InputError(f"dataset_format {self.dataset_format} is unknown. Choose from {', '.join(FORMATS)}.")
        check_columns(self.columns)
        if self.columns and self.dataset_name == "sandbox":
            raise InputError("columns renames columns of files, and the sandbox has none. Leave it out.")
        require_at_least(self, 1, "dataset_size", "dataset_eval_size")
        if split_of_name(self.dataset_train_split) in ("validation", "test"):
            raise InputError(
                f"dataset_train_split is {self.dataset_train_split}, a split that the source holds out. Its rows are "
                "never trained on; download the data and rename the file if they are meant to be."
            )


@dataclass
class PretrainingArguments:
    """Pretraining text that a stage mixes in; `rlhf.data.pretraining.open_sources` opens it.

    Args:
        pretrain_dataset_name: like `dataset_name`, one or several; rows need `text`. Hub data sets are streamed.
    """

    pretrain_dataset_name: list[str] | None = field(
        default=None, metadata={"help": "Sources of pretraining text: Hub names (streamed), files, folders, sandbox."}
    )
    pretrain_dataset_config: list[str] | None = field(
        default=None, metadata={"help": "Hub configuration of each source; '-' for the default. None: all default."}
    )
    pretrain_dataset_size: int | None = field(
        default=None, metadata={"help": "Number of documents to use of each source, from the first. None uses all."}
    )

    pretrain_columns: list[str] | None = field(
        default=None, metadata={"help": "New names of columns of these sources, new=old: text=content."}
    )

    def __post_init__(self):
        check_columns(self.pretrain_columns)
        names, configs = self.pretrain_dataset_name or [], self.pretrain_dataset_config
        if configs is not None and len(configs) != len(names):
            raise InputError(
                f"{len(configs)} pretrain_dataset_config for {len(names)} pretrain_dataset_name. Give one each."
            )
        require_at_least(self, 1, "pretrain_dataset_size")
