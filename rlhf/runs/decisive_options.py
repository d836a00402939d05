"""The options that decide a stage's result: those that a resumed run must share with its checkpoint."""

import dataclasses
import re
from typing import Any

from rlhf.runs.artifacts import option_defaults, resolved_config

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


def decisive_options(*configs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the options of a stage's dataclasses that decide its result, and the default of every such option.

    Options at their default are left out of the first, as in config.yaml. `rows_per_step`, and for PPO
    `episodes_per_rollout`, count over all processes, so that the same batch may be divided in another way.
    """
    options, defaults = {}, {}
    for config in configs:
        options |= {name: value for name, value in resolved_config(config).items() if not FREE.fullmatch(name)}
        defaults |= {name: value for name, value in option_defaults(config).items() if not FREE.fullmatch(name)}
        options |= _batch(config)
    return options, defaults


def _batch(config: Any) -> dict[str, int]:
    """Returns the sizes of a TrainingArguments' batches over all processes; {} for another dataclass."""
    fields = {field.name for field in dataclasses.fields(config)}
    if "gradient_accumulation_steps" not in fields:
        return {}
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    if "num_mini_batches" not in fields:
        return {"rows_per_step": per_step}
    return {"rows_per_step": per_step, "episodes_per_rollout": per_step * config.num_mini_batches}
