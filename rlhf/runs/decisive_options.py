"""The options that decide a stage's result: those that a resumed run must share with its checkpoint."""

import dataclasses
from typing import Any

from rlhf.runs.artifacts import option_defaults, resolved_config
from rlhf.runs.settings import FREE


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
    if "num_mini_batches" in fields:
        return {"rows_per_step": config.mini_batch_size, "episodes_per_rollout": config.batch_size}
    return {
        "rows_per_step": config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    }
