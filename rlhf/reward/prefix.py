"""Computes the prompt of K completions once.

The completions of a prompt share it as a prefix, and a decoder's hidden states of the prompt do not depend on later
tokens. So a batch becomes one row without padding, with each prompt once:

    [prompt 1 | ... | prompt B | completion 1 | ... | completion N]

Only attention mixes tokens; all other layers process this row as it is. Attention is computed in two steps: prompts
attend to themselves, completions attend to their prompt and themselves. Gradients reach the prompt through all of its
completions. Cost of one layer for K completions of C tokens after a prompt of P tokens:

                      linear layers, tokens     attention, pairs of tokens
    each with prompt  K (P + C)                 K (P + C)^2
    prompt shared     P + K C                   P^2 + K C (P + C)

Sharing never costs more, so there is no option to turn it off.
"""

import inspect
from dataclasses import dataclass
from typing import cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_shared_prompts"


class SharedPrompts:
    """Positions of prompts and completions in a row, for `shared_prompt_attention`.

    Attributes:
        prompts: [B, P] int64, positions in the row of the tokens of each prompt; any valid position in padding.
        completions: [N, C] int64, the same of each completion.
        prompt_of: [N] int64, index in 0..B-1 of each completion's prompt.
        row: [T] int64, position of each token of the row in the B P + N C entries of the two grids.
        mask: [N, 1, C, P + C] bool, True where a token of a completion attends.
        layers: number of attention layers that have used it.
    """

    # Not a dataclass: FSDP and DDP copy dataclasses that they pass on, and `layers` must be counted on this object.
    def __init__(self, prompt_lengths: torch.Tensor, completion_lengths: torch.Tensor, prompt_of: torch.Tensor):
        in_prompt, in_completion = _up_to(prompt_lengths), _up_to(completion_lengths)
        flat = torch.cat([in_prompt.flatten(), in_completion.flatten()])
        positions = flat.cumsum(0).sub(1).clamp(min=0)  # padding gets any valid position; nothing attends to it
        self.prompts = positions[: in_prompt.numel()].view_as(in_prompt)
        self.completions = positions[in_prompt.numel() :].view_as(in_completion)
        self.prompt_of = prompt_of
        self.row = flat.nonzero().squeeze(1)
        n, c = in_completion.shape
        causal = torch.ones(c, c, dtype=torch.bool, device=flat.device).tril().expand(n, c, c)
        to_prompt = in_prompt[prompt_of][:, None].expand(n, c, in_prompt.shape[1])
        self.mask = torch.cat([to_prompt, causal], dim=2)[:, None]
        self.layers = 0


def _up_to(lengths: torch.Tensor) -> torch.Tensor:
    """Returns [R, longest] bool, True in the first `lengths[r]` entries of row r."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


@dataclass
class SharedBatch:
    """Inputs of one forward pass: `input_ids`, `position_ids` [1, T], `last_token` [N] in the row, `shared_prompts`."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    last_token: torch.Tensor
    shared_prompts: SharedPrompts


def share_prompts(
    input_ids: torch.Tensor,
    last_token: torch.Tensor,
    prompt_lengths: torch.Tensor,
    completions_per_prompt: torch.Tensor,
) -> SharedBatch:
    """Packs a right-padded batch into one row that has each prompt once.

    Args:
        input_ids: [N, T] prompt and completion, the completions of one prompt next to each other.
        last_token: [N] position of each last token.
        prompt_lengths, completions_per_prompt: [B] tokens of each prompt, and number of its completions.
    """
    device = input_ids.device
    prompt_of = torch.repeat_interleave(
        torch.arange(len(completions_per_prompt), device=device), completions_per_prompt
    )
    first = completions_per_prompt.cumsum(0) - completions_per_prompt  # [B], the row of each prompt's first completion
    position = torch.arange(input_ids.shape[1], device=device)
    in_prompt = position < prompt_lengths[:, None]  # [B, T]
    in_completion = (position >= prompt_lengths[prompt_of][:, None]) & (position <= last_token[:, None])  # [N, T]
    completion_lengths = in_completion.sum(1)
    return SharedBatch(
        input_ids=torch.cat([input_ids[first][in_prompt], input_ids[in_completion]])[None],
        position_ids=torch.cat(
            [position.expand_as(grid)[grid] for grid in (in_prompt, in_completion)],
        )[None],
        last_token=prompt_lengths.sum() + completion_lengths.cumsum(0) - 1,
        shared_prompts=SharedPrompts(prompt_lengths, completion_lengths, prompt_of),
    )


def shared_prompt_attention(
    module, query, key, value, attention_mask, shared_prompts: SharedPrompts | None = None, **kw
):
    """Computes the sdpa attention of transformers; on a row of `share_prompts`, in two steps.

    Args:
        query, key, value: [1, heads, T, head size]; key and value may have fewer heads, as in sdpa.
        attention_mask: passed on to sdpa; not used on a row of `share_prompts`.

    Returns:
        [1, T, heads, head size], None
    """
    if shared_prompts is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kw)
    shared_prompts.layers += 1
    tokens = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, heads, size]
    prompt_q, prompt_k, prompt_v = (_grid(x, shared_prompts.prompts) for x in tokens)
    own_q, own_k, own_v = (_grid(x, shared_prompts.completions) for x in tokens)
    # Padding is on the right, where causal attention never looks, so no mask is needed.
    of_prompts, _ = sdpa_attention_forward(module, prompt_q, prompt_k, prompt_v, None, **kw)  # [B, P, heads, size]
    keys, values = (
        torch.cat([prompt.index_select(0, shared_prompts.prompt_of), own], dim=2)
        for prompt, own in ((prompt_k, own_k), (prompt_v, own_v))
    )
    of_completions, _ = sdpa_attention_forward(module, own_q, keys, values, shared_prompts.mask, **kw)
    grids = torch.cat([of_prompts.flatten(0, 1), of_completions.flatten(0, 1)])
    return grids.index_select(0, shared_prompts.row)[None], None


def _grid(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[T, heads, size] at positions [R, L] -> [R, heads, L, size]."""
    return tokens.index_select(0, positions.flatten()).unflatten(0, positions.shape).transpose(1, 2)


AttentionInterface.register(NAME, shared_prompt_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def enable_shared_prompts(model: PreTrainedModel, max_length: int | None) -> str | None:
    """Enables rows of `share_prompts` on `model`; returns None, or the reason if the model cannot take them.

    Sharing needs sdpa (the default of transformers) and an architecture whose attention layers call the attention
    interface of transformers and see all earlier tokens: Llama, Mistral, Qwen 2 and 3, GPT-2, GPT-NeoX, OPT, Phi, OLMo,
    SmolLM. Not supported: Falcon, BLOOM, GPT-J (attention of their own), Nemotron (its layers do not pass arguments
    on), Mamba and hybrids (state in place of attention), and sliding windows (Gemma) shorter than `max_length`.
    """
    config, backbone = model.config.get_text_config(), model.base_model
    implementation = config._attn_implementation
    if implementation not in ("sdpa", NAME):
        return f"attn_implementation is {implementation}; sharing needs sdpa"
    uses_interface = model._supports_attention_backend and model._can_set_attn_implementation()
    if not uses_interface or "position_ids" not in inspect.signature(backbone.forward).parameters:
        return f"{type(model).__name__} has an attention of its own"
    kinds = set(getattr(config, "layer_types", None) or ())
    if model._is_stateful or kinds - {"full_attention", "sliding_attention"}:
        return f"{type(model).__name__} has layers other than full attention"
    window = getattr(config, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None
    if window is not None and (max_length is None or max_length > window):
        return f"max_length {max_length} is more than the sliding window of {window} tokens"
    model.set_attn_implementation(NAME)
    if not is_deepspeed_zero3_enabled() and not shares_correctly(cast(PreTrainedModel, backbone)):
        model.set_attn_implementation(implementation)
        return f"the attention of {type(model).__name__} does not take shared prompts"
    return None


@torch.no_grad()
def shares_correctly(backbone: PreTrainedModel) -> bool:
    """Tries shared prompts on two prompts with two completions each; some architectures do not pass them on."""
    ids = torch.arange(1, 21, device=backbone.device).view(4, 5)
    ids[1, :3], ids[3, :2] = ids[0, :3], ids[2, :2]  # prompts of 3 and 2 tokens
    last_token, lengths, sizes = (torch.tensor(x, device=ids.device) for x in ([4, 3, 4, 4], [3, 2], [2, 2]))
    was_training = backbone.training
    backbone.eval()
    batch = vars(share_prompts(ids, last_token, lengths, sizes))
    rows = batch.pop("last_token")
    try:
        single = backbone(input_ids=ids, use_cache=False).last_hidden_state[range(4), last_token].float()  # [N, H]
        shared = shared_hidden_states(backbone, **batch, use_cache=False)[0, rows].float()
    except (RuntimeError, TypeError):
        return False
    finally:
        backbone.train(was_training)
    return bool((shared - single).norm() < 0.05 * single.norm())  # 16-bit products differ by a hundredth


def shared_hidden_states(backbone: PreTrainedModel, input_ids, shared_prompts: SharedPrompts, **kwargs) -> torch.Tensor:
    """Returns the last hidden states [1, T, H] of a row of `share_prompts`.

    Raises:
        RuntimeError: `shared_prompts` did not reach all layers of the architecture.
    """
    # Any 4-D mask stops transformers from building a T x T mask; `shared_prompt_attention` has its own.
    output = backbone(input_ids=input_ids, attention_mask=shared_prompts.mask, shared_prompts=shared_prompts, **kwargs)
    layers = backbone.config.get_text_config().num_hidden_layers
    if shared_prompts.layers != layers:
        raise RuntimeError(
            f"{shared_prompts.layers} of {layers} layers of {type(backbone).__name__} have "
            "used the shared prompts. Set attn_implementation to eager, which computes prompts separately."
        )
    return output.last_hidden_state
