"""Configuration of the reward model stage."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trl import RewardConfig

from rlhf.errors import InputError, require_at_least
from rlhf.models.compiled_layers import COMPILE
from rlhf.models.micro_batches import rows_field
from rlhf.models.precision import bf16_on_cpu
from rlhf.models.recomputation import CHECKPOINTING, left_open
from rlhf.runs.batches import ROWS, resolve_batch, rows_left_open
from rlhf.runs.processes import use_one_device


@dataclass
class KWiseRewardConfig(RewardConfig):
    """TRL's RewardConfig with the paper's numbers as defaults (arXiv 2203.02155, appendix C.2).

    Batch sizes count prompts. Each prompt brings its K completions and all C(K, 2) pairs of them.
    """

    if TYPE_CHECKING:
        output_dir: str = ""  # TrainingArguments replaces None by a folder

    num_train_epochs: float = field(
        default=1.0, metadata={"help": "Epochs over the comparisons (paper: 1; more overfit there)."}
    )
    # The paper's 9e-6 moves all weights. LoRA needs about ten times the rate of full fine-tuning, whatever the model
    # (thinkingmachines.ai/blog/lora). A model of a few million parameters needs ten times more still.
    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate, for LoRA."})
    lr_scheduler_type: str = field(
        default="cosine_with_min_lr", metadata={"help": "Cosine decay to 10 %% of the peak, without warm-up."}
    )
    adam_beta2: float = field(default=0.95, metadata={"help": "Adam's second beta; the first is 0.9."})
    batch_size: int | None = field(
        default=None, metadata={"help": "Prompts per optimizer step over all processes. None: 64, as in the paper."}
    )
    per_device_train_batch_size: int = rows_field("Prompts per process and micro-batch, at most.")
    gradient_accumulation_steps: int | None = field(
        default=None, metadata={"help": "Micro-batches per optimizer step. None: computed from batch_size."}
    )
    gradient_checkpointing: bool | None = field(default=None, metadata=CHECKPOINTING)
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Prompts per device and evaluation batch."})
    completions_per_forward: int = field(
        default=32,
        metadata={
            "help": "Completions per forward pass, approximately. A batch is split into parts of similar length (of "
            "whole prompts if their completions share them). Changes memory use, not the loss."
        },
    )
    compile: bool | None = field(default=None, metadata=COMPILE)
    shuffled_pairs: bool = field(
        default=False,
        metadata={
            "help": "Ablation of the paper: every pair is an example of its own, shuffled over the data set, and "
            "batch sizes count pairs. Each completion is then trained on K - 1 times per epoch; the paper reports "
            "that this overfits."
        },
    )
    cross_validate: Literal["labelers", "labeler_groups", "prompts"] | None = field(
        default=None,
        metadata={
            "help": "Train and evaluate in five folds of the training data, each without a fifth of the labelers or "
            "prompts, or in one fold per labeler group, without that group. No model is saved. None trains one model "
            "on all training data."
        },
    )
    sft_model_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of the SFT adapter whose LoRA weights the reward model starts from. None or '' "
            "starts from the base model."
        },
    )
    calibration_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Demonstrations whose mean score becomes 0: `sandbox`, a Hub name, a local file or folder. "
            "None takes the demonstrations of dataset_name, if it has any. columns renames none of its columns."
        },
    )
    calibration_dataset_config: str | None = field(
        default=None,
        metadata={"help": "Configuration of calibration_dataset on the Hub; for OpenAssistant the language."},
    )
    calibration_size: int = field(default=512, metadata={"help": "Demonstrations to calibrate with, at most."})

    computed = frozenset()  # fields that __post_init__ computes; no field itself

    def __post_init__(self):
        self.computed = left_open(self) | rows_left_open(self)
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        with bf16_on_cpu(self):
            super().__post_init__()
        use_one_device(self)
        resolve_batch(self, paper=64)
        self.sft_model_path = self.sft_model_path or None  # "" on the command line overrides the path of a recipe
        require_at_least(self, 1, "completions_per_forward", "calibration_size")
        if self.train_sampling_strategy == "group_by_length":
            raise InputError("train_sampling_strategy group_by_length is for SFT: a row has completions of any length.")
        if self.cross_validate and ROWS in self.computed:
            raise InputError(
                f"{ROWS} is auto, and cross_validate trains several models, which would decide one by one. Set a "
                "number, or leave cross_validate out."
            )
        if self.cross_validate and str(self.resume_from_checkpoint or "false").lower() not in ("true", "false"):
            raise InputError(
                "cross_validate saves no checkpoints, but every finished fold. Set resume_from_checkpoint to true to "
                "resume after those."
            )
