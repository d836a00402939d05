"""One answer, token by token, for a person who waits for it; keys and values stay for the next turn."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from rlhf.models.positions import cache_argument, takes_position_ids


class PastTokens:
    """The tokens that one model has read, with their keys and values, kept from one answer to the next.

    Attributes:
        ids: the tokens, in order.
    """

    def __init__(self, lm: PreTrainedModel) -> None:
        self.lm = lm
        self.ids: list[int] = []
        self._cache: Any = None

    def rewind(self, prompt_ids: list[int]) -> Any:
        """Keeps the longest beginning that `prompt_ids` shares with `ids`; returns the cache of it.

        At least one token of the prompt is left to read. Caches with a state (Mamba) or a window (Mistral) cannot go
        back, so nothing is kept there.
        """
        shared = 0
        while shared < min(len(self.ids), len(prompt_ids) - 1) and self.ids[shared] == prompt_ids[shared]:
            shared += 1
        layers = getattr(self._cache, "layers", [])
        if shared and layers and all(type(layer) is DynamicLayer for layer in layers):
            for layer in layers:  # an interrupted pass has left further tokens in some layers
                if layer.is_initialized:  # not where layers share keys and values
                    layer.keys, layer.values = layer.keys[..., :shared, :], layer.values[..., :shared, :]
            self.ids = self.ids[:shared]
        else:
            keeps_dynamic_cache = cast(Any, self.lm)._supports_default_dynamic_cache()  # MiniMax has its own
            self._cache = DynamicCache(config=self.lm.config) if keeps_dynamic_cache else None
            self.ids = []
        return self._cache

    def extend(self, ids: list[int], cache: Any) -> None:
        """Records a finished pass over `ids`."""
        self.ids, self._cache = self.ids + ids, cache


@torch.no_grad()
def stream(
    lm: PreTrainedModel,
    prompt_ids: list[int],
    choose: Callable[[Tensor, int], Tensor],
    stop_ids: list[int],
    length: int,
    past: PastTokens,
) -> Iterator[int]:
    """Yields at most `length` tokens that continue a prompt, up to and including the first stop token.

    Args:
        lm: a causal LM in evaluation mode; its generation config is ignored.
        choose: (logits [1, V], number of the new token) -> id [1].
        past: of earlier calls with the same weights; it is brought up to date.
    """
    cache_name, takes_positions = cache_argument(lm), takes_position_ids(lm)
    cache = past.rewind(prompt_ids)
    ids = prompt_ids[len(past.ids) :]
    for step in range(length):
        start, end = len(past.ids), len(past.ids) + len(ids)
        inputs = {"input_ids": torch.tensor([ids], device=lm.device)}
        if takes_positions:
            inputs["position_ids"] = torch.arange(start, end, device=lm.device)[None]
        if cache_name != "cache_params":  # Mamba takes a mask for its new tokens only, and needs none
            inputs["attention_mask"] = torch.ones(1, end, dtype=torch.long, device=lm.device)
        output = lm(**inputs, **{cache_name: cache}, use_cache=True, logits_to_keep=1)
        cache = output[cache_name] if cache is None else cache
        past.extend(ids, cache)
        token = int(choose(output.logits[:, -1], step))
        yield token
        if token in stop_ids:
            return
        ids = [token]
