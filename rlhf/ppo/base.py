"""The parts of the trainer that are not the algorithm: optimizer, guards at each step, logs, checkpoints, resume."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl.trainer.base_trainer import _BaseTrainer

from rlhf.data.pretraining import PretrainingStream
from rlhf.errors import InputError
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.checkpoint import (
    load_history,
    load_process,
    load_state,
    save_history,
    save_networks,
    save_offender,
    save_process,
    save_state,
)
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import EMA
from rlhf.ppo.guards import CollapseWatch, KLController, ScoreScale, TargetKL, gradients_finite
from rlhf.ppo.metrics import Meter, append_samples, drop_samples
from rlhf.ppo.optimization import parameter_groups, rollout_schedule
from rlhf.ppo.rollout import MicroBatch, Rollout
from rlhf.runs.checkpoints import AtomicCheckpoints


class PPOTrainerBase(AtomicCheckpoints, _BaseTrainer):
    """A transformers.Trainer over an `ActorCritic` that has a rollout in progress.

    Args:
        model: policy, value, reference and reward.
        args: the trainer's own copy, with `max_steps` settled.
        pretraining: the stream of PPO-ptx, or None.
        kwargs: those of transformers.Trainer.
    """

    args: PPOConfig

    def __init__(self, model: ActorCritic, args: PPOConfig, pretraining: PretrainingStream | None, **kwargs: Any):
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every trainable parameter takes part in every step
        super().__init__(model=model, args=args, **kwargs)
        if self.is_deepspeed_enabled and args.target_kl is not None:
            raise InputError("target_kl skips optimizer steps, and DeepSpeed takes its own; use FSDP, or no target_kl.")
        self._keep_outputs_precise()
        self.model_accepts_loss_kwargs = False  # so that the Trainer divides the loss by the accumulation
        self.pretraining = pretraining
        self.rollout: Rollout | None = None
        self.first_pass: tuple[Tensor, Tensor] | None = None  # logprobs and values of the micro-batch trained next
        self.ema = EMA(model.parameters_of("policy"), args.ema_decay) if args.ema_decay else None
        self.meter = Meter()
        self.kl = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
        self.target_kl = TargetKL(args.target_kl)
        self.score_scale = ScoreScale()
        self.collapse = CollapseWatch()
        self.minibatch_kl: Tensor | float = 0.0  # this process's part of policy/approxkl of the minibatch
        self.step_taken = True  # the last optimizer step
        self.add_callback(RolloutCallback(self))

    def _keep_outputs_precise(self) -> None:
        """FSDP would round log-probabilities and values, which leave the model in float32, to bf16."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)

    @property
    def actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    # ---- Optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = self.actor_critic
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = optimizer_class(parameter_groups(model, self.args, decayed), **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = rollout_schedule(optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True  # as in Trainer.create_scheduler: a second train() makes a new one
        return self.lr_scheduler

    def before_optimizer_step(self) -> None:
        """Looks at the gradient of the minibatch, and drops it if the policy has moved too far."""
        args, first = self.args, self.state.global_step * self.args.gradient_accumulation_steps
        # With fp16 the loss scaler skips such a step and goes on.
        if not args.fp16 and not gradients_finite(self.actor_critic.parameters()):
            micro_steps = range(first, first + args.gradient_accumulation_steps)
            minibatch = [self.rollout.at(m % args.micro_steps_per_rollout, args.seed) for m in micro_steps]
            self.stop_non_finite("the gradient is not finite", minibatch)
        if args.target_kl is not None:
            kl, self.minibatch_kl = self.sum(torch.as_tensor(self.minibatch_kl, device=args.device)).item(), 0.0
            self.step_taken = self.target_kl.step(self.rollout.index, kl)
            if not self.step_taken:
                self.optimizer.zero_grad()  # the optimizer passes over parameters without a gradient

    def after_optimizer_step(self) -> None:
        if self.ema and self.step_taken:
            self.ema.update()

    def stop_non_finite(self, what: str, batches: list[MicroBatch]) -> NoReturn:
        """Ends the run, with the batches on disk that were on their way."""
        args, step = self.args, self.state.global_step
        index = self.rollout.index if self.rollout else step // args.steps_per_rollout
        name = f"non_finite-step_{step}-process_{args.process_index}"
        path = save_offender(Path(args.output_dir), name, Rollout(index, [batches]))
        raise FloatingPointError(
            f"{what} at step {step}; the episodes are in {path} (see rlhf.ppo.checkpoint.load_rollout). Go on from the "
            "last checkpoint with smaller learning rates."
        )

    def stop_non_finite_text(self, loss: Tensor, blocks: list[list[int]]) -> NoReturn:
        """The same for pretraining text: the token ids of this process's blocks."""
        args, step = self.args, self.state.global_step
        path = Path(args.output_dir) / f"non_finite_text-step_{step}-process_{args.process_index}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(blocks), encoding="utf-8")
        raise FloatingPointError(
            f"the loss on pretraining text is {loss} at step {step}; the ids of its blocks are in {path}. Go on from "
            "the last checkpoint with a smaller learning rate."
        )

    @contextmanager
    def gradients_stay_here(self, model):
        """Gradients add up on each process; those of the micro-step's episodes, which rebind, take them along."""
        state = self.accelerator.gradient_state
        sync = state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(sync)

    # ---- Logs -------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.drain(self.sum)
            logs["episode"] = self.state.global_step * self.args.rollout_size // self.args.steps_per_rollout
        super().log(logs, start_time)

    def append_samples(self, source: str, columns: dict[str, list], responses: list[list[int]], batches) -> None:
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / "samples.jsonl"
            step = self.state.global_step
            append_samples(
                path, self.processing_class, columns["input_ids"], responses, batches, step=step, source=source
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def wrapped_model(self) -> nn.Module:
        """The model as the training loop has it; before any training, prepared for mixed precision alone."""
        if self.model_wrapped is self.model and not self.accelerator._models:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model_wrapped

    # ---- Saving -----------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the averaged policy and the tokenizer to the top, the last policy to raw/, the value model to value/.

        In a checkpoint there is also the state to go on from.
        """
        folder = Path(output_dir or self.args.output_dir)
        save_networks(folder, self.actor_critic, self.ema, write=self.args.should_save)
        if self.args.should_save:
            self.processing_class.save_pretrained(folder)
        if _internal_call:
            self._save_progress(folder)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_progress(self, folder: Path) -> None:
        save_state(folder, self.actor_critic, self.ema, write=self.args.should_save)
        if self.args.should_save:
            save_history(folder, self._history(), self.args.world_size)
        folder.mkdir(parents=True, exist_ok=True)  # another process may be the first here
        in_progress = self.state.global_step % self.args.steps_per_rollout > 0
        save_process(folder, self.args.process_index, self.rollout if in_progress else None, self.meter)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """At this moment the Trainer restores what belongs to a process; weights and optimizer are there already."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        folder, args = Path(checkpoint), self.args
        processes = load_history(folder, self._history())
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

    def _history(self) -> dict[str, Any]:
        """What a checkpoint has to keep besides weights; all processes have the same."""
        return {
            "pretraining": self.pretraining,
            "kl": self.kl,
            "target_kl": self.target_kl,
            "score_scale": self.score_scale,
            "collapse": self.collapse,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_state(Path(resume_from_checkpoint), self.actor_critic, self.ema)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled:  # which has read the weights, but not their average
            self._load_from_checkpoint(checkpoint)

    def _load_best_model(self) -> None:
        load_state(Path(self.state.best_model_checkpoint), self.actor_critic, self.ema)


class RolloutCallback(TrainerCallback):
    """What has to happen at moments of the Trainer's loop."""

    def __init__(self, trainer: PPOTrainerBase):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs: Any):
        self.trainer.rollout = self.trainer.first_pass = None  # of an earlier train()
        self.trainer.actor_critic.reset_caches()
        if self.trainer.ema:
            self.trainer.ema.rebind(self.trainer.actor_critic.parameters_of("policy"))
        if state.is_world_process_zero:
            drop_samples(Path(args.output_dir) / "samples.jsonl", state.global_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any):
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args, state, control, **kwargs: Any):
        self.trainer.after_optimizer_step()

    def on_step_end(self, args, state, control, **kwargs: Any):
        """Epochs are counted in passes over the prompts; to the Trainer the whole run is one."""
        if state.global_step % args.steps_per_rollout == 0:
            self.trainer.meter.rollout_trained()
            if args.target_kl is not None:
                rollout = state.global_step // args.steps_per_rollout - 1
                self.trainer.meter.add({"policy/skipped_steps": self.trainer.target_kl.skipped_of(rollout)})
        per_step = args.rollout_size / args.steps_per_rollout / len(self.trainer.train_dataset)
        state.epoch = state.global_step * per_step
        if int(state.epoch) > int((state.global_step - 1) * per_step) and state.global_step < state.max_steps:
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
        return control
