"""Answers of every system to the same prompts: kept ones, those of files and endpoints, and new ones of models."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlhf.data.encode import plain_messages, prompt_key
from rlhf.evaluation.endpoints import answer_by_endpoint, check_endpoint
from rlhf.evaluation.local_answers import Group, answer_by_model, groups_of, kl_reference
from rlhf.evaluation.local_systems import LocalSystem, Run, local_system
from rlhf.evaluation.preferences import AnswerRow
from rlhf.evaluation.store import FOLDER, AnswerStore
from rlhf.evaluation.systems import System
from rlhf.models.adapter_files import adapter_digest

# Seeds with which the sandbox's published numbers were sampled; other systems get theirs from their names.
SEEDS = {"base": 0, "sft": 1, "ppo": 2, "sft_best": 6}


def check_systems(systems: Sequence[System], run: Run, prompt_style: str | None = None) -> dict[str, LocalSystem]:
    """Checks all systems but files, and returns the parts of those whose weights are loaded here, by name.

    Raises:
        InputError: a system that cannot answer; no weights are loaded yet.
    """
    local = {system.name: local_system(system, run, prompt_style) for system in systems if system.kind == "model"}
    for system in systems:
        if system.kind == "endpoint":
            check_endpoint(system)
    return local


def answer_all(
    systems: Sequence[System],
    local: Mapping[str, LocalSystem],
    files: Mapping[str, Sequence[dict[str, Any]]],
    prompts: Dataset,
    run: Run,
    output_dir: str | Path,
    *,
    batch_size: int = 64,
    seed: int = 0,
) -> list[AnswerRow]:
    """Returns one row (see `rlhf.evaluation.preferences`) for each system and prompt, systems in their order.

    New answers are written to `<output_dir>/answers` as they come, and are not made again as long as what they depend
    on is the same. Endpoints answer first: if one fails, no model was loaded in vain. Then one base after another is
    loaded, with the adapters of all systems that still have prompts to answer.

    Args:
        systems: of `rlhf.evaluation.systems.resolve`.
        local: of `check_systems`.
        files: name -> answers of the systems that are files, in the order of the prompts.
        prompts: columns `prompt`, `prompt_id` (its number, which decides on its random numbers) and optionally
            `category`.
        run: whose SFT adapter is the reference of the KL.
        batch_size: prompts that are decoded together.
        seed: of sampling.
    """
    asked = dict(zip(prompts["prompt_id"][:], prompts["prompt"][:], strict=True))
    stores: dict[str, AnswerStore] = {}
    for system in systems:
        if system.kind == "endpoint":
            identity: dict[str, Any] = {**system.spec(), "prefix_digest": system.prefix_digest}
        elif system.kind == "model":
            parts = local[system.name]
            reference = kl_reference(parts, run)
            identity = parts.identity(run.options) | {"reference": reference and adapter_digest(reference)}
            identity["seed"] = seed_of(system.name, seed)
        else:
            continue
        stores[system.name] = AnswerStore(Path(output_dir) / FOLDER, system.name, identity, asked)
    for system in systems:
        if system.kind == "endpoint":
            answer_by_endpoint(system, asked, stores[system.name])
    unfinished = [parts for name, parts in local.items() if len(stores[name].done) < len(asked)]
    for group in groups_of(unfinished, run):
        _answer_group(group, asked, stores, run, batch_size, seed)
    rows = []
    for system in systems:
        if system.kind == "file":
            answers = dict(zip(asked, files[system.name], strict=True))
        else:
            answers = stores[system.name].done
        rows += [_row(row, system.name, answers[row["prompt_id"]]) for row in prompts.to_list()]
    return rows


def seed_of(name: str, seed: int) -> int:
    """Returns the random seed of a system, which no other system changes.

    Each has its own. With a common seed, two similar models would give the same answer to most prompts, and the win
    rate would be that of coupled answers.
    """
    if name in SEEDS:
        return 1000 * seed + SEEDS[name]
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "little")


def _answer_group(
    group: Group, asked: Mapping[int, Any], stores: Mapping[str, AnswerStore], run: Run, batch_size: int, seed: int
) -> None:
    shared = group.load()
    for parts in group.systems:
        name = parts.system.name
        answer_by_model(group, shared, parts, asked, stores[name], run, batch_size, seed_of(name, seed))


def _row(prompt: Mapping[str, Any], system: str, answer: Mapping[str, Any]) -> AnswerRow:
    text = prompt["prompt"]
    return {
        "prompt_id": prompt["prompt_id"],
        "key": prompt_key(text),
        "category": prompt.get("category"),
        "prompt": text if isinstance(text, str) else plain_messages(text),
        "system": system,
        **{name: answer.get(name) for name in ("response", "ended", "tokens", "kl")},
    }
