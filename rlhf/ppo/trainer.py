"""PPO for language models (arXiv 2203.02155, section 3.5 and appendix C.4), as a transformers.Trainer.

Read it from top to bottom. A rollout is `make_rollout` (sample, score, advantages). An update is `compute_loss` for
each micro-batch, with the gradient of PPO-ptx added in `training_step`. Gradient accumulation, clipping, mixed
precision, the training loop and distribution are the Trainer's; saving and resuming are in `rlhf.ppo.checkpointing`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from rlhf.errors import InputError
from rlhf.generation.random_numbers import sampling_uniforms
from rlhf.generation.sampler import sample, stop_tokens
from rlhf.models.memory import Memory, ppo_memory
from rlhf.models.micro_batches import fit_memory
from rlhf.models.model_sizes import Layout, Shape
from rlhf.models.pass_limits import pass_limits
from rlhf.models.shared_base import SharedBase
from rlhf.models.stop_tokens import add_stop_ids
from rlhf.ppo.advantages import add_advantages, explained_variance, response_tokens
from rlhf.ppo.callback import RolloutCallback
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import EMA, averaged, decay_of_run
from rlhf.ppo.guards import (
    CollapseWatch,
    KLController,
    ScoreScale,
    TargetKL,
    gradients_finite,
    stop_non_finite,
)
from rlhf.ppo.layouts import SharedActorCritic, build_actor_critic, compile_networks
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.metrics import (
    Meter,
    append_samples,
    episode_means,
    function_means,
    score_interval,
    update_shares,
    with_trl_names,
)
from rlhf.ppo.optimization import parameter_groups, rollout_schedule
from rlhf.ppo.ptx import add_ptx_gradient, pretraining_stream, resolve_ptx_coef
from rlhf.ppo.reward_functions import ScoreTable, check_functions, name_of, score_texts
from rlhf.ppo.rewards import RewardSource, reward_sources, shape_scores
from rlhf.ppo.rollout import (
    MicroBatch,
    Rollout,
    encode_prompts,
    longest_prompt,
    micro_batch,
    prompt_rows,
    split,
)
from rlhf.ppo.trl_interface import TRLInterface
from rlhf.tensors import PADDING_ID


class PPOTrainer(TRLInterface):
    """Trains a policy against a reward with PPO. Names and order of the arguments are those of TRL's PPOTrainer.

    Args:
        args: the configuration; never changed.
        processing_class: the tokenizer; a pad token is not needed.
        model: the policy, or a `SharedBase` with the adapters policy, sft (the reference), value and, unless the reward
            comes from elsewhere, reward.
        ref_model: reference of the KL penalty. None: the policy without its adapter if it has one, else a copy.
        reward_model: sequence classifier with one label; None if `reward_funcs` are given.
        train_dataset: prompts: `prompt` (text or messages) or `input_ids`; further columns go to the reward functions.
        value_model: sequence classifier that is trained; None: a copy of the reward model.
        data_collator: makes `input_ids`, and perhaps `attention_mask`, of a list of rows, as in TRL; it is called once
            for each row. None: see `rlhf.ppo.prompts`.
        eval_dataset: held-out prompts, or a dict of them, for `evaluate` and `eval_strategy`.
        optimizers: optimizer and scheduler to use instead of AdamW with one learning rate each for policy and value.
        callbacks: as in transformers.Trainer.
        peft_config: puts an adapter on `model`; the reference is then `model` without it.
        reward_funcs: those of TRL's GRPOTrainer: Python functions, reward models, and names of reward models. Their
            weighted sum is added to the reward model's score; see `rlhf.ppo.reward_functions`.
        pretrain_dataset: rows with `text`, or several such sources, in memory or streamed, for PPO-ptx (`ptx_coef`).
        reward_processing_class: tokenizer of the reward model if it differs from the policy's; the reward model then
            reads the decoded text instead of the sampled ids.
        reward_processing_classes: tokenizer of each of `reward_funcs` that is a model; None: the one beside the model's
            weights, else the policy's.

    Raises:
        InputError: arguments or data that cannot be used, each with the remedy.
    """

    _tag_names = ("trl", "ppo", "rlhf")
    _name = "PPO"
    _paper = {  # noqa: RUF012
        "title": "Training language models to follow instructions with human feedback",
        "id": "2203.02155",
    }

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: SharedBase | PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | None = None,
        reward_model: PreTrainedModel | PeftModel | None = None,
        train_dataset: Dataset | None = None,
        value_model: PreTrainedModel | PeftModel | None = None,
        data_collator: Callable | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        reward_funcs: RewardSource | Sequence[RewardSource] | None = None,
        pretrain_dataset: Dataset | IterableDataset | Sequence[Dataset | IterableDataset] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: PreTrainedTokenizerBase | Sequence[PreTrainedTokenizerBase | None] | None = None,
    ):
        # The networks
        set_seed(args.seed)  # LoRA weights of peft_config are random
        if train_dataset is None:
            raise InputError("PPOTrainer needs a train_dataset of prompts; pass a dataset with a column `prompt`.")
        if args.label_smoothing_factor:
            raise InputError(
                f"label_smoothing_factor is {args.label_smoothing_factor}, and PPO has no labels. Leave it out."
            )
        rewards = reward_sources(
            reward_model,
            reward_funcs,
            args.reward_weights,
            processing_class,
            reward_processing_class,
            reward_processing_classes,
        )
        self.reward_funcs, self.reward_weights = rewards.functions, rewards.weights
        if rewards.model_reads_text and value_model is None and not isinstance(model, SharedBase):
            raise InputError(
                "value_model is missing; the reward model has another tokenizer and cannot be copied. Pass one."
            )
        networks = build_actor_critic(
            model,
            ref_model,
            rewards.model,
            value_model,
            peft_config,
            args.model_adapter_name,
            args.ref_adapter_name,
        )
        if rewards.model_reads_text:
            networks.has_reward = False  # the adapter `reward`, if there is one, does not score
        if not networks.has_reward and not self.reward_funcs:
            raise InputError("there is no reward: give a reward_model, a `reward` adapter or reward_funcs.")
        for role in ("policy", "value"):
            if not networks.parameters_of(role):
                raise InputError(f"the {role} has no trainable parameters; load its adapter with is_trainable=True.")

        # Prompts and pretraining text
        self.processing_class, self.collate_row = processing_class, data_collator
        self.stop_ids = stop_tokens(networks.language_model, processing_class, args.stop_token_id)
        add_stop_ids(processing_class, self.stop_ids)  # saved with the tokenizer, so that evaluation stops there, too
        self.max_prompt_length = longest_prompt(networks.config, args.max_prompt_length, args.response_length)
        train_dataset = self._encode(train_dataset, "train", args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encode(dataset, name, args) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, "eval", args)
        check_functions(self.reward_funcs, train_dataset.column_names)
        args = args.of_run(len(train_dataset))  # a copy: the caller's stays as it is
        args.ptx_coef = resolve_ptx_coef(args.ptx_coef, has_text=pretrain_dataset is not None)
        self.pretraining = pretraining_stream(pretrain_dataset, processing_class, networks.config, args)

        # The Trainer
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every trainable parameter takes part in every step
        super().__init__(
            model=networks,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        if self.is_deepspeed_enabled and args.target_kl is not None:
            raise InputError("target_kl skips optimizer steps, and DeepSpeed takes its own; use FSDP, or no target_kl.")
        self.model_accepts_loss_kwargs = False  # so that the Trainer divides the loss by the accumulation
        self._keep_outputs_precise()
        compile_networks(self, networks)
        rewards.to(self.accelerator.device)

        # State of a run
        self.rollout: Rollout | None = None
        decay = decay_of_run(args.ema_decay or 0.0, args.max_steps)
        self.ema = EMA(networks.parameters_of("policy"), decay) if decay else None
        self.kl = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
        self.target_kl = TargetKL(args.target_kl)
        self.score_scale = ScoreScale()
        self.collapse = CollapseWatch()
        self.stateful = {
            "pretraining": self.pretraining,
            "kl": self.kl,
            "target_kl": self.target_kl,
            "score_scale": self.score_scale,
            "collapse": self.collapse,
        }
        self.meter = Meter()
        self.minibatch_kl: Tensor | float = 0.0  # this process's share of policy/approxkl of the minibatch
        self.step_taken = True  # False if target KL skipped the last optimizer step
        self.add_callback(RolloutCallback(self))
        setattr(self.state, "episode", 0)  # noqa: B010  # as TRL's OnlineTrainerState has it
        fit_memory(self, networks.language_model, self.rollout_memory, self.row_tokens)

    @cached_property
    def prompt_lengths(self) -> list[int]:
        return list(map(len, self.train_dataset["input_ids"]))

    def row_tokens(self, layout: Layout) -> float:
        """Tokens of a pass for each episode, if responses have their longest: policy and value may share it."""
        together = 2 if layout.sharding == "ddp" and not layout.quantized else 1
        return together * (fmean(self.prompt_lengths) + self.args.response_length)

    def rollout_memory(self, shape: Shape, layout: Layout, rows: int) -> Memory:
        """Memory of a rollout and its update, if prompts and responses have their longest.

        Raises:
            InputError: the roles are not adapters of one base.
        """
        args, networks = self.args, self.actor_critic
        if not isinstance(networks, SharedActorCritic):
            raise InputError("The memory of a model for each role is not known, only that of a SharedBase.")
        return ppo_memory(
            shape, layout, rows, max(self.prompt_lengths), args.response_length,
            min(args.local_rollout_forward_batch_size, args.local_rollout_size),
            rewards=len(set(networks.base.adapters) - {"policy", "sft", "value"}), average=self.ema is not None,
            pass_tokens=pass_limits(networks.language_model, args.device)[0],
            text=self.pretraining.length if self.pretraining is not None else 0,
        )  # fmt: skip

    # ---- The stream of micro-steps ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Numbers of micro-steps; a function of the number decides which episodes a micro-step trains on.

        One pass over it is the whole run: the end of the data never cuts an accumulation short, and resuming only skips
        numbers. It is the same on all processes, so Accelerate does not prepare it.
        """
        micro_steps: Any = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps, batch_size=1, collate_fn=lambda numbers: {"micro_step": numbers[0]})

    def _prepare_inputs(self, inputs: dict[str, int]) -> MicroBatch:
        """Turns the number of a micro-step into its micro-batch; makes a rollout when one begins."""
        index, micro_step = divmod(inputs["micro_step"], self.args.micro_steps_per_rollout)
        if self.rollout is None or self.rollout.index != index:
            self.rollout = None  # frees its memory before the next one is made
            self.rollout = self.make_rollout(index)
        return self.rollout.at(micro_step, self.args.seed)

    # ---- Rollout ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def make_rollout(self, index: int) -> Rollout:
        """Samples, scores and prepares rollout number `index`; returns this process's episodes, ready to train on."""
        args = self.args
        self.meter.rollout_started()

        # 1. Prompts and random numbers of this process's episodes: functions of (seed, rollout, episode)
        mine = slice(args.local_rollout_size * args.process_index, args.local_rollout_size * (args.process_index + 1))
        rows = prompt_rows(index, args.rollout_size, len(self.train_dataset), args.seed)[mine]
        columns = self.train_dataset[rows]
        uniforms = sampling_uniforms(args.rollout_size, args.response_length, args.seed, index)[mine]

        # 2. Responses of the policy
        responses = self.sample(columns["input_ids"], uniforms, f"rollout {index}: sampling")
        self.meter.rollout_sampled()

        # 3. Minibatches of micro-batches: log-probabilities, values and scores
        lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
        minibatches = split(lengths, args.num_mini_batches, args.per_device_train_batch_size)
        table = self.text_scores(columns, responses)
        rollout = Rollout(index, [self.score(minibatch, columns, responses, table) for minibatch in minibatches])
        batches = list(rollout.micro_batches())

        # 4. Score options: scale, clip, missing EOS
        if args.scale_scores:
            self.score_scale.update(torch.cat([batch.scores for batch in batches]), self.sum_over_processes)
        self.apply_score_options(batches)

        # 5. Token rewards with the KL penalty, GAE, whitening
        add_advantages(batches, args, self.kl.coef, self.sum_over_processes)

        # 6. Metrics, and beta of the next rollout
        means = episode_means(batches, self.kl.coef, self.sum_over_processes)
        means |= score_interval(batches, columns["input_ids"], self.gather)
        means |= self.collapse.update(means, self.state.global_step) | {"objective/kl_coef": self.kl.coef}
        if index >= args.value_warmup_rollouts:  # the policy does not move before
            self.kl.update(means["objective/kl"], args.rollout_size)
        values, returns = (response_tokens(batches, name) for name in ("values", "returns"))
        means["val/explained_variance"] = explained_variance(values, returns, self.sum_over_processes).item()
        means |= function_means(table, [name_of(f) for f in self.reward_funcs], args.device, self.sum_over_processes)
        means["val/num_eos_tokens"] = round(means["rollout/eos_rate"] * args.rollout_size)
        if self.optimizer is not None:
            means["lr"] = self.optimizer.param_groups[0]["lr"]
        self.meter.rollout_scored(means, args.rollout_size)
        rollouts_between_samples = max(
            1, args.max_steps // args.steps_per_rollout // max(1, args.num_sample_generations)
        )
        if args.num_sample_generations and index % rollouts_between_samples == 0:
            self.append_samples("train", columns, responses, batches)
        return rollout

    def sample(self, prompts: list[list[int]], uniforms: Tensor, progress: str) -> list[list[int]]:
        """Responses of the policy to this process's prompts."""
        args, show = self.args, self.is_world_process_zero() and not self.args.disable_tqdm
        sampler = partial(
            sample,
            prompts=prompts,
            uniforms=uniforms,
            temperature=args.temperature,
            stop_ids=self.stop_ids,
            pad_id=PADDING_ID,
            batch_size=args.local_rollout_forward_batch_size,
            progress=progress if show else None,
        )
        with self.accelerator.autocast():  # the policy samples in the precision in which it is trained
            return self.wrapped_model()("sample", sampler)

    def score(
        self, minibatch: list[list[int]], columns: dict[str, list], responses: list[list[int]], table: ScoreTable | None
    ) -> list[MicroBatch]:
        """Micro-batches of one minibatch, with log-probabilities, values and scores; `table` is of `text_scores`.

        The update passes the same tensors through the same forward, so with equal weights the ratio is exactly 1.
        """
        args, model, device = self.args, self.wrapped_model(), self.accelerator.device
        batches = []
        for rows in minibatch:
            batch = micro_batch(rows, columns["input_ids"], responses, self.stop_ids, PADDING_ID, device)
            inputs = {**batch.inputs(), "temperature": args.temperature}

            # 1. Reference, and the reward model where it reads the sampled ids
            if self.actor_critic.has_reward:
                batch.ref_logprobs, batch.scores = model("reference_and_reward", **inputs)
            else:
                batch.ref_logprobs = model("reference_logprobs", **inputs)
                batch.scores = torch.zeros(len(rows), device=device)

            # 2. Reward functions, and reward models that read text
            if table is not None:
                batch.scores += table.sum(self.reward_weights, rows).to(device)

            # 3. Policy and value before the update
            batch.logprobs, batch.values = model("policy_and_value", **inputs)

            for name in ("logprobs", "ref_logprobs", "values", "scores"):
                if not torch.isfinite(getattr(batch, name)).all():
                    self.stop_non_finite(f"{name} of a rollout are not finite", [batch])
            batches.append(batch)
        tokens = self.sum_over_processes(torch.stack([batch.response_mask.sum() for batch in batches]).sum())
        for batch in batches:
            batch.tokens = tokens
        return batches

    def text_scores(self, columns: dict[str, list], responses: list[list[int]]) -> ScoreTable | None:
        """Scores of the reward functions and of the reward models that read text; None without them."""
        self.extra = [{} for _ in responses]  # of `log_extra`
        if not self.reward_funcs:
            return None
        given = {"trainer_state": self.state, "log_metric": self.meter.add_value, "extra": self.extra}
        with self.accelerator.autocast():
            return score_texts(self.reward_funcs, self.processing_class, self.stop_ids, columns, responses, **given)

    def apply_score_options(self, batches: list[MicroBatch]) -> None:
        """Fills in `shaped_scores`: scaled, clipped, with the terms for a missing EOS."""
        args = self.args
        options = (self.score_scale.std, args.score_clip, args.missing_eos_penalty, args.missing_eos_reward)
        for batch in batches:
            batch.shaped_scores = shape_scores(batch.scores, batch.ended, *options)

    # ---- Update -----------------------------------------------------------------------------------------------------

    def training_step(self, model, inputs: dict[str, int], num_items_in_batch=None) -> Tensor:
        """Adds the gradients of a micro-step: first of its pretraining text, then of its episodes."""
        index = inputs["micro_step"] // self.args.micro_steps_per_rollout
        if self.target_kl.stopped == index:
            return torch.zeros((), device=self.args.device)
        ptx = 0.0
        if self.pretraining is not None and index >= self.args.value_warmup_rollouts:
            ptx = add_ptx_gradient(self, model)
        return super().training_step(model, inputs, num_items_in_batch) + ptx

    def compute_loss(self, model, inputs: MicroBatch, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """This micro-batch's share of the minibatch's loss, which is a mean over response tokens."""
        args, batch, rollout = self.args, inputs, self.rollout
        assert rollout is not None, "_prepare_inputs makes it"
        logprobs, values = model("policy_and_value", temperature=args.temperature, **batch.inputs())
        policy_losses, ratio = policy_loss(logprobs, batch.logprobs, batch.advantages, args.cliprange)
        value_losses = value_loss(values, batch.values, batch.returns, args.cliprange_value)

        share = batch.response_mask / batch.tokens  # sums to 1 over the micro-batches and processes of the minibatch
        policy, value = (policy_losses * share).sum(), (value_losses * share).sum()
        policy_coef = 0.0 if rollout.index < args.value_warmup_rollouts else 1.0
        loss = policy_coef * policy + args.vf_coef * value
        if not torch.isfinite(loss):
            self.stop_non_finite(f"the loss is {loss} (policy {policy}, value {value})", [batch])
        shares = {"loss/policy": policy, "loss/value": value}
        shares |= update_shares(batch, logprobs, values, ratio, share, args.cliprange, args.cliprange_value)
        self.meter.loss(shares, steps=1 / self.current_gradient_accumulation_steps)
        if args.target_kl is not None:
            self.minibatch_kl = self.minibatch_kl + shares["policy/approxkl"].detach()
        # The Trainer will divide by the number of micro-batches, and DDP will average over the processes.
        return loss * self.current_gradient_accumulation_steps * args.world_size

    def before_optimizer_step(self) -> None:
        """Checks the gradient of the minibatch; target KL drops it if the policy has moved too far."""
        args, rollout = self.args, self.rollout
        assert rollout is not None, "_prepare_inputs makes it"
        # With fp16 the loss scaler skips a step that is not finite, and training goes on.
        if not args.fp16 and not gradients_finite(self.actor_critic.parameters()):
            first = self.state.global_step * args.gradient_accumulation_steps
            micro_steps = range(first, first + args.gradient_accumulation_steps)
            minibatch = [rollout.at(m % args.micro_steps_per_rollout, args.seed) for m in micro_steps]
            self.stop_non_finite("the gradient is not finite", minibatch)
        if args.target_kl is not None:
            kl, self.minibatch_kl = (
                self.sum_over_processes(torch.as_tensor(self.minibatch_kl, device=args.device)).item(),
                0.0,
            )
            self.step_taken = self.target_kl.step(rollout.index, kl)
            if not self.step_taken:
                self.optimizer.zero_grad()  # the optimizer passes over parameters without a gradient

    def after_optimizer_step(self) -> None:
        """Moves the policy's average."""
        if self.ema and self.step_taken:
            self.ema.update()

    def stop_non_finite(self, what: str, batches: list[MicroBatch]) -> None:
        """Ends the run and leaves the batches in progress on disk."""
        index = self.rollout.index if self.rollout else self.state.global_step // self.args.steps_per_rollout
        stop_non_finite(what, Rollout(index, [batches]), self.args, self.state.global_step)

    # ---- Optimizer --------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """One parameter group each for policy and value, split by weight decay."""
        if self.optimizer is None:
            model = self.actor_critic
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)  # pyright: ignore[reportArgumentType]
            decayed = set(self.get_decay_parameter_names(model))
            self.optimizer = optimizer_class(parameter_groups(model, self.args, decayed), **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Warm-up over rollouts, times the Trainer's schedule."""
        if self.lr_scheduler is None:
            optimizer = self.create_optimizer() if optimizer is None else optimizer
            self.lr_scheduler = rollout_schedule(optimizer, self.args, num_training_steps)
            self._created_lr_scheduler = True  # as in Trainer.create_scheduler: a second train() makes a new one
        return self.lr_scheduler

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Answers held-out prompts, always with the same random numbers, and logs means over them.

        The averaged policy answers, if there is one, because that is the saved policy.
        """
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("evaluate() needs an eval_dataset of prompts; pass it here or to PPOTrainer.")
        if isinstance(dataset, dict):
            results = [self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{name}") for name, d in dataset.items()]
            return {name: value for result in results for name, value in result.items()}
        dataset = self._encode(dataset, metric_key_prefix, args)

        # Every process takes the same number of prompts, so that all make the same number of passes: the last ones may
        # come a second time, and are not counted.
        total = len(dataset)
        rows = list(range(args.process_index, total + (-total) % args.world_size, args.world_size))
        columns = dataset[[i % total for i in rows]]
        uniforms = sampling_uniforms(total, args.response_length, args.seed, "eval")[[i % total for i in rows]]
        with averaged(self.actor_critic, self.ema):
            responses = self.sample(columns["input_ids"], uniforms, "evaluation: sampling")
            lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
            table = self.text_scores(columns, responses)
            batches = self.score(split(lengths, 1, args.per_device_eval_batch_size)[0], columns, responses, table)
        self.apply_score_options(batches)
        counted = sum(i < total for i in rows)
        means = episode_means(batches, self.kl.coef, self.sum_over_processes, counted)
        means |= score_interval(batches, columns["input_ids"], self.gather, counted)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.append_samples(metric_key_prefix, columns, responses, batches)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    # ---- Logs and processes -----------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= with_trl_names(self.meter.drain(self.sum_over_processes))
            logs["episode"] = self.state.global_step * self.args.rollout_size // self.args.steps_per_rollout
        super().log(logs, start_time)

    def append_samples(self, source: str, columns: dict[str, list], responses: list[list[int]], batches) -> None:
        """Appends the first episodes to samples.jsonl."""
        if self.is_world_process_zero():
            labels = {"step": self.state.global_step, "source": source}
            samples = (columns["input_ids"], responses, batches)
            append_samples(self.samples_path, self.processing_class, *samples, extra=self.extra, **labels)

    @property
    def samples_path(self) -> Path:
        return Path(self.args.output_dir) / "samples.jsonl"

    def sum_over_processes(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return self.accelerator.reduce(tensor, reduction="sum")  # pyright: ignore[reportReturnType]

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, in their order."""
        return self.accelerator.gather(tensor)  # pyright: ignore[reportReturnType]

    def wrapped_model(self) -> nn.Module:
        """The model as the training loop has it; before training, prepared for mixed precision alone."""
        if self.model_wrapped is self.model and not self.accelerator._models:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model_wrapped

    def _keep_outputs_precise(self) -> None:
        """Keeps FSDP from rounding log-probabilities and values, which leave the model in float32, to bf16."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)

    def _encode(self, dataset: Dataset, name: str, args: PPOConfig) -> Dataset:
        ours = getattr(self, "eval_dataset", None)
        if any(dataset is encoded for encoded in (ours.values() if isinstance(ours, dict) else [ours])):
            return dataset
        tokenizer, longest = self.processing_class, self.max_prompt_length
        return encode_prompts(dataset, tokenizer, longest, args.dataset_num_proc, name, self.collate_row)
