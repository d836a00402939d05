"""Several sampled answers of some systems to each prompt, for people to compare.

The k answers to a prompt are shared among the systems. If k is no multiple of their number, the systems take turns with
the additional answers.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from trl import ModelConfig

from rlhf.data.encode import Prompt
from rlhf.errors import InputError
from rlhf.evaluation.answers import answer_all, check_systems
from rlhf.evaluation.completion_files import read_completions
from rlhf.evaluation.local_systems import LocalSystem, load_run
from rlhf.evaluation.systems import System, parse_systems, resolve
from rlhf.models.loading import context_length, load_config, resolve_model_name
from rlhf.runs.checks import check_model_options

logger = logging.getLogger(__name__)

MOST = 100  # answers of a system to a prompt; the number of an answer tells its prompt


def sample_answers(
    specs: Sequence[str],
    prompts: Sequence[Prompt],
    k: int,
    output_dir: str | Path,
    *,
    stages: Mapping[str, str],
    model_args: ModelConfig,
    max_new_tokens: int = 256,
    batch_size: int = 64,
    seed: int = 0,
) -> list[tuple[Prompt, list[tuple[str, str]]]]:
    """Returns each prompt that fits the context of every system, and k answers to it as (text, name of the system).

    Systems that name no temperature sample at 1. Answers are kept in `<output_dir>/answers` as they come, so a killed
    run repeats none, and more prompts or a larger k change no earlier answer.

    Args:
        specs: of `rlhf.evaluation.systems`.
        stages: sft, ppo, reward -> folder or Hub id of the run's adapters.
        model_args: options of the run's base.

    Raises:
        InputError: a system that cannot answer, named before any model is loaded.
    """
    check_model_options(model_args)
    run = load_run(model_args, stages)
    systems = [resolve(one, 1.0, max_new_tokens, stages.get("reward")) for one in parse_systems(specs)]
    local = check_systems(systems, run)
    prompts = short_prompts(prompts, list(local.values()))
    each = -(-k // len(systems))
    asked = [prompt for prompt in prompts for _ in range(each)]
    numbers = [MOST * i + j for i in range(len(prompts)) for j in range(each)]
    files = {one.name: read_completions(one, asked) for one in systems if one.kind == "file"}
    rows = Dataset.from_dict({"prompt": asked, "prompt_id": numbers})
    answers = answer_all(systems, local, files, rows, run, output_dir, batch_size=batch_size, seed=seed)
    text = {(row["system"], row["prompt_id"]): row["response"] for row in answers}
    return [
        (prompt, [(text[name, MOST * i + j], name) for name, j in turns(systems, i, k)])
        for i, prompt in enumerate(prompts)
    ]


def turns(systems: Sequence[System], i: int, k: int) -> list[tuple[str, int]]:
    """Returns the k answers to prompt i as (system, number of its answer): [a 0, b 0, a 1] and then [b 0, a 0, b 1]."""
    n = len(systems)
    return [(systems[(i + j) % n].name, j // n) for j in range(k)]


def short_prompts(prompts: Sequence[Prompt], systems: Sequence[LocalSystem]) -> list[Prompt]:
    """Returns the prompts after which every system has room for its answer; the number of others is logged."""
    kept = list(prompts)
    for parts in systems:
        name = resolve_model_name(parts.model_args.model_name_or_path)
        context = context_length(load_config(name, parts.model_args.model_revision))
        if context is not None:
            limit = context - (parts.system.max_new_tokens or 0)
            kept = [one for one, ids in zip(kept, parts.encode(kept), strict=True) if len(ids) <= limit]
    if not kept:
        raise InputError("No prompt fits the context of every system beside max_new_tokens. Lower it, or ask others.")
    if len(kept) < len(prompts):
        logger.warning("%d of %d prompts do not fit the context: left out", len(prompts) - len(kept), len(prompts))
    return kept
