"""Answers of every model to the same held-out prompts, sampled and greedy, with the verdicts of the judges."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf.data.encode import encode_prompt, plain_messages, prompt_key
from rlhf.evaluation.best_of_n import best_of_n
from rlhf.evaluation.gold import Judge
from rlhf.evaluation.preferences import AnswerRow
from rlhf.generation.completions import Completion, completion_logprobs, completion_rewards, sample_completions
from rlhf.generation.score_options import DEFAULTS, PolicyOptions, shaped_rewards
from rlhf.models.shared_base import SharedBase
from rlhf.runs.artifacts import is_first_process
from rlhf.runs.processes import map_across_processes


def judged_answers(
    shared: SharedBase,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    models: Sequence[str],
    *,
    judge: Judge | None,
    max_new_tokens: int,
    options: PolicyOptions = DEFAULTS,
    batch_size: int = 64,
    seed: int = 0,
    best_of: int = 0,
) -> list[AnswerRow]:
    """Returns one row (see `rlhf.evaluation.preferences`) for each arm and prompt.

    Args:
        shared: holds the adapters named in `models` (all but `base`). With an adapter `reward`, each answer gets a
            reward. With `sft` and `ppo`, the samples of PPO get their KL from SFT.
        prompts: columns `prompt` and optionally `category`.
        models: names out of `base`, `sft`, `ppo`.
        judge: gold judge, or None.
        max_new_tokens: length limit of an answer, in tokens.
        options: the policy's: temperature of the sampled arms and of the KL, and the term for a missing EOS in rewards.
        best_of: n of the arm `sft_best`, which needs the adapters `sft` and `reward`; 0 leaves the arm out.
    """
    prompt_ids = [encode_prompt(tokenizer, prompt) for prompt in prompts["prompt"]]
    rows: list[AnswerRow] = []
    # Each arm has its own random seed. With a common seed, two similar models would give the same answer to most
    # prompts, and the win rate would be that of coupled answers.
    arms = [(model, temperature) for temperature in (options.temperature, 0.0) for model in models]
    for number, (model, temperature) in enumerate(arms):
        arm = model if temperature else f"{model}_greedy"
        completions = sample_completions(
            shared,
            None if model == "base" else model,
            prompt_ids,
            tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=1000 * seed + number,
            batch_size=batch_size,
            description=f"{model}, {'sampled' if temperature else 'greedy'}",
        )
        rows += _rows(shared, arm, prompts, prompt_ids, completions, options, batch_size)
    if best_of:
        completions = best_of_n(
            shared,
            "sft",
            prompt_ids,
            tokenizer,
            best_of,
            max_new_tokens=max_new_tokens,
            options=options,
            seed=1000 * seed + len(arms),
            batch_size=batch_size,
        )
        rows += _rows(shared, "sft_best", prompts, prompt_ids, completions, options, batch_size)
    for row, verdict in zip(rows, _verdicts(rows, judge), strict=True):
        row["gold"] = verdict
    return rows


def _verdicts(rows: list[AnswerRow], judge: Judge | None) -> Sequence[dict[str, Any] | None]:
    if judge is None:
        return [None] * len(rows)

    def judge_rows(numbers: list[int]) -> list[dict[str, Any]]:
        shown = tqdm(numbers, desc="judging", unit="answer", leave=False, disable=not is_first_process())
        return [judge(rows[i]["prompt"], rows[i]["response"], ended=rows[i]["ended"]) for i in shown]

    return map_across_processes(len(rows), judge_rows)


def _rows(
    shared: SharedBase,
    arm: str,
    prompts: Dataset,
    prompt_ids: list[list[int]],
    completions: list[Completion],
    options: PolicyOptions,
    batch_size: int,
) -> list[AnswerRow]:
    measures = _measures(shared, arm, prompt_ids, completions, options, batch_size)
    return [
        _row(i, prompts[i], arm, completion) | {name: column[i] for name, column in measures.items()}
        for i, completion in enumerate(completions)
    ]


def _row(prompt_id: int, prompt: dict[str, Any], arm: str, completion: Completion) -> AnswerRow:
    text = prompt["prompt"]
    return {
        "prompt_id": prompt_id,
        "key": prompt_key(text),
        "category": prompt.get("category"),
        "prompt": text if isinstance(text, str) else plain_messages(text),
        "arm": arm,
        "response": completion.text,
        "ended": completion.ended,
        "tokens": len(completion.ids),
    }


def _measures(
    shared: SharedBase,
    arm: str,
    prompt_ids: list[list[int]],
    completions: list[Completion],
    options: PolicyOptions,
    batch_size: int,
) -> dict[str, Sequence[float | None]]:
    """Returns the columns `rm_score` and `reward`, and `kl`, the sum of log pi - log pi_sft, for the samples of PPO."""
    ids = [completion.ids for completion in completions]
    measures: dict[str, Sequence[float | None]] = {"rm_score": [None] * len(ids), "reward": [None] * len(ids)}
    if "reward" in shared.heads:
        scores = completion_rewards(shared, "reward", prompt_ids, ids, batch_size)
        measures = {"rm_score": scores, "reward": shaped_rewards(scores, completions, options)}
    if arm == "ppo" and "sft" in shared.adapters:
        policy, reference = (
            completion_logprobs(shared, name, prompt_ids, ids, options.temperature) for name in ("ppo", "sft")
        )
        measures["kl"] = [p - r for p, r in zip(policy, reference, strict=True)]
    return measures
