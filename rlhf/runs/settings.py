"""The options that tell two runs apart: those of config.yaml that may change a result."""

import re
from collections.abc import Mapping
from typing import Any

# Options that change no weight of the result, or that the contract records in another way: the rows, the base and the
# adapters by their digests, batches by their size over all processes. The length of a run may change too: a resumed
# run says so, because its learning rate follows the new length.
FREE = re.compile(
    r"(logging|log|report|hub|push|save|eval|dataloader|ddp|hub|trackio|dataset)_.*"
    r"|.*_(dir|model_path|ensemble_paths|tqdm|num_proc)|output_dir|run_name|project|use_cpu|debug|do_\w+|local_rank"
    r"|include_\w+|batch_eval_metrics|prediction_loss_only|per_device_eval_batch_size|enable_jit_checkpoint"
    r"|resume_from_checkpoint|overwrite_output_dir|restore_callback_states_from_checkpoint|load_best_model_at_end"
    r"|metric_for_best_model|greater_is_better|skip_memory_metrics|remove_unused_columns|torch_empty_cache_steps"
    r"|(gradient|activation)_checkpointing(_kwargs)?|num_sample_generations|on_bad_rows|columns|prompt_style|ppo_trainer"
    r"|local_rollout_forward_batch_size|completions_per_forward|choice_\w+|calibration_\w+|cross_validate"
    r"|model_name_or_path|model_revision|pad_to_multiple_of|per_device_train_batch_size|gradient_accumulation_steps"
    r"|mini_batch_size|batch_size|num_mini_batches|num_total_batches|micro_batch_size|local_\w*batch_size|seed"
)
LENGTH = ("num_train_epochs", "max_steps", "total_episodes")

# Free on resuming, because the contract records them by digests or over all processes, which config.yaml does not.
KEPT = (
    "dataset_name", "dataset_config", "dataset_size", "dataset_seed", "dataset_train_split", "dataset_test_split",
    "sft_model_path", "reward_model_path", "reward_ensemble_paths", "model_name_or_path", "model_revision", "seed",
    "batch_size", "mini_batch_size", "num_mini_batches", "calibration_dataset", "calibration_size", "columns",
)  # fmt: skip
SAME_RUN = ("resume_from_checkpoint", "overwrite_output_dir", "output_dir")


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns the options in which two runs differ, by name: those that may change the result.

    Args:
        a, b: options as config.yaml has them. One that is missing has its default, and differs from any other value.
    """
    return [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name) and tells_apart(name)]


def tells_apart(name: str) -> bool:
    """True for an option that may change the result; False for one of logs, files, memory or the machine."""
    return name not in SAME_RUN and (name in KEPT or not FREE.fullmatch(name))
