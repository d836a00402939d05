"""Policy, value, reference and reward behind one forward: the module that transformers.Trainer wraps.

Every pass goes through `ActorCritic.forward`, so that DDP, FSDP, DeepSpeed and mixed precision see all of them.
"""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.models.logprobs import Unembed, chunked_logprobs, find_unembedding, token_logprobs
from rlhf.models.packed_attention import enable_packing
from rlhf.models.pass_limits import pass_limits
from rlhf.models.sharding import gathered, is_sharded, release
from rlhf.ppo.length_buckets import Bucket, bucket_by_length

logger = logging.getLogger(__name__)


class ActorCritic(nn.Module, ABC):
    """The passes of PPO, for both layouts: adapters on one base, or separate models.

    A sequence is [left padding | prompt | response | right padding]; masks are always given, never inferred from token
    ids. Arguments of the passes:

        input_ids, attention_mask: [B, P + T], the response in the last T columns.
        response_mask: [B, T] bool, True on response tokens, the EOS included.
        temperature: divides the logits.

    All results are float32, and zero outside the mask.
    """

    has_reward: bool

    def __init__(self, config):
        super().__init__()
        # A copy, because Trainer writes use_cache and special tokens into `model.config`; the policy's stays as it is.
        self.config = copy.deepcopy(config)
        self.reset_caches()

    def reset_caches(self) -> None:
        """Clears the cached checks that depend on how the model is wrapped; the next pass repeats them."""
        self._sharded = False  # known once `_limits` is
        self._limits: tuple[int, int] | None = None  # of `pass_limits`
        self._packed = False  # of `pack`, known once `_limits` is
        self._unembedding: list[Unembed | None] = []  # of `find_unembedding`, once it is known
        self._can_fuse: bool | None = None  # see `can_fuse`

    def forward(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of this module inside forward, the only place where DDP, FSDP and DeepSpeed prepare weights.

        logprobs, values = model("policy_and_value", temperature=1.0, **batch.inputs())
        """
        return getattr(self, method)(*args, **kwargs)

    # ---- The passes -------------------------------------------------------------------------------------------------

    def policy_and_value(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the response tokens, and values [B, T] of the states before them."""
        copies = 2 if self.can_fuse(input_ids) else 1
        order, buckets = self.bucketed(input_ids, attention_mask, response_mask, copies)
        passes = [self.logprobs_and_scores("policy", "value", bucket, temperature) for bucket in buckets]
        logprobs, scores = zip(*passes, strict=True)
        values = [s[bucket.predicts] for s, bucket in zip(scores, buckets, strict=True)]
        return scatter_to_batch(logprobs, response_mask, order), scatter_to_batch(values, response_mask, order)

    def reference_and_reward(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The reference's log-probabilities [B, T], and the reward model's score [B] at the last response token."""
        copies = 2 if self.can_fuse(input_ids) else 1
        order, buckets = self.bucketed(input_ids, attention_mask, response_mask, copies)
        passes = [self.logprobs_and_scores("reference", "reward", bucket, temperature) for bucket in buckets]
        logprobs, scores = zip(*passes, strict=True)
        last = [s[bucket.last] for s, bucket in zip(scores, buckets, strict=True)]
        return scatter_to_batch(logprobs, response_mask, order), torch.cat(last)[order.argsort()]

    def policy_logprobs(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Log-probabilities [B, T] of the response tokens under the policy."""
        return self._logprobs_alone("policy", input_ids, attention_mask, response_mask, temperature)

    def reference_logprobs(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, temperature: float = 1.0
    ) -> Tensor:
        """Log-probabilities [B, T] of the response tokens under the reference."""
        return self._logprobs_alone("reference", input_ids, attention_mask, response_mask, temperature)

    def _logprobs_alone(self, role, input_ids, attention_mask, response_mask, temperature) -> Tensor:
        order, buckets = self.bucketed(input_ids, attention_mask, response_mask, copies=1)
        logprobs = [self.logprobs(role, bucket, temperature) for bucket in buckets]
        return scatter_to_batch(logprobs, response_mask, order)

    def sample(self, sampler: Callable[[PreTrainedModel], list[list[int]]]) -> list[list[int]]:
        """Calls `sampler` with a causal LM that is the policy.

        The random numbers are in a closure because FSDP casts tensor arguments of forward to the parameter dtype, which
        would round them.
        """
        with self.as_role("policy") as lm:
            return sampler(lm)

    # ---- One bucket -------------------------------------------------------------------------------------------------

    def bucketed(
        self, input_ids: Tensor, attention_mask: Tensor, response_mask: Tensor, copies: int
    ) -> tuple[Tensor, list[Bucket]]:
        """The passes of a batch; all rows in one pass if sharded, because processes must make equal passes."""
        device = input_ids.device
        if self._limits is None:
            self._sharded, self._limits = is_sharded(self), pass_limits(self.language_model, device)
            self._packed = self.pack(device)
        how = {"one": self._sharded, "packed": self._packed}
        return bucket_by_length(input_ids, attention_mask, response_mask, self._limits, copies, **how)

    def pack(self, device: torch.device) -> bool:
        """True if rows are packed: all models or none, because with equal weights they must round alike."""
        cast_to = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        obstacles = [enable_packing(model, device, cast_to or model.dtype) for model in self.models()]
        obstacle = next((obstacle for obstacle in obstacles if obstacle is not None), None)
        if obstacle and device.type != "cpu":
            logger.warning("rows are padded, because %s", obstacle)
        return obstacle is None

    def can_fuse(self, input_ids: Tensor) -> bool:
        """True if `logprobs_and_scores` takes one pass instead of two; always the same answer for one model."""
        return False

    def logprobs_and_scores(self, role: str, scorer: str, bucket: Bucket, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities [n] of a bucket's response tokens under `role`, and scores [b, W] of `scorer`'s head."""
        return self.logprobs(role, bucket, temperature), self.token_scores(scorer, bucket.input_ids, **bucket.packed)

    def logprobs(self, role: str, bucket: Bucket, temperature: float) -> Tensor:
        """Log-probabilities [n] float32 of a bucket's response tokens under "policy" or "reference".

        Only response tokens get logits, a few tokens at a time.
        """
        inputs = {"input_ids": bucket.context, "use_cache": False, **bucket.packed}
        with self.as_role(role) as lm:
            if self.unembedding(bucket.context) is None:
                return token_logprobs(lm(**inputs).logits[bucket.predicts], bucket.targets, temperature)
            hidden = getattr(lm, lm.base_model_prefix)(**inputs).last_hidden_state[bucket.predicts]
        return self.unembedded(role, hidden, bucket.targets, temperature)

    def unembedded(self, role: str, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """Log-probabilities [n] float32 of `targets` [n] after the last hidden states [n, H]."""

        head = cast(Unembed, self._unembedding[0])  # callers have asked `unembedding`

        def unembed(hidden: Tensor) -> Tensor:
            with self.as_role(role) as lm:  # backward may call it after the role's context has ended
                return head(lm, hidden)

        vocabulary = self.language_model.config.get_text_config().vocab_size
        return chunked_logprobs(unembed, hidden, targets, temperature, vocabulary)

    def unembedding(self, input_ids: Tensor) -> Unembed | None:
        """The function from last hidden states to logits, tried once; None if it needs all positions."""
        if not self._unembedding:
            self._unembedding = [None if is_sharded(self) else find_unembedding(self.language_model, input_ids)]
        return self._unembedding[0]

    # ---- The networks -----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def language_model(self) -> PreTrainedModel:
        """The causal LM below the adapters."""

    @abstractmethod
    def as_role(self, role: str) -> AbstractContextManager[PreTrainedModel]:
        """Context that yields a causal LM; inside, it is the "policy" or the "reference"."""

    @abstractmethod
    def models(self) -> list[PreTrainedModel]:
        """The models that compute a role, each once."""

    @abstractmethod
    def token_scores(self, role: str, input_ids: Tensor, **packed: Any) -> Tensor:
        """Scores [b, W] float32 at every token; role "value" or "reward"."""

    @abstractmethod
    def parameters_of(self, role: str) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of the trainable parameters of "policy" or "value"."""

    @abstractmethod
    def saved_parameters(self, role: str) -> list[nn.Parameter]:
        """Parameters that `write` needs."""

    @abstractmethod
    def write(self, role: str, folder: str | Path) -> None:
        """Writes "policy" or "value"; its weights are not sharded at this moment."""

    def save(self, role: str, folder: str | Path, write: bool = True) -> None:
        """Saves "policy" or "value" as users load it: a PEFT adapter or a whole model.

        All processes must call it, because each may hold a shard of the weights; those with `write` write files.
        """
        release(self)
        with gathered(self, self.saved_parameters(role), keep=write):
            if write:
                self.write(role, folder)

    @property
    def _no_split_modules(self) -> list[str]:
        """Class names of the layers that FSDP shards one by one; Accelerate reads it."""
        models = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        named = {name for model in models for name in model._no_split_modules or ()}
        return sorted(named & {type(module).__name__ for module in self.modules()})

    def _named(self, parameters: Iterable[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
        wanted = {id(parameter) for parameter in parameters}
        return [(n, p) for n, p in self.named_parameters() if id(p) in wanted and p.requires_grad]


def scatter_to_batch(flat: Iterable[Tensor], response_mask: Tensor, order: Tensor) -> Tensor:
    """Values of response tokens, bucket after bucket, as [B, T] float32 in the order of the batch; 0 outside the mask.

    Args:
        flat: [n] of each bucket, row by row.
        response_mask: [B, T] bool.
        order: [B]; row i of the buckets is row order[i] of the batch.
    """
    mask = response_mask[order]
    rows = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, torch.cat(list(flat)))
    return rows[order.argsort()]
