"""PPOConfig: TRL's names, the paper's numbers (arXiv 2203.02155, appendix C.4)."""

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from transformers import SchedulerType
from trl.trainer.base_config import _BaseConfig

from rlhf.errors import InputError, require_at_least
from rlhf.models.compiled_layers import COMPILE
from rlhf.models.micro_batches import rows_field
from rlhf.models.precision import bf16_on_cpu
from rlhf.models.recomputation import CHECKPOINTING, left_open
from rlhf.ppo.sizes import resolve_rollout
from rlhf.runs.batches import rows_left_open
from rlhf.runs.processes import use_one_device

TRL_MODEL = "EleutherAI/pythia-160m"  # TRL's default for both model paths


@dataclass
class PPOConfig(_BaseConfig):
    r"""Arguments of [`rlhf.ppo.PPOTrainer`]: all of `transformers.TrainingArguments` and the following.

    A rollout is `batch_size` episodes, divided into `num_mini_batches` minibatches. Each minibatch gives one optimizer
    step in each of `num_ppo_epochs` passes:

        batch_size      = per_device_train_batch_size x gradient_accumulation_steps x processes
        mini_batch_size = batch_size / num_mini_batches

    as in TRL. Either set the factors, or set `batch_size` and `mini_batch_size`, which mean the same run on 1 and on 8
    GPUs. The remaining sizes are computed. On each device `per_device_train_batch_size` episodes pass the models
    together, so with `batch_size` set it changes only memory and speed.

    `logging_steps`, `eval_steps` and `save_steps` count rollouts, as in TRL; below 1 they are a share of the run.
    `max_steps` and the numbers of checkpoints count optimizer steps.

    Raises:
        InputError: a value out of range, or values that cannot be combined.
    """

    if TYPE_CHECKING:
        # TrainingArguments replaces None by a folder and parses a string.
        output_dir: str = ""
        lr_scheduler_kwargs: dict[str, Any] | None = None

    # Defaults of TrainingArguments that PPO changes
    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of the policy."})
    per_device_train_batch_size: int = rows_field("Episodes per process that pass the models together, at most.")
    gradient_accumulation_steps: int = field(
        default=1,
        metadata={"help": "Episodes per rollout and process / per_device_train_batch_size, as in TRL. Without effect "
                          "if batch_size is set."},
    )  # fmt: skip
    gradient_checkpointing: bool | None = field(default=None, metadata=CHECKPOINTING)
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of Adam (paper: 0.95 in all stages)."})
    # Stiennon et al. (2020) use 1e-5 for full models. Gradients of LoRA weights are as small as that: a fresh adapter's
    # steps would be 7 % of the learning rate, and the value model's about 60 %.
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Epsilon of Adam, below the gradients of LoRA."})
    lr_scheduler_type: SchedulerType | str = field(
        default="constant", metadata={"help": "Shape of the learning rates after `warmup_rollouts`."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Rollouts between two logs; below 1 a share of the run."})
    eval_steps: float | None = field(
        default=None, metadata={"help": "Rollouts between two evaluations; below 1 a share. None: logging_steps."}
    )
    save_steps: float = field(
        default=500, metadata={"help": "Rollouts between two checkpoints; below 1 a share of the run."}
    )

    # Batches
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes of the whole run (paper: 256k), rounded up to whole rollouts. None: "
                          "num_train_epochs passes over the prompts. max_steps overrides it."},
    )  # fmt: skip
    batch_size: int | None = field(
        default=None, metadata={"help": "Episodes per rollout over all processes, instead of the factors."}
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Episodes per optimizer step, all processes; sets num_mini_batches."}
    )
    num_mini_batches: int = field(default=1, metadata={"help": "Minibatches per rollout (paper: 512 / 64 = 8)."})
    num_ppo_epochs: int = field(default=1, metadata={"help": "Passes over each rollout."})
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Responses sampled at once on each process."}
    )
    compile: bool | None = field(default=None, metadata=COMPILE)
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the prompts."})

    # Sampling
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Longest prompt in tokens. None: the model's context less response_length."}
    )
    response_length: int = field(default=53, metadata={"help": "Longest response in tokens (paper: 1k)."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature, also of the log-probabilities."})
    stop_token: Literal["eos"] | None = field(
        default=None, metadata={"help": "Accepted for TRL's scripts: responses always stop at any EOS of the model."}
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "Id of one more token that ends a response, beside the model's EOS tokens."}
    )

    # Reward
    kl_coef: float = field(default=0.02, metadata={"help": "beta of the per-token penalty -beta (log pi - log ref)."})
    adaptive_kl_target: float | None = field(
        default=None,
        metadata={"help": "Target KL per response in nats. If set, kl_coef starts at its value and is adapted to reach "
                          "it (Ziegler et al. 2019). None keeps it constant."},
    )  # fmt: skip
    adaptive_kl_horizon: int = field(
        default=10_000,
        metadata={"help": "Time constant of the adaptive KL controller, in episodes. Smaller adapts faster."},
    )
    kl_estimator: str = field(
        default="k1",
        metadata={"help": "Only 'k1': k3 estimates the KL well, but as a reward it has a biased gradient."},
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Positive number subtracted from the score of a response without EOS. None: 0."}
    )
    missing_eos_reward: float | None = field(
        default=None, metadata={"help": "Score of a response without EOS, instead of its own (e.g. -1). None: its own."}
    )
    scale_scores: bool = field(
        default=False, metadata={"help": "Divide scores by the running standard deviation of all scores."}
    )
    score_clip: float | None = field(
        default=None, metadata={"help": "Clip scores to +-score_clip, after scale_scores. None: no clip."}
    )
    reward_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Weights of reward_funcs in the sum with the reward model's score. None: all 1."},
    )
    whiten_rewards: bool = field(
        default=False, metadata={"help": "Scale token rewards to variance 1 and keep their mean."}
    )

    # PPO
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy's ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of a value's change per rollout."})
    gamma: float = field(default=1.0, metadata={"help": "Discount factor."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    whiten_advantages: bool = field(
        default=True,
        metadata={"help": "Shift and scale advantages of a rollout to mean 0 and variance 1, over all processes."},
    )

    target_kl: float | None = field(
        default=None,
        metadata={"help": "Nats per token. Once policy/approxkl of a minibatch is above 1.5 times this, the rest of "
                          "the rollout is skipped. None: never."},
    )  # fmt: skip

    # PPO-ptx
    ptx_coef: float | None = field(
        default=None,
        metadata={"help": "Weight of the mean loss per pretraining token relative to PPO's mean loss per "
                          "response token (gamma of eq. 2; paper: 27.8). None: 0.5 with pretraining text."},
    )  # fmt: skip
    ptx_examples_per_episode: int = field(
        default=8, metadata={"help": "Blocks of pretraining text per episode (paper: 8)."}
    )
    ptx_length: int | None = field(
        default=None, metadata={"help": "Tokens in a block. None: the model's context, up to 2048."}
    )
    ptx_weights: list[float] | None = field(
        default=None, metadata={"help": "Shares of the sources of pretraining text. None: equal."}
    )

    # Optimization
    value_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the value model (paper: 9e-6). None: learning_rate."}
    )
    warmup_rollouts: int | None = field(
        default=None,
        metadata={"help": "Rollouts over which learning rates rise from 1/10 of the peak to the peak. None: 10, but "
                          "at most a tenth of the run."},
    )  # fmt: skip
    value_warmup_rollouts: int = field(
        default=0,
        metadata={"help": "Number of initial rollouts that train only the value model. A value model that starts "
                          "from the reward model has negative explained variance at first."},
    )  # fmt: skip
    ema_decay: float | None = field(
        default=0.992,
        metadata={"help": "Decay per optimizer step of the saved average of the policy. A run of n steps takes at most "
                          "(1 + n) / (10 + n), which averages over its last ninth. None: no average."},
    )  # fmt: skip

    # TRL's fields for policies with several adapters and for ZeRO-3, and those that it computes
    model_adapter_name: str | None = field(
        default=None, metadata={"help": "Adapter of a PEFT policy to train. None: the active one."}
    )
    ref_adapter_name: str | None = field(
        default=None, metadata={"help": "Adapter of a PEFT policy that is the reference. None: the base."}
    )
    ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "Accepted for TRL's scripts, without effect."}
    )
    num_total_batches: int | None = field(default=None, metadata={"help": "Computed: rollouts of the whole run."})
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "Computed: per_device_train_batch_size x processes."}
    )
    local_batch_size: int | None = field(
        default=None, metadata={"help": "Computed: episodes per rollout on each process."}
    )
    local_mini_batch_size: int | None = field(
        default=None, metadata={"help": "Computed: episodes per optimizer step on each process."}
    )

    # What the recipe reads and the run leaves behind
    num_sample_generations: int = field(
        default=10, metadata={"help": "Number of times that a run writes a few samples to samples.jsonl."}
    )
    sft_model_path: str | None = field(
        default=TRL_MODEL,
        metadata={"help": "SFT adapter or model: policy and reference. Empty: the base is the reference, and the "
                          "policy a new adapter on it. The default is TRL's."},
    )  # fmt: skip
    reward_model_path: str | None = field(
        default=TRL_MODEL, metadata={"help": "Reward model: scores and initial values. The default is TRL's."}
    )
    reward_ensemble_paths: list[str] | None = field(
        default=None,
        metadata={"help": "Further reward adapters on the same base that score together with it."},
    )
    reward_ensemble: Literal["mean", "min"] = field(
        default="mean", metadata={"help": "Score of an ensemble: its mean, or min for the worst case."}
    )

    computed = frozenset()  # fields that __post_init__ computes; no field itself

    def __post_init__(self):
        self.computed = left_open(self) | rows_left_open(self)
        with bf16_on_cpu(self):
            super().__post_init__()
        use_one_device(self)
        self._check_values()
        self.computed |= resolve_rollout(self)

    @property
    def rollout_size(self) -> int:
        """Episodes per rollout over all processes."""
        return self.local_rollout_size * self.world_size

    @property
    def local_rollout_size(self) -> int:
        """Episodes per rollout on this process."""
        return self.local_batch_size or 0  # computed in any case

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps per rollout."""
        return self.num_mini_batches * self.num_ppo_epochs

    @property
    def micro_steps_per_rollout(self) -> int:
        """Forward-backward passes per rollout on each process."""
        return self.steps_per_rollout * self.micro_batches_per_step

    @property
    def micro_batches_per_step(self) -> int:
        """Forward-backward passes per optimizer step on each process."""
        return math.ceil((self.local_mini_batch_size or 1) / self.per_device_train_batch_size)

    def total_steps(self, num_prompts: int) -> int:
        """Optimizer steps of the whole run on a dataset of `num_prompts` prompts."""
        if self.max_steps > 0:
            return self.max_steps
        episodes = self.total_episodes or self.num_train_epochs * num_prompts
        return max(1, math.ceil(episodes / self.rollout_size)) * self.steps_per_rollout

    def of_run(self, num_prompts: int) -> "PPOConfig":
        """Returns a copy in the terms of transformers.Trainer, for a run on `num_prompts` prompts.

        There, the accumulation is of one optimizer step, and all intervals count optimizer steps.
        """
        args = copy.copy(self)
        args.max_steps = self.total_steps(num_prompts)
        args.num_total_batches = math.ceil(args.max_steps / self.steps_per_rollout)
        if args.value_warmup_rollouts >= args.num_total_batches:
            raise InputError(
                f"value_warmup_rollouts is {args.value_warmup_rollouts}, and the run has {args.num_total_batches} "
                f"rollouts ({num_prompts} prompts), so the policy would never be trained. Lower it, or raise "
                "total_episodes."
            )
        args.total_episodes = self.total_episodes or int(self.num_train_epochs * num_prompts)
        args.gradient_accumulation_steps = self.micro_batches_per_step
        args.per_device_train_batch_size = min(self.per_device_train_batch_size, self.local_mini_batch_size or 1)
        for name in ("logging_steps", "eval_steps", "save_steps"):
            rollouts = getattr(self, name)
            if rollouts is not None and rollouts >= 1:
                setattr(args, name, int(rollouts * self.steps_per_rollout))
        return args

    def _check_values(self) -> None:
        require_at_least(
            self, 1, "num_mini_batches", "num_ppo_epochs", "response_length", "local_rollout_forward_batch_size",
            "per_device_train_batch_size", "gradient_accumulation_steps", "ptx_examples_per_episode", "batch_size",
            "mini_batch_size", "total_episodes", "max_prompt_length", "adaptive_kl_horizon",
        )  # fmt: skip
        require_at_least(
            self, 0, "warmup_rollouts", "value_warmup_rollouts", "num_sample_generations", "ptx_coef", "kl_coef",
            "cliprange", "cliprange_value", "vf_coef", "value_learning_rate",
        )  # fmt: skip
        require_at_least(self, 2, "ptx_length")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0 and at most 1.")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; PPO samples, so it must be positive.")
        if self.kl_estimator != "k1":
            raise InputError(
                f"kl_estimator is {self.kl_estimator}; as a reward only k1 has an unbiased gradient. Leave it out."
            )
        if self.missing_eos_penalty is not None and self.missing_eos_penalty <= 0:
            raise InputError(f"missing_eos_penalty is {self.missing_eos_penalty}; it is subtracted: make it positive.")
        if self.missing_eos_penalty is not None and self.missing_eos_reward is not None:
            raise InputError("missing_eos_penalty and missing_eos_reward are both set; choose one.")
        if self.stop_token not in (None, "eos"):
            raise InputError(f"stop_token is {self.stop_token}; it is 'eos' or left out (stop_token_id for others).")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise InputError("stop_token and stop_token_id are both set; choose one.")
        for name in ("score_clip", "adaptive_kl_target", "target_kl"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive, or left out.")
        if self.target_kl is not None and self.fp16:
            raise InputError("target_kl skips steps, which the loss scaler of fp16 does not take; use bf16.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must be at least 0 and below 1, or left out.")
