"""Best of n: the one of n SFT answers with the highest reward. The baseline for PPO that needs no training."""

import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.generation.completions import Completion, completion_rewards, sample_completions
from rlhf.generation.score_options import DEFAULTS, PolicyOptions, shaped_rewards
from rlhf.models.shared_base import SharedBase


def best_of_n(
    shared: SharedBase,
    adapter: str,
    prompt_ids: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    max_new_tokens: int,
    options: PolicyOptions = DEFAULTS,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Completion]:
    """Returns for each prompt the sample with the highest reward, out of n; of equal ones the first.

    Each of the n rounds samples and scores one completion per prompt. Only the best so far stays in memory.

    Args:
        adapter: name of the adapter that answers. The adapter `reward` scores.
        max_new_tokens: length limit of an answer, in tokens.
        options: temperature of sampling, and the term for a missing EOS in the reward: those of PPO.
        seed: seed of the first round; round k has `seed + k`.
        progress: shows a progress bar.
    """
    best: list[Completion] = []
    scores = [-math.inf] * len(prompt_ids)
    for k in range(n):
        completions = sample_completions(
            shared,
            adapter,
            prompt_ids,
            tokenizer,
            max_new_tokens=max_new_tokens,
            temperature=options.temperature,
            seed=seed + k,
            batch_size=batch_size,
            description=f"{adapter}, {k + 1} of {n}",
            progress=progress,
        )
        best = best or list(completions)
        ids = [completion.ids for completion in completions]
        rewards = completion_rewards(shared, "reward", prompt_ids, ids, batch_size)
        rewards = shaped_rewards(rewards, completions, options)
        for i, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
            if reward > scores[i]:
                best[i], scores[i] = completion, reward
    return best


def best_of_n_kl(n: int) -> float:
    """Returns log n - (n - 1) / n: the KL of the best of n from the sampled model, in nats per response.

    Exact if no two scores are equal (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3), else an upper bound
    (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n
