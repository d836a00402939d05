"""Small operations on single models that the actor-critic and the rewards share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from rlhf.models.peft_layers import unwrap_peft

logger = logging.getLogger(__name__)


@contextmanager
def use_adapter(model: PeftModel, name: str) -> Iterator[None]:
    """Switches to another adapter of the model. Only for passes without gradients: PEFT freezes the inactive ones."""
    active = model.active_adapter
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(active)  # pyright: ignore[reportArgumentType]


def zero_fresh_head(value: PreTrainedModel | PeftModel) -> None:
    """Sets a value head that no training has made to zero: its random values would be the errors of all advantages.

    A head is fresh if the checkpoint was no classifier, and no adapter brings a trained copy.
    """
    base = unwrap_peft(value)
    head = base.get_submodule("score")
    copies = head.modules_to_save.values() if isinstance(head, ModulesToSaveWrapper) else ()
    weights = [next(module.parameters()) for module in copies]
    original = next((head.original_module if isinstance(head, ModulesToSaveWrapper) else head).parameters())
    trained = any(not torch.equal(weight, original) for weight in weights)
    if type(base).__name__ in (base.config.architectures or ()) or trained:
        return
    zero_head(head)


@torch.no_grad()
def zero_head(head: nn.Module) -> None:
    """Sets a value head to zero."""
    logger.info("the value model's head is new, and starts at zero")
    for parameter in head.parameters():
        parameter.zero_()


def make_trainable(model: PreTrainedModel | PeftModel) -> PreTrainedModel | PeftModel:
    """Unfreezes a model that was loaded for scoring: its adapter if it has one, else all of it."""
    if isinstance(model, PeftModel):
        model.set_adapter(model.active_adapter)  # pyright: ignore[reportArgumentType]
    else:
        model.requires_grad_(True)
    return model


def remove_dropout(module: nn.Module) -> None:
    """Sets all dropout rates to 0 for good: the policy that is trained must be the policy that sampled.

    Not all dropout is an nn.Dropout: OPT stores a rate and calls F.dropout, Falcon and GPT-J read the config.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        for owner in (child, getattr(child, "config", None)):
            for name, value in vars(owner).items() if owner is not None else ():
                if "drop" in name and isinstance(value, float):
                    setattr(owner, name, 0.0)
