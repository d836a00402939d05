"""Warnings of libraries about which a user of this one can do nothing."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

NOISE = (
    ".*'pin_memory' argument is set as true but no accelerator is found",
    ".*`is_gradient_checkpointing` is deprecated",  # by PEFT
    ".*`gradient_checkpointing` is deprecated",  # TRL 1.12 sets this field itself
    "fan_in_fan_out is set to False but the target module is `Conv1D`",  # by PEFT, which then sets it, for GPT-2
    "Could not find a config file in .* - will assume that the vocabulary was not modified",  # by PEFT, of GGUF bases
    "IProgress not found",  # by tqdm in a notebook without ipywidgets, where its bars are text
)


def quiet_libraries() -> None:
    """Hides these warnings from now on. Recipes do so by themselves, notebooks and scripts may."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message)

    import datasets  # not at the top: with it comes tqdm.auto, which warns in a notebook as it is imported
    from transformers.utils import logging as hf_logging

    datasets.disable_progress_bars()  # of every map, also of TRL's "Building labels"
    hf_logging.disable_progress_bar()  # "Loading weights"
    logging.getLogger("datasets.fingerprint").setLevel(logging.ERROR)  # it warns of rows that it cannot cache
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of its own defaults, task by task


@contextmanager
def without_log() -> Iterator[None]:
    """Hides warnings, and what matters less, of all loggers inside a `with`."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def quiet_gguf() -> None:
    """Hides transformers' bar of the weights that it takes out of a GGUF file, which has no switch."""
    from tqdm import tqdm
    from transformers import modeling_gguf_pytorch_utils  # not at the top: most models are no GGUF file

    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=True)
