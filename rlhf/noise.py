"""Warnings of libraries about which a user of this one can do nothing."""

import logging
import warnings

NOISE = (
    ".*'pin_memory' argument is set as true but no accelerator is found",
    ".*`is_gradient_checkpointing` is deprecated",  # by PEFT
    ".*`gradient_checkpointing` is deprecated",  # TRL 1.12 sets this field itself
    "fan_in_fan_out is set to False but the target module is `Conv1D`",  # by PEFT, which then sets it, for GPT-2
    "IProgress not found",  # by tqdm in a notebook without ipywidgets, where its bars are text
)


def quiet_libraries() -> None:
    """Hides these warnings from now on. Recipes do so by themselves, notebooks and scripts may."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("datasets.fingerprint").setLevel(logging.ERROR)  # it warns of rows that it cannot cache
