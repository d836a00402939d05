"""Log-probabilities of tokens in chunks, so that logits [tokens, V] exist for a few tokens at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS = 2**24  # at a time: 64 MB of float32, and as much again for their softmax


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at `ids`, computed in float32.

    Args:
        logits: [N, V].
        ids: [N].

    Returns:
        [N] float32.
    """
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    return -F.cross_entropy(logits, ids, reduction="none")


def chunked_logprobs(
    unembed: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, temperature: float, vocabulary: int
) -> Tensor:
    """`token_logprobs` of unembed(hidden) with at most LOGITS logits at a time, in backward too.

    Backward recomputes the logits of a chunk. A single chunk is within the bound and keeps its logits.

    Args:
        unembed: [n, H] -> [n, V].
        hidden: [N, H].
        ids: [N].
    """

    def chunk_logprobs(hidden: Tensor, ids: Tensor) -> Tensor:
        return token_logprobs(unembed(hidden), ids, temperature)

    size = max(1, LOGITS // vocabulary)
    if len(ids) <= size:
        return chunk_logprobs(hidden, ids)
    chunks = zip(hidden.split(size), ids.split(size), strict=True)
    return torch.cat(
        [checkpoint(chunk_logprobs, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    )


@torch.no_grad()
def unembeds_plainly(lm: PreTrainedModel, ids: Tensor) -> bool:
    """True if logits are the unembedding of the last hidden state and nothing else; Gemma 2, for example, caps them.

    Tried on `ids` [B, T], because each architecture has its own name for what it does to its logits.
    """
    ids = ids[:1, :2]
    hidden = getattr(lm, lm.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state
    head = lm.get_output_embeddings()
    return head is not None and torch.equal(head(hidden), lm(input_ids=ids, use_cache=False).logits)
