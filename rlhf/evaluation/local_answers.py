"""Answers of models that are loaded here: one base after another, each with the adapters of its systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from rlhf.data.encode import Prompt
from rlhf.data.text_rewards import TextRewardModel, load_text_reward
from rlhf.evaluation.best_of_n import best_of_n
from rlhf.evaluation.local_systems import LocalSystem, Run
from rlhf.evaluation.store import AnswerStore
from rlhf.generation.completions import Completion, completion_logprobs, completion_rewards, sample_completions
from rlhf.generation.score_options import PolicyOptions, shaped_rewards
from rlhf.models.adapter_files import adapter_folder
from rlhf.models.chat_template import answer_text
from rlhf.models.shared_base import SharedBase
from rlhf.models.stages import load_shared_base
from rlhf.runs.processes import map_across_processes, process_state

CHUNK = 4  # batches of each process after which the answers are written


@dataclass(frozen=True)
class Group:
    """Systems on one base.

    Attributes:
        adapters: name in the shared base -> folder.
        heads: names of the adapters with score heads.
    """

    model_args: ModelConfig
    systems: list[LocalSystem]
    adapters: dict[str, Path]
    heads: set[str]

    def load(self) -> SharedBase:
        """Loads the base with all adapters."""
        tokenizer = max((parts.tokenizer for parts in self.systems), key=len)  # the base gets a row for each token
        return load_shared_base(self.model_args, tokenizer, self.adapters, self.heads)

    def name_of(self, folder: Path | None, head: bool = False) -> str | None:
        """Returns the name of an adapter in the shared base; None for the bare base."""
        return next(
            (name for name, path in self.adapters.items() if path == folder and (name in self.heads) == head), None
        )


def groups_of(systems: Sequence[LocalSystem], run: Run) -> list[Group]:
    """Returns the systems by their bases, which are in the order of their first systems."""
    by_base: dict[tuple, list[LocalSystem]] = {}
    for parts in systems:
        by_base.setdefault(parts.base, []).append(parts)
    groups = []
    for members in by_base.values():
        policies, rewards = dict[Path, None](), dict[Path, None]()
        for parts in members:
            policies |= dict.fromkeys(folder for folder in (parts.adapter, kl_reference(parts, run)) if folder)
            rewards |= {parts.reward: None} if parts.reward else {}
        stages = {adapter_folder(folder): name for name, folder in run.stages.items()}
        named = {stages.get(folder, f"system_{i}"): folder for i, folder in enumerate(policies)}
        heads = {
            ("reward" if stages.get(folder) == "reward" else f"reward_{i}"): folder for i, folder in enumerate(rewards)
        }
        groups.append(Group(members[0].model_args, members, named | heads, set(heads)))
    return groups


def kl_reference(parts: LocalSystem, run: Run) -> Path | None:
    """Returns the folder of the SFT adapter from which a system's KL is measured.

    None if it has none: it is greedy, chosen among several, prompted, not an adapter, or does not share SFT's base and
    tokenizer.
    """
    system = parts.system
    if "sft" not in run.stages or parts.adapter is None or parts.tokenizer is not run.tokenizer:
        return None
    if not system.temperature or system.best_of or system.prefix or system.stop:
        return None
    sft = adapter_folder(run.stages["sft"])
    same_base = parts.model_args == run.model_args
    return sft if same_base and parts.adapter != sft else None


def answer_by_model(
    group: Group,
    shared: SharedBase,
    parts: LocalSystem,
    asked: Mapping[int, Prompt],
    store: AnswerStore,
    run: Run,
    batch_size: int,
    seed: int,
) -> None:
    """Adds the missing answers of one system to its store, chunk by chunk, those to the longest prompts first.

    The chunks are the same after a kill, and so are the batches and the answers.
    """
    ids = dict(zip(asked, parts.encode(list(asked.values())), strict=True))
    missing = [i for i in sorted(ids, key=lambda i: -len(ids[i])) if i not in store.done]
    size = CHUNK * batch_size * process_state().num_processes
    for start in range(0, len(missing), size):
        numbers = missing[start : start + size]
        label = f"{parts.system.name}, {len(store.done) + len(numbers)} of {len(ids)}"
        chunk = Chunk(numbers, [asked[i] for i in numbers], [ids[i] for i in numbers], batch_size, seed, label)
        completions = _complete(group, shared, parts, chunk, run.options)
        kl = _kl(group, shared, parts, chunk, completions, run)
        store.append((i, _fields(c, k)) for i, c, k in zip(numbers, completions, kl, strict=True))


@dataclass(frozen=True)
class Chunk:
    """Prompts whose answers are written together.

    Attributes:
        numbers: prompt_id of each.
        ids: token ids of each, as the system is asked.
        label: of the progress bar.
    """

    numbers: Sequence[int]
    prompts: Sequence[Prompt]
    ids: list[list[int]]
    batch_size: int
    seed: int
    label: str


def _fields(completion: Completion, kl: float | None) -> dict[str, Any]:
    return {"response": completion.text, "ended": completion.ended, "tokens": len(completion.ids), "kl": kl}


def _complete(
    group: Group, shared: SharedBase, parts: LocalSystem, chunk: Chunk, options: PolicyOptions
) -> list[Completion]:
    """Returns a completion of each prompt."""
    system, tokenizer = parts.system, parts.tokenizer
    assert system.temperature is not None and system.max_new_tokens is not None, "see `systems.resolve`"

    def sample(k: int) -> list[Completion]:
        completions = sample_completions(
            shared,
            group.name_of(parts.adapter),
            chunk.ids,
            tokenizer,
            max_new_tokens=system.max_new_tokens or 1,
            temperature=system.temperature or 0.0,
            seed=chunk.seed + k,
            batch_size=chunk.batch_size,
            description=f"{chunk.label}, sample {k + 1} of {system.best_of}" if system.best_of else chunk.label,
            numbers=chunk.numbers,
        )
        return [cut(tokenizer, ids, c, system.stop) for ids, c in zip(chunk.ids, completions, strict=True)]

    def score(completions: Sequence[Completion]) -> list[float]:
        if parts.reward is not None:
            name, ids = group.name_of(parts.reward, head=True), [completion.ids for completion in completions]
            assert name is not None
            rewards = completion_rewards(shared, name, chunk.ids, ids, chunk.batch_size)
        else:
            prompts = [parts.in_style(prompt) for prompt in chunk.prompts]
            rewards = _text_rewards(str(system.reward), prompts, completions)
        return shaped_rewards(rewards, completions, options)

    return best_of_n(sample, score, system.best_of) if system.best_of else sample(0)


def _text_rewards(name: str, prompts: list[Prompt], completions: Sequence[Completion]) -> list[float]:
    """Returns the scores of a reward model that reads text, of which each process computes a share."""
    reward = _text_reward(name)

    def score_rows(rows: list[int]) -> list[float]:
        chosen = [completions[i] for i in rows]
        texts, ended = [completion.text for completion in chosen], [completion.ended for completion in chosen]
        return reward([prompts[i] for i in rows], texts, ended)

    return map_across_processes(len(completions), score_rows)


@lru_cache(maxsize=1)
def _text_reward(name: str) -> TextRewardModel:
    reward = load_text_reward(name)
    reward.model.to(process_state().device)  # pyright: ignore[reportArgumentType]
    return reward


def cut(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], completion: Completion, stops: Sequence[str]
) -> Completion:
    """Returns a completion up to the first of the texts `stops`, which then has ended it.

    Its ids are those up to the token that completes the text.
    """
    if not stops:
        return completion

    def text_of(count: int) -> str:
        return answer_text(tokenizer, prompt_ids, completion.ids[:count]).lstrip()

    text = text_of(len(completion.ids))
    found = [place for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return completion
    low, high = 1, len(completion.ids)  # the shortest ids whose text has one of the stops
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if any(stop in text_of(middle) for stop in stops) else (middle + 1, high)
    return Completion(completion.ids[:low], text[: min(found)].strip(), True)


def _kl(
    group: Group, shared: SharedBase, parts: LocalSystem, chunk: Chunk, completions: Sequence[Completion], run: Run
) -> Sequence[float | None]:
    """Returns log pi - log pi_sft of each sample, summed over its tokens, in nats; None where there is no reference."""
    reference, temperature = kl_reference(parts, run), parts.system.temperature
    if reference is None or temperature is None:
        return [None] * len(completions)
    ids = [completion.ids for completion in completions]
    policy, sft = (
        completion_logprobs(shared, group.name_of(folder), chunk.ids, ids, temperature)
        for folder in (parts.adapter, reference)
    )
    return [p - r for p, r in zip(policy, sft, strict=True)]
