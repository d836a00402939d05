"""Log-probabilities of tokens in chunks: logits [tokens, V] exist for a few tokens at a time, and are computed once.

The log-probability of token i depends on hidden state i alone, so that its gradient is known in forward up to a factor,
the gradient g_i that backward will bring. With logits z = unembed(h) and temperature tau,

    d log pi_i / d h_i = (d z / d h_i)^T (onehot(token i) - softmax(z / tau)) / tau

Forward computes it chunk by chunk from the logits that it has, and backward multiplies by g_i: 4 V H FLOPs for a token,
and nothing of size V is kept. It takes an unembedding without trained parameters, whose gradients would need the
logits a second time.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

LOGITS = 2**24  # at a time on a CPU: 64 MB of float32, and as much again for each of log-softmax, softmax and gradient
GPU_LOGITS = 2**27  # 1,046 tokens of 128k words: 0.3 GB in bfloat16

# (logits [n, V], ids [n], temperature) -> values of each token; the first are the log-probabilities [n] float32, and
# alone have a gradient.
Statistics = Callable[[Tensor, Tensor, float], tuple[Tensor, ...]]


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature) at `ids`, computed in float32.

    Args:
        logits: [N, V].
        ids: [N].

    Returns:
        [N] float32.
    """
    return _OfLogits.apply(logits, ids, temperature, _logprobs)[0]  # pyright: ignore[reportIndexIssue]


def chunked_logprobs(
    unembed: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, temperature: float, vocabulary: int
) -> Tensor:
    """`token_logprobs` of unembed(hidden), a chunk of tokens at a time.

    They are bit for bit the same with and without gradients, of frozen and trained unembeddings: chunks depend on N
    and V alone, and all paths call the same functions.

    Args:
        unembed: [n, H] -> [n, V].
        hidden: [N, H].
        ids: [N].
    """
    return _chunked(unembed, hidden, ids, temperature, vocabulary, _logprobs)[0]


def chunked_statistics(
    unembed: Callable[[Tensor], Tensor], hidden: Tensor, ids: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities as of `chunked_logprobs`, and without gradients entropies in nats, and 1.0 for each token of
    `ids` that has the largest logit: [N] float32 each.
    """
    logprobs, entropies, correct = _chunked(unembed, hidden, ids, 1.0, vocabulary, _statistics)
    return logprobs, entropies, correct


def _chunked(unembed, hidden, ids, temperature: float, vocabulary: int, statistics: Statistics) -> tuple[Tensor, ...]:
    """`statistics` of all chunks.

    If the unembedding has trained parameters, backward computes the logits of a chunk again; a single chunk keeps them.
    """
    size = chunk_size(vocabulary, hidden.device)
    if not torch.is_grad_enabled():
        hidden = hidden.detach()  # else `needs_input_grad` below would be that of `hidden`
    if not torch.is_grad_enabled() or is_frozen(unembed, hidden):
        return _OnePass.apply(hidden, ids, unembed, temperature, size, statistics)  # pyright: ignore[reportReturnType]

    def of_chunk(hidden: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return _OfLogits.apply(unembed(hidden), ids, temperature, statistics)  # pyright: ignore[reportReturnType]

    if len(ids) <= size:
        return of_chunk(hidden, ids)
    chunks = zip(hidden.split(size), ids.split(size), strict=True)
    values = [checkpoint(of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(map(torch.cat, zip(*values, strict=True)))


class _OnePass(torch.autograd.Function):
    """`statistics` of unembed(hidden), where `unembed` has no trained parameters, in chunks of `size` tokens."""

    @staticmethod
    def forward(ctx, hidden, ids, unembed, temperature, size, statistics):
        values, directions = [], []
        for h, tokens in zip(hidden.split(size), ids.split(size), strict=True):
            # The backward below is no backward to hooks of others, such as those that offload activations.
            with saved_tensors_hooks(_same, _same), torch.set_grad_enabled(ctx.needs_input_grad[0]):
                h = h.detach().requires_grad_(ctx.needs_input_grad[0])
                logits = unembed(h)
            with torch.autocast(hidden.device.type, enabled=False):  # these functions round where they say
                values.append(statistics(logits.detach(), tokens, temperature))
                if ctx.needs_input_grad[0]:
                    gradients = _softmax_minus_onehot(logits.detach(), tokens, values[-1][0], temperature)
                    directions += torch.autograd.grad(logits, h, gradients)
                    del gradients
            del logits  # before the next chunk has its own
        if directions:
            ctx.save_for_backward(torch.cat(directions))
        ctx.temperature = temperature
        logprobs, *others = map(torch.cat, zip(*values, strict=True))
        ctx.mark_non_differentiable(*others)
        return logprobs, *others

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        (directions,) = ctx.saved_tensors  # [N, H] in the dtype of `hidden`
        hidden = (-gradient / ctx.temperature)[:, None] * directions
        return hidden.to(directions.dtype), None, None, None, None, None


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _OfLogits(torch.autograd.Function):
    """`statistics` of logits [n, V]."""

    @staticmethod
    def forward(ctx, logits, ids, temperature, statistics):
        with torch.autocast(logits.device.type, enabled=False):
            logprobs, *others = statistics(logits, ids, temperature)
        ctx.save_for_backward(logits, ids, logprobs)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(*others)
        return logprobs, *others

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, ids, logprobs = ctx.saved_tensors
        gradients = _softmax_minus_onehot(logits.float(), ids, logprobs, ctx.temperature)
        gradients.mul_((-gradient / ctx.temperature)[:, None])
        return gradients.to(logits.dtype), None, None, None


def chunk_size(vocabulary: int, device: torch.device) -> int:
    """Returns the tokens of a chunk: the same in every pass, process and resumed run, since it decides on rounding."""
    return max(1, (LOGITS if device.type == "cpu" else GPU_LOGITS) // vocabulary)


def is_frozen(unembed: Callable[[Tensor], Tensor], hidden: Tensor) -> bool:
    """True if the logits have no gradient but that of the hidden states; asks autograd, on no rows."""
    with torch.enable_grad():
        return not unembed(hidden[:0].detach()).requires_grad


# ---- One chunk: all that touches [n, V], beside the unembedding ------------------------------------------------------


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature


def _logprobs(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor]:
    return (torch.log_softmax(_scaled(logits, temperature), -1).gather(1, ids[:, None]).squeeze(1),)


def _statistics(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    logs = torch.log_softmax(_scaled(logits, temperature), -1)
    logprobs, correct = logs.gather(1, ids[:, None]).squeeze(1), (logits.argmax(-1) == ids).float()
    return logprobs, -logs.exp().mul_(logs).sum(-1), correct


def _softmax_minus_onehot(logits: Tensor, ids: Tensor, logprobs: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) - onehot(ids): [n, V] in the dtype of `logits`, computed in float32, rounded once.

    At `ids` it is pi - 1 = expm1(log pi), exact where pi is close to 1.
    """
    # The kernel of softmax computes 16-bit logits in float32, without a float32 copy.
    softmax = torch.softmax(logits if temperature == 1 else _scaled(logits, temperature), -1).to(logits.dtype)
    return softmax.scatter_(1, ids[:, None], logprobs.expm1()[:, None].to(logits.dtype))


# ---- Unembeddings ----------------------------------------------------------------------------------------------------


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
