"""Attributes and methods of TRL's PPOTrainer that scripts written for it use."""

from contextlib import AbstractContextManager, nullcontext

from peft import PeftModel
from transformers import PreTrainedModel

from rlhf.ppo.checkpointing import PPOCheckpointing


class TRLInterface(PPOCheckpointing):
    """The models are None where they are adapters of a shared base."""

    @property
    def policy_model(self) -> PreTrainedModel | PeftModel | None:
        return getattr(self.actor_critic, "policy", None)

    @property
    def ref_model(self) -> PreTrainedModel | None:
        """None also if the reference is the policy without its adapter."""
        return getattr(self.actor_critic, "reference", None)

    @property
    def reward_model(self) -> PreTrainedModel | PeftModel | None:
        """The reward model that reads the sampled ids."""
        return getattr(self.actor_critic, "reward", None)

    @property
    def value_model(self) -> PreTrainedModel | PeftModel | None:
        return getattr(self.actor_critic, "value", None)

    @property
    def stop_token_id(self) -> int | None:
        """The token of `stop_token` or `stop_token_id`; responses end at any EOS of the model as well."""
        eos = self.processing_class.eos_token_id
        return eos if self.args.stop_token == "eos" else self.args.stop_token_id  # pyright: ignore[reportReturnType]

    @property
    def is_peft_model(self) -> bool:
        return isinstance(self.policy_model, PeftModel)

    @property
    def model_adapter_name(self) -> str | None:
        return self.args.model_adapter_name

    @property
    def ref_adapter_name(self) -> str | None:
        return self.args.ref_adapter_name

    @property
    def train_dataset_len(self) -> int:
        return len(self.train_dataset)

    def null_ref_context(self) -> AbstractContextManager:
        """Context in which the policy's model answers as the reference, where both are one model."""
        return nullcontext() if self.ref_model is not None else self.actor_critic.as_role("reference")

    def generate_completions(self, sampling: bool = False) -> None:
        """TRL's scripts end with this call: evaluates if there are prompts for it, which appends to samples.jsonl."""
        if self.eval_dataset is not None:
            self.evaluate()
