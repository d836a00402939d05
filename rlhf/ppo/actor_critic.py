"""Policy, value, reference and reward behind one forward: the module that transformers.Trainer wraps.

Every pass goes through `ActorCritic.forward`, so that DDP, FSDP, DeepSpeed and mixed precision see all of them.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf.errors import InputError
from rlhf.models.sharding import gathered, is_sharded, release
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.length_buckets import Bucket, bucket_by_length, pass_limits
from rlhf.ppo.logprobs import chunked_logprobs, token_logprobs, unembeds_plainly

# The passes that PPO makes, each of a language model and of one with a head.
PAIRS = {"policy_and_value": ("policy", "value"), "reference_and_reward": ("reference", "reward")}


class ActorCritic(nn.Module):
    """What the two layouts (adapters on one base, separate models) have in common.

    A sequence is [left padding | prompt | response | right padding]; masks are always given, never inferred from token
    ids. The subclass provides `as_role`, `token_scores` and the parameters of each network.
    """

    has_reward: bool

    def __init__(self, config):
        super().__init__()
        # A copy: Trainer writes use_cache and special tokens into `model.config`; the policy's is to be saved as it is.
        self.config = copy.deepcopy(config)
        self.reset_caches()

    def reset_caches(self) -> None:
        """Finds out anew in the next pass what depends on how the model is wrapped."""
        self._sharded: bool | None = None
        self._limits: tuple[int, int] | None = None  # of `pass_limits`
        self._plain_unembedding: bool | None = None  # see `unembeds_plainly`
        self._can_fuse: bool | None = None  # see `can_fuse`

    def forward(
        self,
        task: str,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        response_mask: Tensor | None = None,
        temperature: float = 1.0,
        sampler: Callable[[PreTrainedModel], list[list[int]]] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor] | list[list[int]]:
        """One pass over a batch, or as many as sampling takes.

        Args:
            task: "policy_and_value", "reference_and_reward", "policy" or "reference" alone, or "sample".
            input_ids, attention_mask: [B, P + T], the response in the last T columns.
            response_mask: [B, T] bool, True on response tokens, the EOS included.
            sampler: for "sample" alone, is called with a causal LM that is the policy. A function, since FSDP would
                round the random numbers, were they arguments, to the precision of the weights.

        Returns:
            "policy", "reference": logprobs [B, T] of the response tokens. "policy_and_value": these, and values [B, T]
            of the states in which they were sampled. "reference_and_reward": these, and the score [B] of the whole
            response, read at its last token. All float32, zero outside the mask. "sample": what `sampler` returns.
        """
        if task == "sample":
            with self.as_role("policy") as lm:
                return sampler(lm)
        if self._sharded is None:
            self._sharded, self._limits = is_sharded(self), pass_limits(self.language_model, input_ids.device)
        copies = 2 if task in PAIRS and self.can_fuse(input_ids) else 1
        order, buckets = bucket_by_length(
            input_ids, attention_mask, response_mask, self._limits, copies, one=self._sharded
        )

        def scatter_to_batch(parts: list[Tensor]) -> Tensor:
            mask = response_mask[order]
            found = torch.zeros_like(mask, dtype=torch.float32).masked_scatter(mask, torch.cat(parts))
            return found[order.argsort()]

        if task not in PAIRS:
            return scatter_to_batch([self.logprobs(task, bucket, temperature) for bucket in buckets])
        logprobs, token_scores = zip(
            *(self.logprobs_and_scores(*PAIRS[task], bucket, temperature) for bucket in buckets), strict=True
        )
        if task == "policy_and_value":
            values = [s[:, :-1][bucket.predicts] for s, bucket in zip(token_scores, buckets, strict=True)]
            return scatter_to_batch(logprobs), scatter_to_batch(values)
        scores = [s.gather(1, bucket.last[:, None]) for s, bucket in zip(token_scores, buckets, strict=True)]
        return scatter_to_batch(logprobs), torch.cat(scores).squeeze(1)[order.argsort()]

    def can_fuse(self, input_ids: Tensor) -> bool:
        """Whether `logprobs_and_scores` takes one pass instead of two; always the same answer for one model."""
        return False

    def logprobs_and_scores(self, role: str, scorer: str, bucket: Bucket, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities [n] of a bucket's response tokens, and the scores [b, W] of the role that has a head."""
        return self.logprobs(role, bucket, temperature), self.token_scores(scorer, bucket.input_ids)

    def logprobs(self, role: str, bucket: Bucket, temperature: float) -> Tensor:
        """[n] float32: log-probabilities of the response tokens of a bucket; role "policy" or "reference".

        Nothing but response tokens gets logits, and those exist for a few tokens at a time.
        """
        context = bucket.input_ids[:, :-1]  # the last token predicts nothing
        targets = bucket.input_ids[:, 1:][bucket.predicts]
        with self.as_role(role) as lm:
            if not self.unembeds_plainly(context):
                logits = lm(input_ids=context, use_cache=False).logits[bucket.predicts]
                return token_logprobs(logits, targets, temperature)
            backbone = getattr(lm, lm.base_model_prefix)
            hidden = backbone(input_ids=context, use_cache=False).last_hidden_state[bucket.predicts]
        return self.unembedded(role, hidden, targets, temperature)

    def unembedded(self, role: str, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """[n] float32: log-probabilities of `targets` [n] after the last hidden states [n, H]."""

        def unembed(hidden: Tensor) -> Tensor:
            with self.as_role(role) as lm:  # when backward calls it, no context is left
                return lm.get_output_embeddings()(hidden)

        vocabulary = self.language_model.config.get_text_config().vocab_size
        return chunked_logprobs(unembed, hidden, targets, temperature, vocabulary)

    def unembeds_plainly(self, input_ids: Tensor) -> bool:
        """Whether logits are no more than the unembedding of hidden states, tried out once, on `input_ids`."""
        if self._plain_unembedding is None:
            self._plain_unembedding = not is_sharded(self) and unembeds_plainly(self.language_model, input_ids)
        return self._plain_unembedding

    def as_role(self, role: str) -> AbstractContextManager[PreTrainedModel]:
        """Context that gives a causal LM which, as long as it lasts, is the "policy" or the "reference"."""
        raise NotImplementedError

    def token_scores(self, role: str, input_ids: Tensor) -> Tensor:
        """[b, W] float32 at every token; role "value" or "reward"."""
        raise NotImplementedError

    def parameters_of(self, role: str) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of the trainable parameters of "policy" or "value"."""
        raise NotImplementedError

    def save(self, role: str, folder: str | Path, write: bool = True) -> None:
        """Saves "policy" or "value" as users load it: a PEFT adapter or a whole model.

        All processes have to call it, since each may hold a part of the weights; those that `write` do so.
        """
        release(self)
        with gathered(self, self.saved_parameters(role), keep=write):
            if write:
                self.write(role, folder)

    def saved_parameters(self, role: str) -> list[nn.Parameter]:
        """Those that `write` needs."""
        raise NotImplementedError

    def write(self, role: str, folder: str | Path) -> None:
        """Writes "policy" or "value", whose weights are whole."""
        raise NotImplementedError

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the classes of layers that FSDP shards one by one; Accelerate reads it."""
        models = [module for module in self.modules() if isinstance(module, PreTrainedModel)]
        named = {name for model in models for name in model._no_split_modules or ()}
        return sorted(named & {type(module).__name__ for module in self.modules()})

    @property
    def language_model(self) -> PreTrainedModel:
        """The causal LM below the adapters."""
        raise NotImplementedError

    def _named(self, parameters: Iterable[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
        wanted = {id(parameter) for parameter in parameters}
        return [(n, p) for n, p in self.named_parameters() if id(p) in wanted and p.requires_grad]


class SharedActorCritic(ActorCritic):
    """The adapters policy, sft (the reference), value and reward on one frozen base."""

    def __init__(self, base: SharedBase, reward: PreTrainedModel | PeftModel | None = None):
        super().__init__(base.config)
        needed = {"policy", "sft"} - set(base.adapters) | {"value"} - set(base.heads)
        if needed:
            raise InputError(f"the shared base lacks the adapters {', '.join(sorted(needed))} (value with a head).")
        self.base = base
        self.reward = freeze_reward(reward)
        self.has_reward = reward is not None or "reward" in base.heads
        remove_dropout(self)

    @contextmanager
    def as_role(self, role):
        with self.base.use("sft" if role == "reference" else "policy"):
            yield self.base.lm

    def token_scores(self, role, input_ids):
        if role == "reward" and self.reward is not None:
            return classifier_token_scores(self.reward, input_ids)
        return self.base.token_scores(role, input_ids)

    def can_fuse(self, input_ids):
        # All four roles or none: with equal weights the policy's log-probabilities have to be the reference's to the
        # last bit, and the last bits of a product depend on its number of rows.
        if self._can_fuse is None:
            self._can_fuse = (
                "reward" in self.base.heads
                and self.reward is None
                and "reward" not in self.base.ensembles
                and self.base.can_batch("policy", "sft", "value", "reward")
                and self.unembeds_plainly(input_ids)
            )
        return self._can_fuse

    def logprobs_and_scores(self, role, scorer, bucket, temperature):
        if not self.can_fuse(bucket.input_ids):
            return super().logprobs_and_scores(role, scorer, bucket, temperature)
        adapter = "sft" if role == "reference" else role
        hidden, scored = self.base.hidden_states((adapter, scorer), bucket.input_ids)  # each [b, W, H]
        targets = bucket.input_ids[:, 1:][bucket.predicts]
        logprobs = self.unembedded(role, hidden[:, :-1][bucket.predicts], targets, temperature)
        return logprobs, self.base.head(scorer, scored)

    def parameters_of(self, role):
        return self._named(self.base.trainable_parameters(role))

    def saved_parameters(self, role):
        return [parameter for _, parameter in self.parameters_of(role)]

    def write(self, role, folder):
        self.base.save_adapter(role, folder)

    @property
    def language_model(self):
        return self.base.lm

    def gradient_checkpointing_enable(self, **kwargs):
        self.base.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs):  # the name since transformers 5.20
        self.base.activation_checkpointing_enable(**kwargs)


class SeparateActorCritic(ActorCritic):
    """A model each: full models or PEFT models; value and reward are sequence classifiers with one label.

    Args:
        reference: None takes the policy with its adapter disabled.
        reward: None if reward functions alone give the score.
        ref_adapter: without `reference`, the policy's adapter that is the reference; None: no adapter.
    """

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        value: PreTrainedModel | PeftModel,
        reference: PreTrainedModel | None = None,
        reward: PreTrainedModel | PeftModel | None = None,
        ref_adapter: str | None = None,
    ):
        super().__init__(policy.config)
        self.ref_adapter = ref_adapter
        check_classifier(value, "value")
        if isinstance(policy, PeftModel) and policy.active_peft_config.is_prompt_learning:
            raise InputError("the policy's adapter is a learned prompt; use one in the layers, such as LoRA.")
        self.policy, self.value, self.reference, self.reward = policy, value, reference, freeze_reward(reward)
        self.has_reward = reward is not None
        if reference is not None:
            reference.requires_grad_(False)
        remove_dropout(self)

    @contextmanager
    def as_role(self, role):
        if role == "reference" and self.reference is None:
            with self.without_training():
                yield unwrap_peft(self.policy)
        else:
            yield unwrap_peft(self.reference if role == "reference" else self.policy)

    def without_training(self):
        """Context in which the policy answers as the reference."""
        return use_adapter(self.policy, self.ref_adapter) if self.ref_adapter else self.policy.disable_adapter()

    def token_scores(self, role, input_ids):
        return classifier_token_scores(self.value if role == "value" else self.reward, input_ids)

    def parameters_of(self, role):
        return self._named(self.network(role).parameters())

    def saved_parameters(self, role):
        return list(self.network(role).parameters())

    def write(self, role, folder):
        self.network(role).save_pretrained(folder)

    def network(self, role: str) -> PreTrainedModel | PeftModel:
        return self.policy if role == "policy" else self.value

    @property
    def language_model(self):
        return unwrap_peft(self.policy)

    def gradient_checkpointing_enable(self, **kwargs):
        for model in (self.policy, self.value):
            model.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs):  # the name since transformers 5.20
        for model in (self.policy, self.value):
            model.activation_checkpointing_enable(**kwargs)


def build_actor_critic(
    model: SharedBase | PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | PeftModel | None,
    peft_config: PeftConfig | None,
    model_adapter_name: str | None = None,
    ref_adapter_name: str | None = None,
) -> ActorCritic:
    """The layout that the arguments of `PPOTrainer` describe; InputError for combinations that would train wrongly."""
    named = {"model_adapter_name": model_adapter_name, "ref_adapter_name": ref_adapter_name}
    for option, name in named.items():
        if name is not None and name not in getattr(model, "peft_config", {}):
            raise InputError(f"{option} is {name}, and the policy, a {type(model).__name__}, has no such adapter.")
    if ref_adapter_name is not None and ref_model is not None:
        raise InputError("ref_model and ref_adapter_name are logprobs_and_scores given; the reference is one of them.")
    if isinstance(model, SharedBase):
        if any(argument is not None for argument in (ref_model, value_model, peft_config)):
            raise InputError("a SharedBase has reference and value: leave out ref_model, value_model and peft_config.")
        return SharedActorCritic(model, reward_model)
    if ref_model is model:
        raise InputError("ref_model is the policy itself, so the KL would stay 0; leave it out, or pass a copy.")
    if value_model is not None and value_model is reward_model:
        raise InputError("value_model is the reward model itself, so training would move the rewards; pass a copy.")
    if value_model is None and reward_model is None:
        raise InputError("value_model is missing, and there is no reward_model to copy it from.")
    if value_model is None:
        value_model = make_trainable(copy.deepcopy(reward_model))
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise InputError("the policy already has an adapter; leave out peft_config, or merge the adapter first.")
        model = get_peft_model(model, peft_config)
    if model_adapter_name is not None:
        model.set_adapter(model_adapter_name)
    if ref_model is None and not isinstance(model, PeftModel):
        ref_model = copy.deepcopy(model)
    return SeparateActorCritic(model, value_model, ref_model, reward_model, ref_adapter_name)


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model


@contextmanager
def use_adapter(model: PeftModel, name: str):
    """The model with another of its adapters. Only for passes without gradients: PEFT freezes what is not active."""
    active = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(active)


def check_classifier(model: PreTrainedModel | PeftModel, role: str) -> None:
    base = unwrap_peft(model)
    if not hasattr(base, "score") or base.config.num_labels != 1:
        raise InputError(
            f"the {role} model, a {type(base).__name__}, has no `score` head with one label; load it with "
            "AutoModelForSequenceClassification and num_labels=1."
        )


def freeze_reward(model: PreTrainedModel | PeftModel | None) -> PreTrainedModel | PeftModel | None:
    if model is not None:
        check_classifier(model, "reward")
        model.requires_grad_(False)
    return model


def classifier_token_scores(model: nn.Module, input_ids: Tensor) -> Tensor:
    """[b, W] float32: a sequence classifier's score head on every position, not on the last one alone."""
    model = unwrap_peft(model)
    hidden = getattr(model, model.base_model_prefix)(input_ids=input_ids, use_cache=False).last_hidden_state
    return model.score(hidden).squeeze(-1).float()


def remove_dropout(module: nn.Module) -> None:
    """Dropout off for good, since the policy that is trained has to be the one that sampled.

    Modules are not all: OPT keeps a rate in an attribute and calls the function, Falcon and GPT-J read the config.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for owner in (part, getattr(part, "config", None)):
            for name, value in vars(owner).items() if owner is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(owner, name, 0.0)


def make_trainable(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Lets a model that was loaded for scoring learn: its adapter if it has one, else all of it."""
    if isinstance(model, PeftModel):
        model.set_adapter(model.active_adapter)
    else:
        model.requires_grad_(True)
    return model
