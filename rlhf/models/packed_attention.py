"""Rows without padding: sequences stand one after another in one row, and attention keeps them apart.

    [sequence 1 | sequence 2 | ... | sequence S]        [1, T] tokens, T the sum of the lengths

Only attention mixes tokens, so all other layers process the row as it is, with `position_ids` that begin anew in each
sequence. Attention takes the cumulative lengths of the sequences (`torch.nn.attention.varlen`, which is
FlashAttention 2) as arguments of the model's forward, under the names that transformers gives them in its own flash
attention. This needs a GPU and a 16-bit dtype. Elsewhere rows are padded: `enable_packing` says why.

Transformers can also keep sequences apart by `position_ids` alone. It then masks T x T pairs, and some architectures
(OPT in 5.23) leave the mask out, so that each sequence reads the ones before it.
"""

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.errors import first_line
from rlhf.models.positions import takes_position_ids
from rlhf.models.precision import SIXTEEN_BITS
from rlhf.models.short_base import short_copy

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn: Any = None

NAME = "sdpa_packed"  # of `packed_attention` in transformers
OPTIONS = set(inspect.signature(varlen_attn).parameters) if varlen_attn else set()  # of `varlen_attn` in this torch


def packed_row(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Arguments of a forward, beside `input_ids` [1, T], for sequences of `lengths` in one row."""
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    position_ids = torch.arange(int(sizes.sum())) - starts.repeat_interleave(sizes)
    return {"position_ids": position_ids[None].to(device), **attention_arguments(lengths, lengths, device)}


def attention_arguments(
    query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device, packed_keys: Tensor | None = None
) -> dict[str, Any]:
    """Arguments of a forward for `packed_attention`.

    Args:
        query_lengths, key_lengths: [S] tokens of each sequence, and keys that it attends to; its last token sees all
            of its keys, the token before sees all but the last, and so on.
        packed_keys: [sum of key_lengths] int64, positions of the keys in the row; None: the row itself.
    """
    cumulative = [
        torch.tensor([0, *accumulate(ns)], dtype=torch.int32).to(device) for ns in (query_lengths, key_lengths)
    ]
    return {
        "cu_seq_lens_q": cumulative[0],
        "cu_seq_lens_k": cumulative[1],
        "max_length_q": rounded_up(max(query_lengths)),
        "max_length_k": rounded_up(max(key_lengths)),
        "packed_keys": packed_keys,
        "attention_mask": no_mask(sum(query_lengths), device),
    }


def rounded_up(length: int) -> int:
    """Returns a power of two that is not below `length`: compiled layers are compiled again for another number."""
    return max(16, 1 << (length - 1).bit_length())


def no_mask(tokens: int, device: torch.device) -> Tensor:
    """A 4-D mask, so that transformers builds none for the T x T pairs of a packed row. No layer may read it.

    It has one column too many: a layer that does not get the lengths, and attends with this mask, fails.
    """
    return torch.arange(tokens + 1, device=device)[None, None, None] < tokens


def repeated(inputs: dict[str, Any], times: int) -> dict[str, Any]:
    """The forward's arguments for `times` copies of all rows, as more rows; a packed row [1, T] becomes [times, T]."""
    tokens = inputs["input_ids"].shape[1]

    def longer(cumulative: Tensor) -> Tensor:
        return torch.cat([cumulative[:1], *(cumulative[1:] + copy * tokens for copy in range(times))])

    rows = {name: inputs[name].repeat(times, 1) for name in ("input_ids", "position_ids") if name in inputs}
    return inputs | rows | {name: longer(inputs[name]) for name in ("cu_seq_lens_q", "cu_seq_lens_k") if name in inputs}


def packed_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    packed_keys: Tensor | None = None,
    grids: Any = None,
    **kw: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows; without their arguments, `sdpa`.

    Args:
        query, key, value: [R, heads, T, head size]; key and value may have fewer heads.
        attention_mask: passed on to sdpa; not used on packed rows.
        cu_seq_lens_q, ..., packed_keys: see `attention_arguments`; rows count as if one stood after the other.
        grids: `SharedPrompts` of `rlhf.reward.prefix`.

    Returns:
        [R, T, heads, head size], None

    Raises:
        RuntimeError: the layer asks for something that `varlen_attn` does not have.
    """
    if grids is not None:
        return grids.attention(module, query, key, value, **kw), None
    if cu_seq_lens_q is None:
        return sdpa(module, query, key, value, attention_mask, **kw)
    if kw.get("dropout") or any(kw.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise RuntimeError(f"{type(module).__name__} does more than varlen_attn: set attn_implementation to eager.")
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # [R T, heads, size]
    if torch.is_autocast_enabled(q.device.type):  # as for sdpa
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    if packed_keys is not None:
        k, v = k.index_select(0, packed_keys), v.index_select(0, packed_keys)
    window = kw.get("sliding_window")  # tokens that a token sees, itself included; varlen_attn does not count itself
    if window is None and has_window(module):
        raise RuntimeError(f"{type(module).__name__} has a sliding window in its mask alone: rows must be padded.")
    options: dict[str, Any] = {"window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in OPTIONS:  # before torch 2.12, fewer heads of keys need no option
        options["enable_gqa"] = True
    lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
    out = varlen_attn(q, k, v, *lengths, scale=kw.get("scaling"), **options)
    return cast(Tensor, out).unflatten(0, (query.shape[0], query.shape[2])), None


def sdpa(module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kw: Any) -> tuple[Tensor, None]:
    """The sdpa attention of transformers, on a CPU in float32.

    There the backward kernel for 16 bits takes four times as long on rows of 40 tokens as for float32 (torch 2.13).
    """
    if query.device.type != "cpu" or query.dtype == torch.float64:
        return cast(tuple[Tensor, None], sdpa_attention_forward(module, query, key, value, mask, **kw))
    mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast("cpu", enabled=False):
        out, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **kw)
    return out.to(query.dtype), None


def has_window(module) -> bool:
    """True if the mask of a layer has a sliding window, which transformers makes from the configuration."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return kinds[module.layer_idx] == "sliding_attention"
    return bool(getattr(config, "sliding_window", None))


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


# ---- Which models


def enable_packing(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Lets `model` take packed rows on `device`; returns None, or the reason if it cannot.

    On a CPU, where it cannot, a model that computes in 16 bits gets `sdpa`, for speed.

    Args:
        dtype: in which the model computes: that of autocast, or of its weights.
    """
    if device.type == "cpu" and dtype in SIXTEEN_BITS and attention_obstacle(model) is None:
        model.set_attn_implementation(NAME)
    obstacle = kernel_obstacle(device, dtype) or attention_obstacle(model) or attention_dropout(model)
    obstacle = obstacle or kernel_fault(device, dtype)
    if obstacle:
        return obstacle
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    sharded = model.device.type != device.type or is_deepspeed_zero3_enabled()  # or will be, when it is on the device
    tried = _short_copy(model, device, dtype) if sharded else model
    if tried is not None and packs_correctly(cast(PreTrainedModel, tried.base_model), dtype):
        return None
    model.set_attn_implementation(cast(str, before))
    if tried is None:
        return (
            f"its weights are sharded, and there is no short {type(model).__name__} on which packed rows can be tried"
        )
    return f"the attention of {type(model).__name__} does not take packed rows"


def _short_copy(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> PreTrainedModel | None:
    """Returns a short model with the attention of `model`, or None: outside forward, sharded weights cannot compute."""
    try:
        short = short_copy(model)
    except Exception:  # of the model's own class
        return None
    short.set_attn_implementation(NAME)
    return short.to(device, dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]


def kernel_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Returns None, or why there is no `varlen_attn`."""
    if device.type != "cuda" or dtype not in SIXTEEN_BITS:
        return f"packed rows need a GPU and 16 bits, and it computes in {dtype} on {device.type}"
    if "window_size" not in OPTIONS:
        return f"torch {torch.__version__} has no attention for packed rows"
    return None


@torch.enable_grad()
def kernel_fault(device: torch.device, dtype: torch.dtype) -> str | None:
    """Tries `varlen_attn`, forward and backward, against sdpa; returns None, or how it fails in this torch on this GPU.

    Two sequences of 64 numbers a head, each head of keys for two heads of queries, without and with a sliding window.
    """
    generator = torch.Generator().manual_seed(0)
    lengths, heads = [5, 7], {"query": 4, "key": 2, "value": 2}
    inputs = [torch.randn(1, n, sum(lengths), 64, generator=generator) for n in heads.values()]
    position, sequence = torch.arange(sum(lengths)), torch.tensor([0, 1]).repeat_interleave(torch.tensor(lengths))
    distance = position[:, None] - position
    for window in (None, 3):
        seen = (sequence[:, None] == sequence) & (distance >= 0) & (distance < (window or sum(lengths)))
        q, k, v = expected = [x.to(dtype, copy=True).float().requires_grad_() for x in inputs]
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        of_sdpa = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
        query, key, value = given = [x.to(device, dtype, copy=True).requires_grad_() for x in inputs]
        options: dict[str, Any] = packed_row(lengths, device) | {"sliding_window": window}
        try:
            with torch.autocast(device.type, enabled=False):
                out, _ = packed_attention(None, query, key, value, **options)
                out.square().sum().backward()
        except (RuntimeError, TypeError, ValueError) as error:
            return f"torch {torch.__version__} cannot compute attention to packed rows: {first_line(error)}"
        of_sdpa.square().sum().backward()
        results = zip([out, *(x.grad for x in given)], [of_sdpa, *(x.grad for x in expected)], strict=True)
        if any(_error(result, right) > 0.03 for result, right in results):  # 16 bits: a hundredth
            return f"attention to packed rows is wrong in torch {torch.__version__}"
    return None


def _error(result: Tensor | None, right: Tensor | None) -> float:
    """Returns the size of the difference over the size of what is right; infinity without a result."""
    if result is None or right is None:
        return float("inf")
    return ((result.detach().cpu().float() - right.detach()).norm() / right.detach().norm()).item()


def attention_obstacle(model: PreTrainedModel) -> str | None:
    """Returns None, or why attention cannot be `packed_attention`.

    It takes the sdpa attention of transformers (its default) and an architecture whose layers call the attention
    interface of transformers: Llama, Mistral, Qwen 2 and 3, Gemma 3, GPT-2, GPT-NeoX, OPT, Phi, OLMo, SmolLM. Not
    supported: Falcon, BLOOM, GPT-J (attention of their own), Nemotron (its layers do not pass arguments on), Phi-MoE
    and Qwen 2 MoE with a sliding window (in the mask alone), Mamba and hybrids (state in place of attention).
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", NAME):
        return f"attn_implementation is {config._attn_implementation}, not sdpa"
    uses_interface = model._supports_attention_backend and model._can_set_attn_implementation()
    if not uses_interface or not takes_position_ids(cast(PreTrainedModel, model.base_model)):
        return f"{type(model).__name__} has an attention of its own"
    kinds = set(getattr(config, "layer_types", None) or ())
    if model._is_stateful or kinds - {"full_attention", "sliding_attention"}:
        return f"{type(model).__name__} has layers other than full attention"
    return None


def attention_dropout(model: PreTrainedModel) -> str | None:
    """Returns None, or the rate of attention's dropout as an obstacle."""
    for name, rate in vars(model.config.get_text_config()).items():
        if "att" in name and "drop" in name and rate:
            return f"{name} is {rate}, and attention to packed rows has no dropout"
    return None


def noise_obstacle(args: TrainingArguments) -> str | None:
    """Returns None, or NEFTune as an obstacle: its noise is alpha / sqrt(tokens of a row x H) (arXiv 2310.05914)."""
    if args.neftune_noise_alpha is None:
        return None
    return "the noise of neftune_noise_alpha depends on the length of a row"


@torch.no_grad()
def packs_correctly(backbone: PreTrainedModel, dtype: torch.dtype, by_positions: bool = False) -> bool:
    """Tries two sequences in one packed row; some architectures do not pass the arguments on to all layers.

    Args:
        by_positions: tries a row of `position_ids` alone, with the model's own attention.
    """
    ids = torch.arange(1, 13, device=backbone.device)
    parts = ids.split([5, 7])
    row = packed_row([5, 7], backbone.device)
    if by_positions:
        row = {"position_ids": row["position_ids"]}
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.autocast(ids.device.type, dtype, enabled=dtype != backbone.dtype):
            alone = [backbone(input_ids=part[None], use_cache=False).last_hidden_state[0] for part in parts]
            packed = backbone(input_ids=ids[None], use_cache=False, **row).last_hidden_state[0]
    except (RuntimeError, TypeError, ValueError):
        return False
    finally:
        backbone.train(was_training)
    expected = torch.cat(alone).float()
    errors = (packed.float() - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool(errors.mean() < (0.05 if dtype in SIXTEEN_BITS else 1e-3))  # 16-bit products differ by a hundredth
