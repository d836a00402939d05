"""Computes the prompt of K completions once.

The completions of a prompt share it as a prefix, and a decoder's hidden states of the prompt do not depend on later
tokens. So a batch becomes one row without padding, with each prompt once:

    [prompt 1 | ... | prompt B | completion 1 | ... | completion N]

Only attention mixes tokens; all other layers process this row as it is. Prompts attend to themselves, completions
attend to their prompt and themselves: on a GPU as sequences of `rlhf.models.packed_attention` whose keys are gathered
from the row, elsewhere in two grids with padding. Gradients reach the prompt through all of its completions. Cost of
one layer for K completions of C tokens after a prompt of P tokens:

                      linear layers, tokens     attention, pairs of tokens
    each with prompt  K (P + C)                 K (P + C)^2
    prompt shared     P + K C                   P^2 + K C (P + C)

Sharing never costs more, so there is no option to turn it off.
"""

from itertools import chain
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from rlhf.models.packed_attention import NAME, attention_arguments, attention_obstacle, no_mask, sdpa


class SharedPrompts:
    """Positions of prompts and completions in a row: attention in two grids, for `packed_attention`.

    Attributes:
        prompts: [B, P] int64, positions in the row of the tokens of each prompt; any valid position in padding.
        completions: [N, C] int64, the same of each completion.
        prompt_of: [N] int64, index in 0..B-1 of each completion's prompt.
        row: [T] int64, position of each token of the row in the B P + N C entries of the two grids.
        mask: [N, 1, C, P + C] bool, True where a token of a completion attends.
    """

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

    def attention(self, module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kw) -> torch.Tensor:
        """Attention [1, T, heads, head size] of a row of `share_prompts`.

        Args:
            query, key, value: [1, heads, T, head size]; key and value may have fewer heads, as in sdpa.
        """
        tokens = [x[0].transpose(0, 1) for x in (query, key, value)]  # [T, heads, size]
        prompt_q, prompt_k, prompt_v = (_grid(x, self.prompts) for x in tokens)
        own_q, own_k, own_v = (_grid(x, self.completions) for x in tokens)
        # Padding is on the right, where causal attention never looks, so no mask is needed.
        of_prompts, _ = sdpa(module, prompt_q, prompt_k, prompt_v, None, **kw)  # [B, P, heads, size]
        keys, values = (
            torch.cat([prompt.index_select(0, self.prompt_of), own], dim=2)
            for prompt, own in ((prompt_k, own_k), (prompt_v, own_v))
        )
        of_completions, _ = sdpa(module, own_q, keys, values, self.mask, **kw)
        grids = torch.cat([of_prompts.flatten(0, 1), of_completions.flatten(0, 1)])
        return grids.index_select(0, self.row)[None]


def _up_to(lengths: torch.Tensor) -> torch.Tensor:
    """Returns [R, longest] bool, True in the first `lengths[r]` entries of row r."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def _grid(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[T, heads, size] at positions [R, L] -> [R, heads, L, size]."""
    return tokens.index_select(0, positions.flatten()).unflatten(0, positions.shape).transpose(1, 2)


def share_prompts(
    input_ids: torch.Tensor,
    last_token: torch.Tensor,
    prompt_lengths: torch.Tensor,
    completions_per_prompt: torch.Tensor,
    packed: bool = False,
) -> dict[str, Any]:
    """Packs a right-padded batch into one row that has each prompt once.

    Args:
        input_ids: [N, T] prompt and completion, the completions of one prompt next to each other.
        last_token: [N] position of each last token.
        prompt_lengths, completions_per_prompt: [B] tokens of each prompt, and number of its completions.
        packed: the model takes packed rows (`enable_packing`).

    Returns:
        `last_token` [N] in the row, and the arguments of a forward: `input_ids` and `position_ids` [1, T] and those of
        `packed_attention`.
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
    row_ids = torch.cat([input_ids[first][in_prompt], input_ids[in_completion]])[None]
    if packed:
        attention = _sequences(prompt_lengths.tolist(), completion_lengths.tolist(), prompt_of.tolist(), device)
    else:
        grids = SharedPrompts(prompt_lengths, completion_lengths, prompt_of)
        attention = {"grids": grids, "attention_mask": no_mask(row_ids.shape[1], device)}
    return {
        "input_ids": row_ids,
        "position_ids": torch.cat([position.expand_as(grid)[grid] for grid in (in_prompt, in_completion)])[None],
        "last_token": prompt_lengths.sum() + completion_lengths.cumsum(0) - 1,
        **attention,
    }


def _sequences(
    prompts: list[int], completions: list[int], prompt_of: list[int], device: torch.device
) -> dict[str, Any]:
    """Arguments of `packed_attention`: prompts, then completions, whose keys begin with those of their prompt.

    Args:
        prompts, completions: [B], [N] lengths.
        prompt_of: [N] index of each completion's prompt.
    """
    positions = torch.arange(sum(prompts) + sum(completions)).split([*prompts, *completions])
    of_completions = zip(prompt_of, positions[len(prompts) :], strict=True)
    keys = torch.cat([*positions[: len(prompts)], *chain(*((positions[p], own) for p, own in of_completions))])
    key_lengths = prompts + [prompts[p] + own for p, own in zip(prompt_of, completions, strict=True)]
    return attention_arguments(prompts + completions, key_lengths, device, keys.to(device))


def enable_shared_prompts(model: PreTrainedModel, max_length: int | None) -> str | None:
    """Enables rows of `share_prompts` on `model`; returns None, or the reason if the model cannot take them.

    Not supported are the attentions of `attention_obstacle`, and sliding windows (Gemma) shorter than `max_length`.
    """
    obstacle = attention_obstacle(model)
    if obstacle is not None:
        return obstacle
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if not kinds or "sliding_attention" in kinds else None
    if window is not None and (max_length is None or max_length > window):
        return f"max_length {max_length} is more than the sliding window of {window} tokens"
    implementation = config._attn_implementation
    model.set_attn_implementation(NAME)
    if not is_deepspeed_zero3_enabled() and not shares_correctly(cast(PreTrainedModel, model.base_model)):
        model.set_attn_implementation(cast(str, implementation))
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
    batch = share_prompts(ids, last_token, lengths, sizes)
    rows = batch.pop("last_token")
    try:
        single = backbone(input_ids=ids, use_cache=False).last_hidden_state[range(4), last_token].float()  # [N, H]
        shared = backbone(**batch, use_cache=False).last_hidden_state[0, rows].float()
    except (RuntimeError, TypeError):
        return False
    finally:
        backbone.train(was_training)
    return bool((shared - single).norm() < 0.05 * single.norm())  # 16-bit products differ by a hundredth
