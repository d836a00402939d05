"""What PPO writes: networks for users to load, and in checkpoints the state to go on from.

    ppo_state.safetensors     trained parameters of policy and value, and the policy's average
    ppo_state.json            what else has a history: the position in the pretraining text, controllers
    ppo_process_<p>.json      what process p has measured since the last log
    rollout_<p>.safetensors   process p's part of the rollout in progress, unless the next step makes a new one

A rollout in progress cannot be sampled again, since the weights that sampled it are gone. Everything else (which
prompts, which random numbers, the order of the minibatches) is a function of seed and step and is not saved.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.errors import InputError
from rlhf.models.sharding import full_tensor, local_shard, release, shard_of
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.ema import EMA, averaged
from rlhf.ppo.metrics import Meter
from rlhf.ppo.rollout import MicroBatch, Rollout

STATE_NAME = "ppo_state.safetensors"
HISTORY_NAME = "ppo_state.json"
ROLES = ("policy", "value")


class Stateful(Protocol):
    """Something with a history that JSON can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_networks(folder: Path, model: ActorCritic, ema: EMA | None, write: bool = True) -> None:
    """The averaged policy at the top, the last policy in raw/, the value model in value/.

    All processes have to call it, since each may hold a part of the weights; those that `write` do so.
    """
    with averaged(model, ema):
        model.save("policy", folder, write)
    model.save("policy", folder / "raw", write)
    model.save("value", folder / "value", write)


def save_state(folder: Path, model: ActorCritic, ema: EMA | None, write: bool = True) -> None:
    """All that training changes besides the optimizer, by name: trained parameters, and the policy's average.

    All processes have to call it, as `save_networks`.
    """
    state = {}
    for name, (part, parameter) in _parts(model, ema).items():
        tensor = full_tensor(part, parameter)
        if write:
            state[name] = tensor.contiguous().cpu()
    if write:
        save_file(state, folder / STATE_NAME)


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
    for name, (part, parameter) in _parts(model, ema).items():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if name not in state or state[name].shape != shape:
            raise InputError(
                f"{path} does not fit: {name} is missing or of another shape; resume with the same options."
            )
        part.copy_(shard_of(state[name], parameter))
    release(model)


def _parts(model: ActorCritic, ema: EMA | None) -> dict[str, tuple[Tensor, nn.Parameter]]:
    """This process's part of each tensor of the state, and the parameter in whose layout it is a part."""
    release(model)
    parts = {f"model.{n}": (local_shard(p), p) for role in ROLES for n, p in model.parameters_of(role)}
    if ema:
        ema.rebind(model.parameters_of("policy"))
        parts |= {f"ema.{name}": (ema.shadow[name], parameter) for name, parameter in ema.parameters.items()}
    return parts


def save_history(folder: Path, parts: Mapping[str, Stateful | None], processes: int) -> None:
    """`ppo_state.json`; the same on all processes."""
    state = {name: part and part.state_dict() for name, part in parts.items()}
    (folder / HISTORY_NAME).write_text(json.dumps({"processes": processes, **state}), encoding="utf-8")


def save_process(folder: Path, process: int, rollout: Rollout | None, meter: Meter) -> None:
    """What only this process knows; `rollout` is None where the next step makes a new one."""
    (folder / f"ppo_process_{process}.json").write_text(json.dumps(meter.state_dict()), encoding="utf-8")
    if rollout is not None:
        save_rollout(folder / f"rollout_{process}.safetensors", rollout)


def load_history(folder: Path, parts: Mapping[str, Stateful | None]) -> int:
    """Reads what `save_history` wrote; returns the number of processes of that run."""
    path = folder / HISTORY_NAME
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} is not a checkpoint of this trainer.")
    state = json.loads(path.read_text(encoding="utf-8"))
    for name, part in parts.items():
        if (part is None) != (state.get(name) is None):
            raise InputError(
                f"{folder} was written {'without' if part else 'with'} {name}; resume with the same options."
            )
        if part is not None:
            part.load_state_dict(state[name])
    return state["processes"]


def load_process(folder: Path, process: int, meter: Meter, device: torch.device) -> Rollout | None:
    """Reads what `save_process` wrote."""
    measured = folder / f"ppo_process_{process}.json"
    if measured.exists():
        meter.load_state_dict(json.loads(measured.read_text(encoding="utf-8")), device)
    path = folder / f"rollout_{process}.safetensors"
    return load_rollout(path, device) if path.exists() else None


def save_offender(folder: Path, name: str, rollout: Rollout) -> Path:
    """Writes the part of a rollout in which something is not finite, for `load_rollout` to look at."""
    path = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_rollout(path, rollout)
    return path


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Every field of every micro-batch, as `<minibatch>.<micro-batch>.<field>`."""
    tensors = {
        f"{m}.{k}.{field.name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for m, minibatch in enumerate(rollout.minibatches)
        for k, batch in enumerate(minibatch)
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    save_file(tensors, path, metadata={"index": str(rollout.index)})


def load_rollout(path: Path, device: torch.device) -> Rollout:
    """Reads what `save_rollout` wrote."""
    batches: dict[tuple[int, int], dict[str, Any]] = {}
    with safe_open(path, "pt") as file:
        rollout = Rollout(int(file.metadata()["index"]))
        for name in list(file.keys()):
            m, k, field = name.split(".")
            value = file.get_tensor(name)
            batches.setdefault((int(m), int(k)), {})[field] = value.tolist() if field == "rows" else value.to(device)
    for (m, _), values in sorted(batches.items(), key=lambda item: item[0]):
        if m == len(rollout.minibatches):
            rollout.minibatches.append([])
        rollout.minibatches[m].append(MicroBatch(**values))
    return rollout
