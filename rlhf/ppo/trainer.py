"""PPO for language models (arXiv 2203.02155, section 3.5 and appendix C.4), as a transformers.Trainer.

One rollout, top to bottom: `make_rollout` samples responses, scores them and turns the scores into advantages;
`compute_loss` is the loss of one micro-batch. Accumulation, clipping of gradients, mixed precision, checkpoints,
callbacks and distribution are the Trainer's.
"""

import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, get_scheduler
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl.trainer.base_trainer import _BaseTrainer

from rlhf.adapters import SharedBase
from rlhf.errors import InputError
from rlhf.ppo.actor_critic import ActorCritic, SeparateActorCritic, SharedActorCritic, make_trainable
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import EMA
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.returns import explained_variance, gae, moments, token_rewards, whiten
from rlhf.ppo.rewards import RewardFunction, function_scores, shape_scores
from rlhf.ppo.rollout import MicroBatch, Rollout, encode_prompts, micro_batch, prompt_rows, sample, sampling_noise, split

STATE_NAME = "ppo_state.safetensors"  # in checkpoints: trained parameters and their average, by name
SAMPLES_PER_TABLE = 4


class PPOTrainer(_BaseTrainer):
    """Trains a policy against a reward with PPO. Names and order of arguments are those of TRL's PPOTrainer.

    Args:
        args: the configuration; never changed.
        processing_class: tokenizer with a pad token.
        model: the policy, or a `SharedBase` with the adapters policy, sft and value, and reward unless the reward comes
            from elsewhere; the next three arguments are then left out.
        ref_model: reference of the KL penalty. None: the policy without its adapter if it has one, else a copy.
        reward_model: sequence classifier with one label and the policy's tokenizer; None if `reward_funcs` are given.
        train_dataset: prompts: `prompt` (text or messages) or `input_ids`; further columns go to the reward functions.
        value_model: sequence classifier that is trained; None: a copy of the reward model.
        data_collator: accepted for TRL's sake; prompts are padded here, with masks that are never guessed from ids.
        eval_dataset: held-out prompts, or a dict of them, for `evaluate` and `eval_strategy`.
        optimizers: optimizer and scheduler to use instead of AdamW with a learning rate for each of policy and value.
        callbacks: as in transformers.Trainer.
        peft_config: puts an adapter on `model`; the reference is then `model` without it.
        reward_funcs: Python functions whose weighted sum is added to the reward model's score; see
            `rlhf.ppo.rewards.function_scores`.

    Raises:
        InputError: arguments or data that cannot be used, each with the remedy.
    """

    _tag_names = ("trl", "ppo", "rlhf")
    _name = "PPO"
    _paper = {"title": "Training language models to follow instructions with human feedback", "id": "2203.02155"}  # noqa: RUF012

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
        reward_funcs: RewardFunction | list[RewardFunction] | None = None,
    ):
        if train_dataset is None:
            raise InputError("PPOTrainer needs a train_dataset of prompts.")
        if processing_class.pad_token_id is None:
            raise InputError("the tokenizer has no pad token; set one that is not its EOS.")
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
        if args.reward_weights is not None and len(args.reward_weights) != len(self.reward_funcs):
            raise InputError(f"{len(args.reward_weights)} reward_weights for {len(self.reward_funcs)} reward functions.")

        actor_critic = build_actor_critic(model, ref_model, reward_model, value_model, peft_config)
        if not actor_critic.has_reward and not self.reward_funcs:
            raise InputError("there is no reward: give a reward_model, a `reward` adapter or reward_funcs.")
        for role in ("policy", "value"):
            if not actor_critic.parameters_of(role):
                raise InputError(f"the {role} has no trainable parameters; load its adapter with is_trainable=True.")

        self.stop_ids = stop_tokens(actor_critic.language_model, processing_class, args.stop_token_id)
        self.max_prompt_length = longest_prompt(args, actor_critic.config)

        def encode(dataset, name):
            return encode_prompts(dataset, processing_class, self.max_prompt_length, args.dataset_num_proc, name)

        train_dataset = encode(train_dataset, "train")
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: encode(dataset, name) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = encode(eval_dataset, "eval")

        args = copy.copy(args)  # the caller's stays as it is
        args.max_steps = args.total_steps(len(train_dataset))
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every trainable parameter takes part in every step
        super().__init__(
            model=actor_critic,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # the Trainer divides the loss by the accumulation; see compute_loss
        self.rollout: Rollout | None = None
        self.ema = EMA(actor_critic.parameters_of("policy"), args.ema_decay) if args.ema_decay else None
        self._rollout_metrics: dict[str, list[float]] = defaultdict(list)
        self._loss_metrics: dict[str, Tensor] = {}
        self._loss_calls = 0
        self._rollout_seconds = self._rollout_tokens = self._rollout_done = 0.0
        self.add_callback(_RolloutCallback(self))

    @property
    def actor_critic(self) -> ActorCritic:
        return self.accelerator.unwrap_model(self.model)

    # ---- The stream of micro-steps

    def get_train_dataloader(self) -> DataLoader:
        """Hands out the numbers of the micro-steps; which episodes they train on is a function of the number.

        One pass over it is the whole run, so no end of the data can cut an accumulation short, and skipping batches is
        all it takes to resume. It is the same on all processes, hence not prepared by Accelerate.
        """
        micro_steps = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps, batch_size=1, collate_fn=lambda numbers: {"micro_step": numbers[0]})

    def _prepare_inputs(self, inputs: dict[str, Any]) -> MicroBatch:
        index, micro_step = divmod(inputs["micro_step"], self.args.micro_steps_per_rollout)
        if self.rollout is None or self.rollout.index != index:
            self.rollout = None  # its memory is free before the next one is made
            self.rollout = self.make_rollout(index)
        return self.rollout.at(micro_step, self.args.seed)

    # ---- Rollout

    @torch.no_grad()
    def make_rollout(self, index: int) -> Rollout:
        """Rollout number `index`, ready to train on: this process's episodes with log-probabilities and advantages."""
        args, started = self.args, time.perf_counter()
        mine = slice(args.local_rollout_size * args.process_index, args.local_rollout_size * (args.process_index + 1))
        rows = prompt_rows(index, args.rollout_size, len(self.train_dataset), args.seed)[mine]
        noise = sampling_noise(args.rollout_size, args.response_length, args.seed, index)[mine]
        columns = self.train_dataset[rows]
        responses, ended = self.sample(columns["input_ids"], noise, f"rollout {index}: sampling")
        sampled = time.perf_counter()

        lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
        rollout = Rollout(index)
        for minibatch in split(lengths, args.num_mini_batches, args.per_device_train_batch_size):
            rollout.minibatches.append(self.score(minibatch, columns, responses))
        self.add_advantages(rollout, ended)

        self._rollout_done = time.perf_counter()
        self._rollout_metrics["time/rollout"].append(sampled - started)
        self._rollout_metrics["time/score"].append(self._rollout_done - sampled)
        self._rollout_seconds = self._rollout_done - started
        every = max(1, args.max_steps // args.steps_per_rollout // max(1, args.num_sample_generations))
        if args.num_sample_generations and index % every == 0:
            self.write_samples("train", columns, responses, ended, rollout.micro_batches())
        return rollout

    def sample(self, prompts: list[list[int]], noise: Tensor, progress: str) -> tuple[list[list[int]], list[bool]]:
        """Responses of the policy to this process's prompts, and whether each ended by itself."""
        show = self.is_world_process_zero() and not self.args.disable_tqdm
        with self.accelerator.autocast():  # the policy that samples is the one that is trained, in precision too
            return sample(
                self.actor_critic,
                prompts,
                noise,
                stop_ids=self.stop_ids,
                pad_id=self.processing_class.pad_token_id,
                temperature=self.args.temperature,
                batch_size=self.args.local_rollout_forward_batch_size,
                device=self.accelerator.device,
                progress=progress if show else None,
            )

    def score(self, minibatch: list[list[int]], columns: dict[str, list], responses: list[list[int]]) -> list[MicroBatch]:
        """Micro-batches of one minibatch with log-probabilities, values and scores.

        The update passes the very same tensors through the same forward. With equal weights the ratio is therefore 1
        to the last bit.
        """
        model = self.wrapped_model()
        batches = []
        for rows in minibatch:
            batch = micro_batch(
                rows, columns["input_ids"], responses, self.processing_class.pad_token_id, self.accelerator.device
            )
            batch.logprobs, batch.values = model(
                task="policy_and_value", temperature=self.args.temperature, **batch.inputs()
            )
            batch.ref_logprobs = model(task="reference", temperature=self.args.temperature, **batch.inputs())
            batch.scores = torch.zeros_like(batch.values[:, 0])
            if self.actor_critic.has_reward:
                batch.scores = model(task="reward", **batch.inputs())
            if self.reward_funcs:
                batch.scores = batch.scores + self.function_scores(rows, columns, responses).to(batch.scores)
            if not all(torch.isfinite(x).all() for x in (batch.logprobs, batch.ref_logprobs, batch.values, batch.scores)):
                raise FloatingPointError(
                    f"a log-probability, value or score is not finite (episodes {rows} of the rollout on process "
                    f"{self.args.process_index}); the last checkpoint is the last good one."
                )
            batches.append(batch)
        tokens = self.sum(sum(batch.response_mask.sum() for batch in batches))
        for batch in batches:
            batch.tokens = tokens
        return batches

    def function_scores(self, rows: list[int], columns: dict[str, list], responses: list[list[int]]) -> Tensor:
        chosen = {name: [column[i] for i in rows] for name, column in columns.items()}
        prompts = chosen.pop("prompt", None) or self.processing_class.batch_decode(chosen["input_ids"])
        completions = self.processing_class.batch_decode([responses[i] for i in rows], skip_special_tokens=True)
        del chosen["input_ids"]
        return function_scores(self.reward_funcs, self.args.reward_weights, prompts, completions, **chosen)

    def add_advantages(self, rollout: Rollout, ended: list[bool]) -> None:
        """Rewards, GAE and whitening; the moments are those of the whole rollout on all processes."""
        args, batches = self.args, list(rollout.micro_batches())
        rewards = []
        for batch in batches:
            scores = self.shaped_scores(batch, ended)
            rewards.append(token_rewards(scores, batch.logprobs, batch.ref_logprobs, batch.response_mask, args.kl_coef))
        if args.whiten_rewards:
            mean, variance = moments(response_tokens(batches, rewards), self.sum)
            rewards = [
                whiten(r, b.response_mask, mean, variance, shift_mean=False) for r, b in zip(rewards, batches, strict=True)
            ]
        for batch, reward in zip(batches, rewards, strict=True):
            batch.advantages, batch.returns = gae(reward, batch.values, batch.response_mask, args.gamma, args.lam)

        self._log_rollout(batches, ended)
        if args.whiten_advantages:
            mean, variance = moments(response_tokens(batches, [b.advantages for b in batches]), self.sum)
            for batch in batches:
                batch.advantages = whiten(batch.advantages, batch.response_mask, mean, variance)

    def shaped_scores(self, batch: MicroBatch, ended: list[bool]) -> Tensor:
        args = self.args
        stopped = torch.tensor([ended[i] for i in batch.rows], device=batch.scores.device)
        return shape_scores(
            batch.scores, stopped, args.score_clip, args.missing_eos_penalty, args.missing_eos_reward
        )

    # ---- Update

    def compute_loss(self, model, inputs: MicroBatch, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """This micro-batch's share of the minibatch's mean loss per response token."""
        args, batch = self.args, inputs
        logprobs, values = model(task="policy_and_value", temperature=args.temperature, **batch.inputs())
        policy_losses, ratio = policy_loss(logprobs, batch.logprobs, batch.advantages, args.cliprange)
        value_losses = value_loss(values, batch.values, batch.returns, args.cliprange_value)

        share = batch.response_mask / batch.tokens  # sums to 1 over the micro-batches and processes of the minibatch
        policy, value = (policy_losses * share).sum(), (value_losses * share).sum()
        warming_up = self.rollout.index < args.value_warmup_rollouts
        loss = args.vf_coef * value + (0.0 if warming_up else 1.0) * policy
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step} (policy {policy.item()}, value "
                f"{value.item()}); the last checkpoint is the last good one."
            )
        with torch.no_grad():
            self._log_loss(
                {
                    "loss/policy": policy,
                    "loss/value": value,
                    "policy/approxkl": (0.5 * (logprobs - batch.logprobs).square() * share).sum(),
                    "policy/clipfrac": (((ratio - 1).abs() > args.cliprange) * share).sum(),
                    "policy/ratio": (ratio * share).sum(),
                }
            )
        # The Trainer will divide by the number of micro-batches, and DDP will average over the processes.
        return loss * self.current_gradient_accumulation_steps * args.world_size

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A learning rate for the policy and one for the value model."""
        if self.optimizer is None:
            args = self.args
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(args, self.actor_critic)
            decayed = set(self.get_decay_parameter_names(self.actor_critic))
            value_rate = args.learning_rate if args.value_learning_rate is None else args.value_learning_rate
            groups = []
            for role, rate in (("policy", args.learning_rate), ("value", value_rate)):
                named = self.actor_critic.parameters_of(role)
                for decay in (args.weight_decay, 0.0) if args.weight_decay else (0.0,):
                    wanted = [p for n, p in named if not args.weight_decay or (n in decayed) == (decay > 0)]
                    groups.append({"params": wanted, "lr": rate, "weight_decay": decay, "role": role})
            self.optimizer = optimizer_class([group for group in groups if group["params"]], **kwargs)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        """Warm-up from 1/10 of the peak, the policy's starting when the policy starts, times `lr_scheduler_type`."""
        if self.lr_scheduler is None:
            args = self.args
            shape = get_scheduler(
                args.lr_scheduler_type,
                torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
                num_warmup_steps=args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )
            if not isinstance(shape, LambdaLR):
                raise InputError(f"lr_scheduler_type {args.lr_scheduler_type} has no formula; use e.g. constant, linear.")

            def factor(start: int):
                warmup = args.warmup_rollouts * args.steps_per_rollout

                def at(step: int) -> float:
                    progress = (step - start) / warmup if warmup else 1.0
                    return 0.0 if step < start else min(1.0, 0.1 + 0.9 * progress) * shape.lr_lambdas[0](step)

                return at

            optimizer = self.optimizer if optimizer is None else optimizer
            starts = {"policy": args.value_warmup_rollouts * args.steps_per_rollout, "value": 0}
            factors = [factor(starts[group.get("role", "policy")]) for group in optimizer.param_groups]
            self.lr_scheduler = LambdaLR(optimizer, factors)
            self._created_lr_scheduler = True  # as in Trainer.create_scheduler: a second train() makes a new one
        return self.lr_scheduler

    # ---- Metrics

    def _log_rollout(self, batches: list[MicroBatch], ended: list[bool]) -> None:
        means = self.episode_means(batches, ended)
        values = response_tokens(batches, [b.values for b in batches])
        returns = response_tokens(batches, [b.returns for b in batches])
        means["val/explained_variance"] = explained_variance(values, returns, self.sum).item()
        self._rollout_tokens = means["rollout/length"] * self.args.rollout_size
        for name, value in means.items():
            self._rollout_metrics[name].append(value)

    def episode_means(self, batches: list[MicroBatch], ended: list[bool], rows: int | None = None) -> dict[str, float]:
        """Means over the episodes of all processes.

        kl, entropy and non_score_reward are sums over a response; score is as the reward gave it, before clipping and
        the missing-EOS terms, which rlhf_reward has. Only this process's first `rows` episodes count, if given.
        """
        totals: dict[str, Any] = defaultdict(float)
        for batch in batches:
            counts = torch.tensor([rows is None or i < rows for i in batch.rows], device=batch.scores.device).double()
            kl = (batch.logprobs - batch.ref_logprobs).sum(1)
            per_episode = {
                "objective/kl": kl,
                "objective/entropy": -batch.logprobs.sum(1),
                "objective/score": batch.scores,
                "objective/non_score_reward": -self.args.kl_coef * kl,
                "objective/rlhf_reward": self.shaped_scores(batch, ended) - self.args.kl_coef * kl,
                "rollout/length": batch.response_mask.sum(1),
                "rollout/eos_rate": torch.tensor([ended[i] for i in batch.rows], device=counts.device),
                "episodes": torch.ones_like(counts),
            }
            for name, values in per_episode.items():
                totals[name] = totals[name] + (values.double() * counts).sum()
        names = list(totals)
        sums = dict(zip(names, self.sum(torch.stack([totals[n] for n in names])).tolist(), strict=True))
        episodes = sums.pop("episodes")
        return {name: total / episodes for name, total in sums.items()}

    def _log_loss(self, shares: dict[str, Tensor]) -> None:
        for name, share in shares.items():
            self._loss_metrics[name] = self._loss_metrics.get(name, 0.0) + share
        self._loss_calls += 1

    def finish_rollout(self) -> None:
        """After the last optimizer step on a rollout."""
        update = time.perf_counter() - self._rollout_done
        seconds = self._rollout_seconds + update
        self._rollout_metrics["time/update"].append(update)
        self._rollout_metrics["throughput/episodes_per_s"].append(self.args.rollout_size / seconds)
        self._rollout_metrics["throughput/tokens_per_s"].append(self._rollout_tokens / seconds)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the means since the last log to the Trainer's training logs."""
        if "loss" in logs and self._loss_calls:
            steps = self._loss_calls / self.args.gradient_accumulation_steps
            sums = self.sum(torch.stack(list(self._loss_metrics.values())))
            logs |= {name: total / steps for name, total in zip(self._loss_metrics, sums.tolist(), strict=True)}
            logs |= {name: sum(values) / len(values) for name, values in self._rollout_metrics.items()}
            logs["episode"] = self.state.global_step * self.args.rollout_size // self.args.steps_per_rollout
            self._loss_metrics, self._loss_calls = {}, 0
            self._rollout_metrics.clear()
        super().log(logs, start_time)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes."""
        return self.accelerator.reduce(tensor, reduction="sum")

    def write_samples(self, split_name, columns, responses, ended, batches) -> None:
        """Appends the first few episodes of this process, if it is the first, to `samples.jsonl`."""
        if not self.is_world_process_zero():
            return
        scores, kls = {}, {}
        for batch in batches:
            scores |= zip(batch.rows, batch.scores.tolist(), strict=True)
            kls |= zip(batch.rows, (batch.logprobs - batch.ref_logprobs).sum(1).tolist(), strict=True)
        with (Path(self.args.output_dir) / "samples.jsonl").open("a", encoding="utf-8") as file:
            for i in range(min(SAMPLES_PER_TABLE, len(responses))):
                row = {
                    "step": self.state.global_step,
                    "split": split_name,
                    "prompt": self.processing_class.decode(columns["input_ids"][i]),
                    "response": self.processing_class.decode(responses[i], skip_special_tokens=True),
                    "score": round(scores[i], 4),
                    "kl": round(kls[i], 4),
                    "length": len(responses[i]),
                    "ended": ended[i],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    # ---- Evaluation

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Samples responses to held-out prompts, always with the same random numbers, and logs their means.

        It is the averaged policy that is evaluated if there is one, since that is what is saved.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("evaluate() needs an eval_dataset of prompts.")
        if isinstance(dataset, dict):
            results = [self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{name}") for name, d in dataset.items()]
            return {name: value for result in results for name, value in result.items()}
        dataset = encode_prompts(dataset, self.processing_class, self.max_prompt_length, name=metric_key_prefix)

        # Every process takes as many prompts, some twice at the end, so that all make the same number of forwards.
        args, total = self.args, len(dataset)
        rows = list(range(args.process_index, total + (-total) % args.world_size, args.world_size))
        noise = sampling_noise(total, args.response_length, args.seed, "eval")[[i % total for i in rows]]
        columns = dataset[[i % total for i in rows]]
        with self.ema.applied() if self.ema else nullcontext():
            responses, ended = self.sample(columns["input_ids"], noise, "evaluation: sampling")
            lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
            batches = self.score(split(lengths, 1, args.per_device_eval_batch_size)[0], columns, responses)
        means = self.episode_means(batches, ended, rows=sum(i < total for i in rows))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.write_samples(metric_key_prefix, columns, responses, ended, batches)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def wrapped_model(self) -> nn.Module:
        """The model as the training loop has it; outside of training, prepared for mixed precision alone."""
        if self.model_wrapped is self.model and not self.is_in_train and not self.accelerator._models:
            self.model_wrapped = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        return self.model_wrapped

    # ---- Saving

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the averaged policy and the tokenizer to the top, the last policy to raw/, the value model to value/.

        In a checkpoint also the state to go on from.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save:
            model = self.actor_critic
            with self.ema.applied() if self.ema else nullcontext():
                model.save("policy", folder)
            model.save("policy", folder / "raw")
            model.save("value", folder / "value")
            self.processing_class.save_pretrained(folder)
            if _internal_call:
                save_file(self.trained_state(), folder / STATE_NAME)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def trained_state(self) -> dict[str, Tensor]:
        """Everything that training changes, apart from the optimizer: parameters, and their average."""
        state = {f"model.{n}": p.detach() for n, p in self.trained_parameters()}
        if self.ema:
            state |= {f"ema.{name}": average for name, average in self.ema.shadow.items()}
        return {name: tensor.contiguous().cpu() for name, tensor in state.items()}

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return self.actor_critic.parameters_of("policy") + self.actor_critic.parameters_of("value")

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint) / STATE_NAME
        if not path.exists():
            raise InputError(f"{path} is missing; {resume_from_checkpoint} is not a checkpoint of this trainer.")
        state = load_file(path)
        for name, parameter in self.trained_parameters():
            parameter.copy_(state[f"model.{name}"])
        if self.ema:
            self.ema.load({name.removeprefix("ema."): t for name, t in state.items() if name.startswith("ema.")})

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


class _RolloutCallback(TrainerCallback):
    """What has to happen at the Trainer's own moments."""

    def __init__(self, trainer: PPOTrainer):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.ema:
            self.trainer.ema.update()

    def on_step_end(self, args, state, control, **kwargs):
        """Epochs are counted in passes over the prompts; to the Trainer the whole run is one."""
        if state.global_step % args.steps_per_rollout == 0:
            self.trainer.finish_rollout()
        per_step = args.rollout_size / args.steps_per_rollout / len(self.trainer.train_dataset)
        state.epoch = state.global_step * per_step
        if int(state.epoch) > int((state.global_step - 1) * per_step) and state.global_step < state.max_steps:
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
        return control


def build_actor_critic(model, ref_model, reward_model, value_model, peft_config) -> ActorCritic:
    if isinstance(model, SharedBase):
        if ref_model is not None or value_model is not None or peft_config is not None:
            raise InputError("a SharedBase carries reference and value itself; leave out ref_model, value_model, peft_config.")
        return SharedActorCritic(model, reward_model)
    if ref_model is model:
        raise InputError("ref_model is the policy itself, so the KL would stay 0; leave it out, or pass a copy.")
    if value_model is not None and value_model is reward_model:
        raise InputError("value_model is the reward model itself, so training would move the rewards; pass a copy.")
    if value_model is None:
        if reward_model is None:
            raise InputError("value_model is missing, and there is no reward_model to copy it from.")
        value_model = make_trainable(copy.deepcopy(reward_model))
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise InputError("the policy already has an adapter; leave out peft_config, or merge the adapter first.")
        model = get_peft_model(model, peft_config)
    if ref_model is None and not isinstance(model, PeftModel):
        ref_model = copy.deepcopy(model)
    return SeparateActorCritic(model, value_model, ref_model, reward_model)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stop_token_id: int | None) -> list[int]:
    """Every id that ends a response: the model's, the tokenizer's and the configuration's."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else model.config.eos_token_id
    ids = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, stop_token_id]
    stop_ids = sorted({i for i in ids if i is not None})
    if not stop_ids:
        raise InputError("neither model nor tokenizer has an EOS token; set stop_token_id.")
    return stop_ids


def longest_prompt(args: PPOConfig, config) -> int | None:
    """`max_prompt_length`, or what the model's context leaves beside the response."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return args.max_prompt_length
    if args.response_length + (args.max_prompt_length or 1) > context:
        raise InputError(
            f"max_prompt_length {args.max_prompt_length or 1} + response_length {args.response_length} exceed the "
            f"model's context of {context} tokens."
        )
    return args.max_prompt_length or context - args.response_length


def response_tokens(batches: list[MicroBatch], tensors: list[Tensor]) -> Tensor:
    """[N]: the entries of [B, T] tensors, one per micro-batch, at response tokens."""
    return torch.cat([tensor[batch.response_mask] for tensor, batch in zip(tensors, batches, strict=True)])
