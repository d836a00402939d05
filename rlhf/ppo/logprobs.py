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


def output_layer(lm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [n, V] of hidden states [n, H] by the unembedding alone."""
    return lm.get_output_embeddings()(hidden)  # pyright: ignore[reportOptionalCall]


def whole_head(lm: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [n, V] of hidden states [n, H] by the model's own code, which may scale or cap them.

    Gemma 2 caps, Cohere and Granite scale, and each has its own name for it. So the model's forward is called with
    the backbone replaced by one that gives `hidden`.
    """
    backbone = getattr(lm, lm.base_model_prefix)
    hooked = vars(backbone).get("forward")  # a forward that another library has replaced
    backbone.forward = lambda *args, **kwargs: _Hidden(hidden[None])
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return lm(input_ids=ids, use_cache=False).logits[0]
    finally:
        if hooked is None:
            del backbone.forward
        else:
            backbone.forward = hooked


class _Hidden:
    """An output of a backbone with the last hidden states and nothing else."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getitem__(self, index):
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


Unembed = Callable[[PreTrainedModel, Tensor], Tensor]


@torch.no_grad()
def find_unembedding(lm: PreTrainedModel, ids: Tensor) -> Unembed | None:
    """Returns the function that gives the model's logits of its last hidden states; None if it needs more than those.

    Tried on `ids` [B, T], because the configuration does not say what an architecture does to its logits.
    """
    ids = ids[:1, :2]
    hidden = getattr(lm, lm.base_model_prefix)(input_ids=ids, use_cache=False).last_hidden_state[0]
    logits = lm(input_ids=ids, use_cache=False).logits[0]
    for unembed in (output_layer, whole_head):
        try:
            if torch.equal(unembed(lm, hidden), logits):
                return unembed
        except (TypeError, AttributeError, RuntimeError):  # no output layer, or a forward of another kind
            continue
    return None
