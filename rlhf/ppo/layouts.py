"""The two layouts of the four networks: adapters on one shared base, or one model per role."""

import copy
from contextlib import contextmanager

from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, Trainer

from rlhf.errors import InputError
from rlhf.models.adapter_files import check_lora_config
from rlhf.models.compiled_layers import compile_if_asked
from rlhf.models.frozen_reward import check_classifier, classifier_token_scores, freeze_reward
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.precision import float_head, float_trained_weights
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.networks import (
    make_trainable,
    remove_dropout,
    use_adapter,
    zero_fresh_head,
)


class SharedActorCritic(ActorCritic):
    """The adapters policy, sft (the reference), value and reward on one frozen base."""

    def __init__(self, base: SharedBase, reward: PreTrainedModel | PeftModel | None = None):
        super().__init__(base.config)
        needed = {"policy", "sft"} - set(base.adapters) | {"value"} - set(base.heads)
        if needed:
            raise InputError(
                f"the shared base lacks the adapters {', '.join(sorted(needed))} (value with a head); "
                "add them with add_adapter."
            )
        self.base = base
        self.reward = freeze_reward(reward)
        self.has_reward = reward is not None or "reward" in base.heads
        remove_dropout(self)

    @contextmanager
    def as_role(self, role):
        adapter = "sft" if role == "reference" else "policy"
        with self.base.use((adapter,) if self.base.compiled else adapter):
            yield self.base.lm

    def sample(self, sampler):
        with self.base.use("policy"):  # PEFT's layers, which decode in CUDA graphs
            return sampler(self.base.lm)

    def models(self):
        return [self.base.lm] + ([] if self.reward is None else [unwrap_peft(self.reward)])

    def token_scores(self, role, input_ids, **packed):
        if role == "reward" and self.reward is not None:
            return classifier_token_scores(self.reward, input_ids, **packed)
        return self.base.token_scores(role, input_ids, **packed)

    def can_fuse(self, input_ids):
        # Fuse all four roles or none. A matmul's rounding depends on its number of rows, and with equal weights policy
        # and reference must give identical log-probabilities.
        if self._can_fuse is None:
            self._can_fuse = (
                "reward" in self.base.heads
                and self.reward is None
                and "reward" not in self.base.ensembles
                and self.base.can_batch("policy", "sft", "value", "reward")
                and self.unembedding(input_ids) is not None
            )
        return self._can_fuse

    def logprobs_and_scores(self, role, scorer, bucket, temperature):
        if not self.can_fuse(bucket.input_ids):
            return super().logprobs_and_scores(role, scorer, bucket, temperature)
        adapter = "sft" if role == "reference" else role
        # each [b, W, H]
        hidden, scored = self.base.hidden_states((adapter, scorer), bucket.input_ids, **bucket.packed)
        logprobs = self.unembedded(role, hidden[bucket.predicts], bucket.targets, temperature)
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
    """One model per role: full models or PEFT models; value and reward are sequence classifiers with one label.

    Args:
        reference: None takes the policy with its adapter disabled.
        reward: None if reward functions alone give the score.
        ref_adapter: the policy's adapter that is the reference if `reference` is None; None: no adapter.
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
        float_trained_weights(value)
        float_head(unwrap_peft(value))
        if float_trained_weights(policy) and reference is not None:
            reference.float()  # as the policy, so that equal weights give equal log-probabilities
        if reference is not None:
            reference.requires_grad_(False)
        remove_dropout(self)

    @contextmanager
    def as_role(self, role):
        if role != "reference":
            yield unwrap_peft(self.policy)
        elif self.reference is not None:
            yield unwrap_peft(self.reference)
        else:
            with self.as_reference():
                yield unwrap_peft(self.policy)

    def as_reference(self):
        """Context in which the policy answers as the reference."""
        assert isinstance(self.policy, PeftModel), "a policy without adapters needs a reference"
        return use_adapter(self.policy, self.ref_adapter) if self.ref_adapter else self.policy.disable_adapter()

    def models(self):
        models = (self.policy, self.value, self.reference, self.reward)
        return [unwrap_peft(model) for model in models if model is not None]

    def token_scores(self, role, input_ids, **packed):
        model = self.value if role == "value" else self.reward
        assert model is not None, "no reward model"
        return classifier_token_scores(model, input_ids, **packed)

    def parameters_of(self, role):
        return self._named(self.network(role).parameters())

    def saved_parameters(self, role):
        return list(self.network(role).parameters())

    def write(self, role, folder):
        self.network(role).save_pretrained(str(folder))

    @property
    def value_model(self) -> PreTrainedModel | PeftModel:
        """The value model, as TRL's wrapper names it."""
        return self.value

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


def compile_networks(trainer: Trainer, networks: ActorCritic) -> None:
    """Compiles the layers of a shared base, if the option `compile` asks for it (`rlhf.models.compiled_layers`)."""
    base = networks.base if isinstance(networks, SharedActorCritic) else None
    plain = base is not None and all(base.can_batch(name) for name in base.adapters)
    obstacle = None if plain else "policy, value, reference and reward are not plain LoRA adapters of one base"
    if compile_if_asked(trainer, networks.language_model, obstacle) and base is not None:
        base.compiled = True


def build_actor_critic(
    model: SharedBase | PreTrainedModel | PeftModel,
    ref_model: PreTrainedModel | None,
    reward_model: PreTrainedModel | PeftModel | None,
    value_model: PreTrainedModel | PeftModel | None,
    peft_config: PeftConfig | None,
    model_adapter_name: str | None = None,
    ref_adapter_name: str | None = None,
) -> ActorCritic:
    """Returns the layout that the arguments of `PPOTrainer` describe.

    Raises:
        InputError: a combination that would train wrongly.
    """
    check_lora_config(peft_config, "peft_config")
    named = {"model_adapter_name": model_adapter_name, "ref_adapter_name": ref_adapter_name}
    adapters = getattr(model, "peft_config", {})
    for option, name in named.items():
        if name is not None and name not in adapters:
            raise InputError(
                f"{option} is {name}, and the policy, a {type(model).__name__}, has no such adapter; "
                f"choose one of: {', '.join(adapters) or 'none'}."
            )
    if ref_adapter_name is not None and ref_model is not None:
        raise InputError("ref_model and ref_adapter_name are both given; leave one out.")
    if isinstance(model, SharedBase):
        if any(argument is not None for argument in (ref_model, value_model, peft_config)):
            raise InputError("a SharedBase has reference and value: leave out ref_model, value_model and peft_config.")
        return SharedActorCritic(model, reward_model)
    sizes = [m.config.get_text_config().vocab_size for m in (model, ref_model or model)]
    if sizes[0] != sizes[1]:
        raise InputError(f"the policy has {sizes[0]} tokens and the reference {sizes[1]}; resize both or neither.")
    if ref_model is model:
        raise InputError("ref_model is the policy itself, so the KL would stay 0; leave it out, or pass a copy.")
    if value_model is not None and value_model is reward_model:
        raise InputError("value_model is the reward model itself, so training would move the rewards; pass a copy.")
    if value_model is None:
        if reward_model is None:
            raise InputError("value_model is missing, and there is no reward_model to copy it from; pass one of them.")
        value_model = make_trainable(copy.deepcopy(reward_model))
    elif reward_model is None:
        check_classifier(value_model, "value")
        zero_fresh_head(value_model)
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise InputError("the policy already has an adapter; leave out peft_config, or merge the adapter first.")
        model = get_peft_model(model, peft_config)
    if ref_model is None and isinstance(model, PeftModel):
        for name, config in model.peft_config.items():
            check_lora_config(config, f"the policy's adapter {name}")  # without it, the base would be the reference
    if model_adapter_name is not None:
        model.set_adapter(model_adapter_name)
    if ref_model is None and not isinstance(model, PeftModel):
        ref_model = copy.deepcopy(model)
    return SeparateActorCritic(model, value_model, ref_model, reward_model, ref_adapter_name)
