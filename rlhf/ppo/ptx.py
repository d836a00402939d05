r"""PPO-ptx: a language-model loss on pretraining text beside PPO's (arXiv 2203.02155, section 3.5, eq. 2).

    objective = E_PPO[r - beta log(pi / pi_ref)] + gamma E_pretrain[log pi(x)]

Both terms are means over tokens: PPO's over the response tokens of a minibatch, and

    L_ptx = - 1/N sum_x sum_t log pi(x_t | x_<t)        L = L_PPO + gamma L_ptx

over the N predicted tokens of the minibatch's `ptx_examples_per_episode` x mini_batch_size blocks of text, on all
processes. So gamma (`ptx_coef`) does not depend on the lengths of blocks and responses or on the number of blocks; the
paper's 27.8 is read in this unit. If eq. 2 is read as sums over sequences instead, its gamma corresponds to gamma x
(block length) / (mean response length) here. Whitened advantages have variance 1, so gamma does not depend on the scale
of the reward.

Both gradients are accumulated for one optimizer step (appendix C.4). With one step each, Adam would divide gamma out
again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from rlhf.data.pretraining import PretrainingStream
from rlhf.errors import InputError
from rlhf.models.loading import context_length
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.guards import stop_non_finite_text

if TYPE_CHECKING:
    from rlhf.ppo.trainer import PPOTrainer

LONGEST_BLOCK = 2048  # the paper's context
SWEPT_COEF = 0.5  # supported by the sweep of benchmarks/ptx_sweep.py


def resolve_ptx_coef(coef: float | None, has_text: bool) -> float:
    """Returns gamma: `coef`, or SWEPT_COEF if it is None and there is pretraining text, or 0 without text.

    Raises:
        InputError: a positive coefficient without pretraining text.
    """
    if coef and not has_text:
        raise InputError(f"ptx_coef is {coef} and there is no pretraining text; give pretrain_dataset, or no ptx_coef.")
    return (SWEPT_COEF if coef is None else coef) if has_text else 0.0


def pretraining_stream(
    sources, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, args: PPOConfig
) -> PretrainingStream | None:
    """Blocks of the pretraining text in `sources`; None if `args.ptx_coef` is 0."""
    if args.ptx_coef == 0:
        return None
    length = block_length(args, context_length(config))
    return PretrainingStream(sources, tokenizer, length, weights=args.ptx_weights, seed=args.seed)


def block_length(args: PPOConfig, context: int | None) -> int:
    """Tokens in a block of pretraining text: `ptx_length`, or the model's context, up to 2048."""
    if args.ptx_length is None:
        return min(context or LONGEST_BLOCK, LONGEST_BLOCK)
    if context is not None and args.ptx_length > context:
        raise InputError(f"ptx_length {args.ptx_length} exceeds the model's context of {context} tokens; lower it.")
    return args.ptx_length


def add_ptx_gradient(trainer: "PPOTrainer", model: nn.Module) -> Tensor:
    """Adds the gradient of gamma L_ptx for one micro-step.

    All processes read the same text and each takes its share of the blocks, so that a minibatch has the same blocks on
    1 and on 8 processes. As many blocks pass the model at a time as episodes do.

    Returns:
        This process's share of gamma L_ptx, in the scale of the loss that the Trainer logs.
    """
    args, accelerator, stream, coef = trainer.args, trainer.accelerator, trainer.pretraining, trainer.args.ptx_coef
    assert stream is not None and coef is not None, "no pretraining text"
    model.train()  # training_step of the Trainer does this too late, after the text
    size = args.per_device_train_batch_size
    count = args.ptx_examples_per_episode * size * args.world_size
    blocks = list(islice(stream, count))[args.process_index :: args.world_size]
    tokens = count * trainer.current_gradient_accumulation_steps * (stream.length - 1)
    total = torch.zeros((), device=args.device)
    for chunk in (blocks[i : i + size] for i in range(0, len(blocks), size)):
        with local_gradients(accelerator, model):
            loss = ptx_loss(ptx_logprobs(model, chunk, args.device, trainer.is_deepspeed_enabled), tokens)
            # The loss is divided by all tokens of the minibatch already.
            kwargs = {"scale_wrt_gas": False} if trainer.is_deepspeed_enabled else {}
            accelerator.backward(coef * args.world_size * loss, **kwargs)  # DDP averages over the processes
        total += loss.detach()
    if not torch.isfinite(total):
        stop_non_finite_text(total, blocks, args, trainer.state.global_step)
    trainer.meter.loss({"loss/ptx": total}, steps=0.0)  # the episodes of this micro-step count the step
    return coef * args.world_size * total


def ptx_logprobs(model: nn.Module, blocks: list[list[int]], device: torch.device, deepspeed: bool) -> Tensor:
    """Log-probabilities [B, L - 1] of the tokens of blocks."""
    inputs = ptx_inputs(blocks, device)
    if not deepspeed:
        return model("policy_logprobs", **inputs)
    # Under DeepSpeed, a weight without a gradient in the first backward of a step would keep that of the step before.
    logprobs, values = model("policy_and_value", **inputs)
    return logprobs + 0.0 * values


def ptx_inputs(blocks: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """Blocks of L tokens as inputs of `ActorCritic`: all tokens but the first are predicted."""
    ids = torch.tensor(blocks, device=device)  # [B, L]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "response_mask": torch.ones_like(ids[:, 1:], dtype=torch.bool),
    }


def ptx_loss(logprobs: Tensor, tokens: int) -> Tensor:
    """These blocks' share of L_ptx.

    Args:
        logprobs: [B, L - 1], of the blocks' tokens.
        tokens: predicted tokens in the whole minibatch.
    """
    return -logprobs.sum() / tokens


@contextmanager
def local_gradients(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Accumulates gradients locally. The backward pass of the episodes, which follows, all-reduces both."""
    state = accelerator.gradient_state
    sync = state.sync_gradients
    state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(sync)
