"""Saves and resumes PPO: networks for users to load, and in checkpoints the state to resume from.

    ppo_state.safetensors     trained parameters of policy and value, and the policy's average
    ppo_state.json            controllers, guards and the position in the pretraining text
    ppo_process_<p>.json      metrics of process p since the last log
    rollout_<p>.safetensors   process p's episodes of the rollout in progress, unless the next step starts a new rollout

A rollout in progress cannot be sampled again, because the weights that sampled it are gone. Everything else (prompts,
random numbers, order of the minibatches) is a function of seed and step and is not saved.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from huggingface_hub import upload_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import HubStrategy
from trl.trainer.base_trainer import _BaseTrainer

from rlhf.errors import InputError
from rlhf.models.sharding import full_tensor, local_shard, release, shard_of
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import EMA, averaged
from rlhf.ppo.metrics import Meter
from rlhf.ppo.rollout import MicroBatch, Rollout
from rlhf.runs.checkpoints import AtomicCheckpoints
from rlhf.runs.contract import write_contract

WEIGHTS_NAME = "ppo_state.safetensors"
STATE_NAME = "ppo_state.json"
ROLES = ("policy", "value")
UPLOADED = (
    "adapter_*", "model*.safetensors*", "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges*",
    "special_tokens_map.json", "added_tokens.json", "chat_template*", "contract*", "README.md",
)  # fmt: skip


class Stateful(Protocol):
    """An object whose state JSON can hold."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class PPOCheckpointing(AtomicCheckpoints, _BaseTrainer):
    """The superclass of `PPOTrainer`: everything that it writes to disk, and how it resumes.

    Attributes that the subclass sets:
        stateful: name -> object with a state, equal on all processes; None where this run has none.
        ema: the policy's average, or None.
        meter: metrics since the last log.
        rollout: this process's episodes of the rollout in progress, or None.

    The Trainer's attributes are declared as PPO narrows them.
    """

    stage = "ppo"

    args: PPOConfig
    model: nn.Module
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    eval_dataset: Dataset | dict[str, Dataset] | None
    stateful: Mapping[str, Stateful | None]
    ema: EMA | None
    meter: Meter
    rollout: Rollout | None

    @property
    def actor_critic(self) -> ActorCritic:
        """The model without the wrappers of DDP, FSDP or DeepSpeed."""
        return self.accelerator.unwrap_model(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the averaged policy and the tokenizer to the top, the last policy to raw/, the value model to value/.

        A checkpoint also holds the state to resume from.
        """
        folder = Path(output_dir or self.args.output_dir)
        save_networks(folder, self.actor_critic, self.ema, write=self.args.should_save)
        if self.args.should_save:
            self.processing_class.save_pretrained(folder)
            if self.contract is not None:
                for beside in (folder, folder / "raw", folder / "value"):
                    write_contract(beside, self.contract)
        if _internal_call:
            self._save_progress(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Uploads what users load: the averaged policy, its tokenizer, the contract and the model card.

        Takes the arguments of transformers.Trainer.push_to_hub; `kwargs` go to the card. What only training needs is
        left out: raw/, value/, the state to resume from, logs.
        """
        folder = Path(self.args.output_dir)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token or self.args.hub_token, private=private)
        with averaged(self.actor_critic, self.ema):
            self.actor_critic.save("policy", folder, write=self.args.should_save)
        self.accelerator.wait_for_everyone()
        if not self.is_world_process_zero():
            return None
        self.processing_class.save_pretrained(folder)
        name = kwargs.pop("model_name", None) or (self.args.hub_model_id or folder.name).split("/")[-1]
        self.create_model_card(model_name=name, **kwargs)
        return self._upload(folder, commit_message, blocking, token, revision)

    def push_checkpoint(self, folder: str) -> None:
        """Uploads the same of a checkpoint, with `hub_strategy: every_save`."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            message = f"Training in progress, step {self.state.global_step}"
            self._upload(Path(folder), message, blocking=True)

    def _upload(self, folder: Path, message: str | None, blocking: bool, token=None, revision=None) -> Any:
        return upload_folder(
            repo_id=self.hub_model_id or "",
            folder_path=folder,
            allow_patterns=list(UPLOADED),
            commit_message=message,
            token=token or self.args.hub_token,
            revision=revision or self.args.hub_revision,
            run_as_future=not blocking,
        )

    def _save_progress(self, folder: Path) -> None:
        save_weights(folder, self.actor_critic, self.ema, write=self.args.should_save)
        if self.args.should_save:
            save_state(folder, self.stateful, self.args.world_size)
        folder.mkdir(parents=True, exist_ok=True)  # another process may be the first here
        in_progress = self.state.global_step % self.args.steps_per_rollout > 0
        save_process(folder, self.args.process_index, self.rollout if in_progress else None, self.meter)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(Path(resume_from_checkpoint), self.actor_critic, self.ema)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None  # else the Trainer does not call
        load_weights(Path(self.state.best_model_checkpoint), self.actor_critic, self.ema)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled:  # has read the weights, but not their average
            self._load_from_checkpoint(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restores what belongs to a process; the Trainer has loaded weights and optimizer by now."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        folder, args = Path(checkpoint), self.args
        processes = load_state(folder, self.stateful)
        self.rollout = load_process(folder, args.process_index, self.meter, self.accelerator.device)
        if self.state.global_step % args.steps_per_rollout == 0:
            return
        if processes != args.world_size:
            raise InputError(
                f"{folder} is in the middle of a rollout of {processes} processes, and there are {args.world_size}; "
                "resume with as many, or from a checkpoint at the end of a rollout."
            )
        if self.rollout is None:
            raise InputError(f"{folder} lacks its rollout; resume with the batch sizes that the run had.")


def save_networks(folder: Path, model: ActorCritic, ema: EMA | None, write: bool = True) -> None:
    """Saves the averaged policy to the top, the last policy to raw/ and the value model to value/.

    All processes must call it, because each may hold a shard of the weights; those with `write` write files.
    """
    with averaged(model, ema):
        model.save("policy", folder, write)
    model.save("policy", folder / "raw", write)
    model.save("value", folder / "value", write)


def save_weights(folder: Path, model: ActorCritic, ema: EMA | None, write: bool = True) -> None:
    """Saves all tensors that training changes, except the optimizer's: trained parameters and the policy's average.

    All processes must call it, like `save_networks`.
    """
    tensors = {}
    for name, (shard, parameter) in _shards(model, ema).items():
        tensor = full_tensor(shard, parameter)
        if write:
            tensors[name] = tensor.contiguous().cpu()
    if write:
        save_file(tensors, folder / WEIGHTS_NAME)


@torch.no_grad()
def load_weights(folder: Path, model: ActorCritic, ema: EMA | None) -> None:
    """Reads the file of `save_weights` into the same networks.

    Raises:
        InputError: the file is missing, or was written for other networks.
    """
    path = folder / WEIGHTS_NAME
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} is not a checkpoint of this trainer.")
    tensors = load_file(path)
    for name, (shard, parameter) in _shards(model, ema).items():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if name not in tensors or tensors[name].shape != shape:
            raise InputError(
                f"{path} does not fit: {name} is missing or of another shape; resume with the same options."
            )
        shard.copy_(shard_of(tensors[name], parameter))
    release(model)


def _shards(model: ActorCritic, ema: EMA | None) -> dict[str, tuple[Tensor, nn.Parameter]]:
    """name -> this process's shard of a saved tensor, and the parameter whose layout the shard has."""
    release(model)
    shards = {f"model.{n}": (local_shard(p), p) for role in ROLES for n, p in model.parameters_of(role)}
    if ema:
        ema.rebind(model.parameters_of("policy"))
        shards |= {f"ema.{name}": (ema.shadow[name], parameter) for name, parameter in ema.parameters.items()}
    return shards


def save_state(folder: Path, stateful: Mapping[str, Stateful | None], processes: int) -> None:
    """Writes ppo_state.json, which is the same on all processes."""
    states = {name: owner and owner.state_dict() for name, owner in stateful.items()}
    (folder / STATE_NAME).write_text(json.dumps({"processes": processes, **states}), encoding="utf-8")


def load_state(folder: Path, stateful: Mapping[str, Stateful | None]) -> int:
    """Reads ppo_state.json into `stateful`; returns the number of processes of the run that wrote it."""
    path = folder / STATE_NAME
    if not path.exists():
        raise InputError(f"{path} is missing; {folder} is not a checkpoint of this trainer.")
    states = json.loads(path.read_text(encoding="utf-8"))
    for name, owner in stateful.items():
        if (owner is None) != (states.get(name) is None):
            raise InputError(
                f"{folder} was written {'without' if owner else 'with'} {name}; resume with the same options."
            )
        if owner is not None:
            owner.load_state_dict(states[name])
    return states["processes"]


def save_process(folder: Path, process: int, rollout: Rollout | None, meter: Meter) -> None:
    """Saves what only this process has; `rollout` is None if the next step starts a new one."""
    (folder / f"ppo_process_{process}.json").write_text(json.dumps(meter.state_dict()), encoding="utf-8")
    if rollout is not None:
        save_rollout(folder / f"rollout_{process}.safetensors", rollout)


def load_process(folder: Path, process: int, meter: Meter, device: torch.device) -> Rollout | None:
    """Reads the files of `save_process`."""
    metrics = folder / f"ppo_process_{process}.json"
    if metrics.exists():
        meter.load_state_dict(json.loads(metrics.read_text(encoding="utf-8")), device)
    path = folder / f"rollout_{process}.safetensors"
    return load_rollout(path, device) if path.exists() else None


def save_rollout(path: Path, rollout: Rollout) -> None:
    """Saves every field of every micro-batch as `<minibatch>.<micro-batch>.<field>`."""
    tensors = {
        f"{m}.{k}.{field.name}": torch.as_tensor(value).detach().cpu().contiguous().clone()
        for m, minibatch in enumerate(rollout.minibatches)
        for k, batch in enumerate(minibatch)
        for field in fields(batch)
        if (value := getattr(batch, field.name)) is not None
    }
    save_file(tensors, path, metadata={"index": str(rollout.index)})


def load_rollout(path: Path, device: torch.device) -> Rollout:
    """Reads the file of `save_rollout`."""
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
