"""What PPO writes: networks for users to load, and in checkpoints the state to go on from."""

from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rlhf.errors import InputError
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.ema import EMA

STATE_NAME = "ppo_state.safetensors"
ROLES = ("policy", "value")


def save_networks(folder: Path, model: ActorCritic, ema: EMA | None) -> None:
    """The averaged policy at the top, the last policy in raw/, the value model in value/."""
    with ema.applied() if ema else nullcontext():
        model.save("policy", folder)
    model.save("policy", folder / "raw")
    model.save("value", folder / "value")


def save_state(folder: Path, model: ActorCritic, ema: EMA | None) -> None:
    """All that training changes besides the optimizer, by name: trained parameters, and the policy's average."""
    state = {f"model.{name}": parameter.detach() for role in ROLES for name, parameter in model.parameters_of(role)}
    state |= {f"ema.{name}": average for name, average in ema.shadow.items()} if ema else {}
    save_file({name: tensor.contiguous().cpu() for name, tensor in state.items()}, folder / STATE_NAME)


@torch.no_grad()
def load_state(folder: Path, model: ActorCritic, ema: EMA | None) -> None:
    """Reads what `save_state` wrote into the same networks.

    Raises:
        InputError: there is no such state, or it is that of other networks.
    """
    path = folder / STATE_NAME
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} is not a checkpoint of this trainer.")
    state = load_file(path)
    targets = {f"model.{name}": parameter for role in ROLES for name, parameter in model.parameters_of(role)}
    targets |= {f"ema.{name}": average for name, average in ema.shadow.items()} if ema else {}
    for name, target in targets.items():
        if name not in state or state[name].shape != target.shape:
            raise InputError(
                f"{path} does not fit: {name} is missing or of another shape; resume with the same options."
            )
        target.copy_(state[name])
