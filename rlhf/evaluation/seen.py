"""Prompts that a model was trained on say nothing about it: they are left out of every number."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from rlhf.data.splits import conversation_id
from rlhf.errors import InputError
from rlhf.models.adapter_files import adapter_folder
from rlhf.runs.contract import IDS_NAME, read_conversations

logger = logging.getLogger(__name__)


def unseen_prompts(prompts: Dataset, adapters: Mapping[str, str | Path], name: str) -> tuple[Dataset, int | None]:
    """Returns the prompts whose conversations no adapter was trained on, nor its parents, and the number of the others.

    Args:
        prompts: column `prompt`.
        adapters: stage -> folder or Hub id.
        name: of the source, for messages.

    Returns:
        None in place of the number if an adapter does not say what it was trained on.

    Raises:
        InputError: all prompts were seen in training.
    """
    known = {stage: read_conversations(adapter_folder(folder)) for stage, folder in adapters.items()}
    ids = [seen for seen in known.values() if seen is not None]
    silent = [stage for stage, seen in known.items() if seen is None]
    if silent:
        logger.warning(
            "no %s beside the adapters of %s: nobody can tell which prompts they have seen", IDS_NAME, ", ".join(silent)
        )
    trained_on = np.unique(np.concatenate(ids)) if ids else np.array([], dtype=np.int64)
    asked = np.array([conversation_id({"prompt": prompt}) for prompt in prompts["prompt"]], dtype=np.int64)
    seen = np.isin(asked, trained_on)
    if seen.any() and seen.all():
        raise InputError(
            f"All {len(seen)} prompts of {name} were trained on by {', '.join(known)} ({IDS_NAME}). Ask prompts that "
            "are held out: leave dataset_test_split out, or give another dataset_name."
        )
    if seen.any():
        logger.warning("%d of %d prompts of %s were trained on, and are left out", seen.sum(), len(seen), name)
    return prompts.select(np.flatnonzero(~seen)), None if silent else int(seen.sum())
