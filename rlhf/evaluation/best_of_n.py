"""Best of n: of n answers of the SFT model, the one that the reward model likes best. PPO without any training."""

import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.generation.completions import Completion, completion_rewards, sample_completions
from rlhf.models.shared_base import SharedBase


def best_of_n(
    shared: SharedBase,
    adapter: str,
    prompt_ids: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    n: int,
    *,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Completion]:
    """The best of n samples at temperature 1 to each prompt, by the adapter `reward`; of equal ones the first.

    Samples are drawn and scored one round over the prompts after the other, and only the best is kept.

    Args:
        adapter: the model that answers.
        seed: of the first round; the k-th has `seed + k`.
    """
    best: list[Completion | None] = [None] * len(prompt_ids)
    scores = [-math.inf] * len(prompt_ids)
    for k in range(n):
        completions = sample_completions(
            shared,
            adapter,
            prompt_ids,
            tokenizer,
            max_new_tokens=max_new_tokens,
            seed=seed + k,
            batch_size=batch_size,
            description=f"{adapter}, {k + 1} of {n}",
            progress=progress,
        )
        ids = [completion.ids for completion in completions]
        rewards = completion_rewards(shared, "reward", prompt_ids, ids, batch_size)
        for i, (completion, reward) in enumerate(zip(completions, rewards, strict=True)):
            if reward > scores[i]:
                best[i], scores[i] = completion, reward
    return best


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n: KL of the best of n from the model that is sampled, in nats a response.

    Exact for a continuous distribution of scores (Stiennon et al. 2020, arXiv 2009.01325, appendix G.3), else an upper
    bound (Beirami et al. 2024, arXiv 2401.01879).
    """
    return math.log(n) - (n - 1) / n
