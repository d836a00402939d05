"""Moments of the Trainer's loop at which PPO has to do something: the begin of a run, and each optimizer step."""

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from rlhf.ppo.config import PPOConfig
from rlhf.ppo.metrics import drop_samples

if TYPE_CHECKING:
    from rlhf.ppo.trainer import PPOTrainer


class RolloutCallback(TrainerCallback):
    """Calls the trainer at moments of the Trainer's loop that have no method to override."""

    def __init__(self, trainer: "PPOTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs: Any):
        self.trainer.rollout = None  # of an earlier train()
        self.trainer.actor_critic.reset_caches()
        if self.trainer.ema:
            self.trainer.ema.rebind(self.trainer.actor_critic.parameters_of("policy"))
        if state.is_world_process_zero:
            drop_samples(self.trainer.samples_path, state.global_step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs: Any):
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args, state, control, **kwargs: Any):
        self.trainer.after_optimizer_step()

    def on_step_end(self, args: PPOConfig, state, control, **kwargs: Any):
        """Counts epochs in passes over the prompts; for the Trainer the whole run is one epoch."""
        if state.global_step % args.steps_per_rollout == 0:
            self.trainer.meter.rollout_trained()
            if args.target_kl is not None:
                rollout = state.global_step // args.steps_per_rollout - 1
                self.trainer.meter.add({"policy/skipped_steps": self.trainer.target_kl.skipped_of(rollout)})
        per_step = args.rollout_size / args.steps_per_rollout / len(self.trainer.train_dataset)
        state.epoch = state.global_step * per_step
        setattr(state, "episode", state.global_step * args.rollout_size // args.steps_per_rollout)  # noqa: B010
        if int(state.epoch) > int((state.global_step - 1) * per_step) and state.global_step < state.max_steps:
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
        control.should_log |= control.should_training_stop  # the run's last metrics, which result.json has
        return control
