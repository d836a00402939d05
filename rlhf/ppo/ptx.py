r"""PPO-ptx: a language-model loss on pretraining text beside PPO's (arXiv 2203.02155, section 3.5, eq. 2).

    objective = E_PPO[r - beta log(pi / pi_ref)] + gamma E_pretrain[log pi(x)]

Both terms are means over tokens here: PPO's over the response tokens of a minibatch, and

    L_ptx = - 1/N sum_x sum_t log pi(x_t | x_<t)        L = L_PPO + gamma L_ptx

over the N predicted tokens of its `ptx_examples_per_episode` x mini_batch_size blocks of text, on all processes. So
gamma (`ptx_coef`) does not depend on the lengths of blocks and responses, nor on the number of blocks, and the paper's
27.8 is read in this unit. If eq. 2 is read as sums over sequences instead, its gamma is worth gamma x (block length) /
(mean response length) here. Whitened advantages have variance 1, so gamma does not depend on the scale of the reward.

The gradients of the two are computed one after the other and added up for one optimizer step (appendix C.4): with a
step each, Adam would divide gamma out again.
"""

import torch
from torch import Tensor

from rlhf.errors import InputError
from rlhf.ppo.config import PPOConfig

LONGEST_BLOCK = 2048  # the paper's context
SWEPT_COEF = 0.5  # what the sweep of docs/ppo.md supports


def resolve_ptx_coef(coef: float | None, has_text: bool) -> float:
    """gamma: with pretraining text `coef`, or SWEPT_COEF if that is None; else 0, as InputError makes sure."""
    if coef and not has_text:
        raise InputError(f"ptx_coef is {coef} and there is no pretraining text; give pretrain_dataset, or no ptx_coef.")
    return (SWEPT_COEF if coef is None else coef) if has_text else 0.0


def block_length(args: PPOConfig, context: int | None) -> int:
    """Tokens in a block of pretraining text: `ptx_length`, or all that the model's context takes, up to 2048."""
    if args.ptx_length is None:
        return min(context or LONGEST_BLOCK, LONGEST_BLOCK)
    if context is not None and args.ptx_length > context:
        raise InputError(f"ptx_length {args.ptx_length} exceeds the model's context of {context} tokens.")
    return args.ptx_length


def ptx_inputs(blocks: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """Blocks of L tokens as inputs of `ActorCritic`: all tokens but the first are predicted."""
    ids = torch.tensor(blocks, device=device)  # [B, L]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "response_mask": torch.ones_like(ids[:, 1:], dtype=torch.bool),
    }


def ptx_loss(logprobs: Tensor, tokens: int) -> Tensor:
    """These blocks' part of L_ptx: `logprobs` [B, L - 1] of their tokens, `tokens` predicted in the whole minibatch."""
    return -logprobs.sum() / tokens
