"""Learning rates of policy and value, and their warm-up (arXiv 2203.02155, appendix C.4)."""

from collections.abc import Callable, Container

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, get_scheduler

from rlhf.errors import InputError
from rlhf.ppo.actor_critic import ActorCritic
from rlhf.ppo.config import PPOConfig

LONGEST_WARMUP = 10  # rollouts
EVALUATED = {
    *(f"objective/{name}" for name in ("kl", "entropy", "score", "scores", "non_score_reward", "rlhf_reward")),
    "rollout/length",
    "rollout/eos_rate",
}


def check_ppo_training(args: PPOConfig) -> None:
    """Checks, before a model is loaded, what only PPO asks of the Trainer's options.

    Raises:
        InputError: a schedule that is no function of the step, or a best checkpoint by a metric that PPO has not.
    """
    rollout_schedule(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), args, 100)
    metric = args.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in EVALUATED:
        raise InputError(
            f"the best checkpoint is chosen by {metric}, which PPO does not measure. Set metric_for_best_model to "
            "eval_objective/score or another of the evaluation's metrics."
        )


def parameter_groups(model: ActorCritic, args: PPOConfig, decayed: Container[str]) -> list[dict]:
    """Parameter groups of policy and value with their learning rates, split by weight decay.

    Args:
        decayed: names of the parameters with weight decay.
    """
    rates = {"policy": args.learning_rate, "value": args.value_learning_rate}
    groups = []
    for role, rate in rates.items():
        rate = args.learning_rate if rate is None else rate
        for decay in (True, False):
            parameters = [p for name, p in model.parameters_of(role) if (name in decayed) == decay]
            weight_decay = args.weight_decay if decay else 0.0
            groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay, "role": role})
    return [group for group in groups if group["params"]]


def rollout_schedule(optimizer: torch.optim.Optimizer, args: PPOConfig, num_training_steps: int) -> LambdaLR:
    """Raises learning rates from 1/10 of the peak over the warm-up; the policy's start after the value warm-up.

    `warmup_rollouts` None is 10 rollouts, at most a tenth of the run, so that short runs reach the peak.
    `lr_scheduler_type` (constant in the paper) is multiplied with it.
    """
    shape = get_scheduler(
        args.lr_scheduler_type,
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=args.get_warmup_steps(num_training_steps),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    if not isinstance(shape, LambdaLR):
        name = SchedulerType(args.lr_scheduler_type).value
        raise InputError(
            f"lr_scheduler_type {name} is not a function of the step; use for example constant, linear or cosine."
        )

    rollouts = args.warmup_rollouts
    if rollouts is None:
        rollouts = min(LONGEST_WARMUP, num_training_steps // args.steps_per_rollout // 10)
    warmup = rollouts * args.steps_per_rollout

    def factor(start: int) -> Callable[[int], float]:

        def at(step: int) -> float:
            rise = min(1.0, 0.1 + 0.9 * (step - start) / warmup) if warmup else 1.0
            return 0.0 if step < start else rise * shape.lr_lambdas[0](step)

        return at

    starts = {"policy": args.value_warmup_rollouts * args.steps_per_rollout, "value": 0}
    return LambdaLR(optimizer, [factor(starts[group.get("role", "policy")]) for group in optimizer.param_groups])
