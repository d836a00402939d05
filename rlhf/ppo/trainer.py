"""PPO for language models (arXiv 2203.02155, section 3.5 and appendix C.4), as a transformers.Trainer.

From top to bottom: `make_rollout` samples responses, scores them and turns the scores into advantages; `compute_loss`
is the loss of one micro-batch. Accumulation, gradient clipping, mixed precision, checkpoints, callbacks and
distribution are the Trainer's.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch
from accelerate import DistributedType
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from rlhf.data.pretraining import PretrainingStream
from rlhf.errors import InputError
from rlhf.generation.random_numbers import sampling_uniforms
from rlhf.generation.sampler import sample, stop_tokens
from rlhf.models.loading import context_length
from rlhf.models.shared_base import SharedBase
from rlhf.ppo.actor_critic import ActorCritic, build_actor_critic
from rlhf.ppo.advantages import add_advantages, explained_variance, response_tokens
from rlhf.ppo.base import PPOTrainerBase
from rlhf.ppo.config import PPOConfig
from rlhf.ppo.ema import averaged
from rlhf.ppo.losses import policy_loss, value_loss
from rlhf.ppo.metrics import episode_means
from rlhf.ppo.ptx import block_length, ptx_inputs, ptx_loss, resolve_ptx_coef
from rlhf.ppo.rewards import RewardFunction, TextRewardModel, function_scores, reads_text, shape_scores, text_rewards
from rlhf.ppo.rollout import (
    MicroBatch,
    Rollout,
    encode_prompts,
    longest_prompt,
    micro_batch,
    minibatch_order,
    prompt_rows,
    split,
)


class PPOTrainer(PPOTrainerBase):
    """Trains a policy against a reward with PPO. Names and order of the arguments are those of TRL's PPOTrainer.

    Args:
        args: the configuration; never changed.
        processing_class: tokenizer with a pad token.
        model: the policy, or a `SharedBase` with the adapters policy, sft (the reference), value and, unless the reward
            comes from elsewhere, reward.
        ref_model: reference of the KL penalty. None: the policy without its adapter if it has one, else a copy.
        reward_model: sequence classifier with one label; None if `reward_funcs` are given.
        train_dataset: prompts: `prompt` (text or messages) or `input_ids`; further columns go to the reward functions.
        value_model: sequence classifier that is trained; None: a copy of the reward model.
        data_collator: accepted for TRL's sake; prompts are padded here, with masks that are never guessed from ids.
        eval_dataset: held-out prompts, or a dict of them, for `evaluate` and `eval_strategy`.
        optimizers: optimizer and scheduler to use instead of AdamW with a learning rate for each of policy and value.
        callbacks: as in transformers.Trainer.
        peft_config: puts an adapter on `model`; the reference is then `model` without it.
        reward_funcs: Python functions and reward models whose weighted sum is added to the reward model's score; see
            `rlhf.ppo.rewards.function_scores`.
        pretrain_dataset: rows with `text`, or several such sources, in memory or streamed, for PPO-ptx (`ptx_coef`).
        reward_processing_class: tokenizer of the reward model if it has another than the policy; it then reads the
            decoded text instead of the sampled ids.
        reward_processing_classes: tokenizer of each of `reward_funcs` that is a model; None: the policy's.

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
        reward_funcs: RewardFunction | PreTrainedModel | Sequence[RewardFunction | PreTrainedModel] | None = None,
        pretrain_dataset: Dataset | IterableDataset | Sequence[Dataset | IterableDataset] | None = None,
        reward_processing_class: PreTrainedTokenizerBase | None = None,
        reward_processing_classes: Sequence[PreTrainedTokenizerBase | None] | None = None,
    ):
        if train_dataset is None:
            raise InputError("PPOTrainer needs a train_dataset of prompts.")
        if processing_class.pad_token_id is None:
            raise InputError("the tokenizer has no pad token; set one that is not its EOS.")
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs or [])
        self.reward_funcs, self.reward_weights = text_rewards(
            functions, args.reward_weights, reward_processing_classes, processing_class
        )
        from_text = reward_model is not None and reads_text(reward_processing_class, processing_class)
        if from_text:
            if value_model is None and not isinstance(model, SharedBase):
                raise InputError("value_model is missing; the reward model has another tokenizer and cannot be copied.")
            self.reward_funcs.append(TextRewardModel(reward_model, reward_processing_class))
            self.reward_weights.append(1.0)
            reward_model = None

        actor_critic = build_actor_critic(
            model, ref_model, reward_model, value_model, peft_config, args.model_adapter_name, args.ref_adapter_name
        )
        if from_text:
            actor_critic.has_reward = False  # not the adapter `reward` besides
        if not actor_critic.has_reward and not self.reward_funcs:
            raise InputError("there is no reward: give a reward_model, a `reward` adapter or reward_funcs.")
        for role in ("policy", "value"):
            if not actor_critic.parameters_of(role):
                raise InputError(f"the {role} has no trainable parameters; load its adapter with is_trainable=True.")

        self.processing_class = processing_class
        self.stop_ids = stop_tokens(actor_critic.language_model, processing_class, args.stop_token_id)
        self.max_prompt_length = longest_prompt(actor_critic.config, args.max_prompt_length, args.response_length)
        train_dataset = self._encode(train_dataset, "train", args)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._encode(dataset, name, args) for name, dataset in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._encode(eval_dataset, "eval", args)

        args = copy.copy(args)  # the caller's stays as it is
        args.max_steps = args.total_steps(len(train_dataset))
        args.ptx_coef = resolve_ptx_coef(args.ptx_coef, has_text=pretrain_dataset is not None)
        super().__init__(
            model=actor_critic,
            args=args,
            pretraining=self._pretraining_stream(pretrain_dataset, actor_critic, args),
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        for reward in self.reward_funcs:
            if isinstance(reward, TextRewardModel):
                reward.model.to(self.accelerator.device)

    # ---- The stream of micro-steps ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Hands out the numbers of the micro-steps; which episodes they train on is a function of the number.

        One pass over it is the whole run, so no end of the data can cut an accumulation short, and skipping batches is
        all it takes to resume. It is the same on all processes, hence not prepared by Accelerate.
        """
        micro_steps = range(self.args.max_steps * self.args.gradient_accumulation_steps)
        return DataLoader(micro_steps, batch_size=1, collate_fn=lambda numbers: {"micro_step": numbers[0]})

    def _prepare_inputs(self, inputs: dict[str, int]) -> MicroBatch:
        index, micro_step = divmod(inputs["micro_step"], self.args.micro_steps_per_rollout)
        if self.rollout is None or self.rollout.index != index:
            self.rollout = None  # its memory is free before the next one is made
            self.rollout = self.make_rollout(index)
        return self.rollout.at(micro_step, self.args.seed)

    # ---- Rollout ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def make_rollout(self, index: int) -> Rollout:
        """Rollout number `index`, ready to train on: this process's episodes with log-probabilities and advantages."""
        args = self.args
        self.meter.rollout_started()
        mine = slice(args.local_rollout_size * args.process_index, args.local_rollout_size * (args.process_index + 1))
        columns = self.train_dataset[prompt_rows(index, args.rollout_size, len(self.train_dataset), args.seed)[mine]]
        uniforms = sampling_uniforms(args.rollout_size, args.response_length, args.seed, index)[mine]
        responses = self.sample(columns["input_ids"], uniforms, f"rollout {index}: sampling")
        self.meter.rollout_sampled()

        lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
        minibatches = split(lengths, args.num_mini_batches, args.per_device_train_batch_size)
        rollout = Rollout(index, [[] for _ in minibatches])
        order = minibatch_order(args.num_mini_batches, args.seed, index, epoch=0)
        for m in reversed(order):
            rollout.minibatches[m] = self.score(minibatches[m], columns, responses, trained_next=m == order[0])
        batches = list(rollout.micro_batches())
        if args.scale_scores:
            self.score_scale.update(torch.cat([batch.scores for batch in batches]), self.sum)
        self.shape(batches)
        add_advantages(batches, args, self.kl.coef, self.sum)

        means = episode_means(batches, self.kl.coef, self.sum)
        means |= self.collapse.update(means, self.state.global_step) | {"objective/kl_coef": self.kl.coef}
        if index >= args.value_warmup_rollouts:  # before, the policy stands still
            self.kl.update(means["objective/kl"], args.rollout_size)
        values, returns = (response_tokens(batches, name) for name in ("values", "returns"))
        means["val/explained_variance"] = explained_variance(values, returns, self.sum).item()
        self.meter.rollout_scored(means, args.rollout_size)
        every = max(1, args.max_steps // args.steps_per_rollout // max(1, args.num_sample_generations))
        if args.num_sample_generations and index % every == 0:
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
            pad_id=self.processing_class.pad_token_id,
            batch_size=args.local_rollout_forward_batch_size,
            progress=progress if show else None,
        )
        # The policy that samples is the one that is trained, in precision too.
        with self.accelerator.autocast():
            return self.wrapped_model()(task="sample", sampler=sampler)

    def score(
        self, minibatch: list[list[int]], columns: dict[str, list], responses: list[list[int]], trained_next=False
    ) -> list[MicroBatch]:
        """The micro-batches of one minibatch, with log-probabilities, values and scores.

        The update passes the very same tensors through the same forward, so with equal weights the ratio is 1 to the
        last bit. Of the micro-batch that is trained on first, before any weight has changed, it takes this very pass.
        """
        args, model, device = self.args, self.wrapped_model(), self.accelerator.device
        batches: list[MicroBatch] = []
        for number, rows in reversed(list(enumerate(minibatch))):  # the pass whose graph is kept comes last
            batch = micro_batch(
                rows, columns["input_ids"], responses, self.stop_ids, self.processing_class.pad_token_id, device
            )
            inputs = batch.inputs()
            if self.actor_critic.has_reward:
                batch.ref_logprobs, batch.scores = model(
                    task="reference_and_reward", temperature=args.temperature, **inputs
                )
            else:
                batch.ref_logprobs = model(task="reference", temperature=args.temperature, **inputs)
                batch.scores = torch.zeros(len(rows), device=device)
            if self.reward_funcs:
                batch.scores += self.function_scores(batch, columns, responses).to(device)
            # DDP, FSDP and DeepSpeed want a backward for each forward.
            keep_graph = trained_next and number == 0 and self.accelerator.distributed_type == DistributedType.NO
            with torch.set_grad_enabled(keep_graph):
                found = model(task="policy_and_value", temperature=args.temperature, **inputs)
            batch.logprobs, batch.values = (tensor.detach() for tensor in found)
            if keep_graph:
                self.first_pass = found
            for name in ("logprobs", "ref_logprobs", "values", "scores"):
                if not torch.isfinite(getattr(batch, name)).all():
                    self.stop_non_finite(f"{name} of a rollout are not finite", [batch])
            batches.insert(0, batch)
        tokens = self.sum(sum(batch.response_mask.sum() for batch in batches))
        for batch in batches:
            batch.tokens = tokens
        return batches

    def shape(self, batches: list[MicroBatch]) -> None:
        args = self.args
        options = (self.score_scale.std, args.score_clip, args.missing_eos_penalty, args.missing_eos_reward)
        for batch in batches:
            batch.shaped_scores = shape_scores(batch.scores, batch.ended, *options)

    def function_scores(self, batch: MicroBatch, columns: dict[str, list], responses: list[list[int]]) -> Tensor:
        chosen = {name: [column[i] for i in batch.rows] for name, column in columns.items()}
        ids, decode = chosen.pop("input_ids"), self.processing_class.batch_decode
        prompts = chosen.pop("prompt", None) or decode(ids, skip_special_tokens=True)
        completions = decode([responses[i] for i in batch.rows], skip_special_tokens=True)
        with self.accelerator.autocast():
            return function_scores(
                self.reward_funcs, self.reward_weights, prompts, completions, batch.ended.tolist(), **chosen
            )

    # ---- Update -----------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs: MicroBatch, return_outputs=False, num_items_in_batch=None) -> Tensor:
        """This micro-batch's share of the minibatch's loss, a mean over response tokens."""
        args, batch = self.args, inputs
        if self.first_pass is None:
            logprobs, values = model(task="policy_and_value", temperature=args.temperature, **batch.inputs())
        else:
            (logprobs, values), self.first_pass = self.first_pass, None
        policy_losses, ratio = policy_loss(logprobs, batch.logprobs, batch.advantages, args.cliprange)
        value_losses = value_loss(values, batch.values, batch.returns, args.cliprange_value)

        share = batch.response_mask / batch.tokens  # sums to 1 over the micro-batches and processes of the minibatch
        policy, value = (policy_losses * share).sum(), (value_losses * share).sum()
        policy_coef = 0.0 if self.rollout.index < args.value_warmup_rollouts else 1.0
        loss = policy_coef * policy + args.vf_coef * value
        if not torch.isfinite(loss):
            self.stop_non_finite(f"the loss is {loss} (policy {policy}, value {value})", [batch])
        shares = {
            "loss/policy": policy,
            "loss/value": value,
            "policy/approxkl": (0.5 * (logprobs - batch.logprobs).square() * share).sum(),
            "policy/clipfrac": (((ratio - 1).abs() > args.cliprange) * share).sum(),
            "policy/ratio": (ratio * share).sum(),
        }
        self.meter.loss(shares, steps=1 / self.current_gradient_accumulation_steps)
        if args.target_kl is not None:
            self.minibatch_kl = self.minibatch_kl + shares["policy/approxkl"].detach()
        # The Trainer will divide by the number of micro-batches, and DDP will average over the processes.
        return loss * self.current_gradient_accumulation_steps * args.world_size

    def training_step(self, model, inputs: dict[str, int], num_items_in_batch=None) -> Tensor:
        """Adds the gradients of a micro-step: of its part of the pretraining text, then of its episodes."""
        rollout = inputs["micro_step"] // self.args.micro_steps_per_rollout
        if self.target_kl.stopped == rollout:
            return torch.zeros((), device=self.args.device)
        text = 0.0
        if self.pretraining is not None and rollout >= self.args.value_warmup_rollouts:
            text = self.add_ptx_gradient(model)
        return super().training_step(model, inputs, num_items_in_batch) + text

    def add_ptx_gradient(self, model) -> Tensor:
        """The gradient of gamma L_ptx on this process's part of a micro-step, as few blocks at a time as episodes.

        All processes read the same text and each takes its part, so that a minibatch has the same blocks on one process
        and on eight.
        """
        args = self.args
        model.train()  # DeepSpeed's returns nothing
        size = args.per_device_train_batch_size
        mine = slice(args.process_index, None, args.world_size)
        count = args.ptx_examples_per_episode * size * args.world_size
        blocks = list(islice(self.pretraining, count))[mine]
        tokens = count * self.current_gradient_accumulation_steps * (self.pretraining.length - 1)
        total = torch.zeros((), device=args.device)
        for part in (blocks[i : i + size] for i in range(0, len(blocks), size)):
            with self.gradients_stay_here(model):
                loss = ptx_loss(self.ptx_logprobs(model, part), tokens)
                # DDP will average over the processes.
                kwargs = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
                self.accelerator.backward(args.ptx_coef * args.world_size * loss, **kwargs)
            total += loss.detach()
        if not torch.isfinite(total):
            self.stop_non_finite_text(total, blocks)
        self.meter.loss({"loss/ptx": total}, steps=0.0)
        return args.ptx_coef * args.world_size * total

    def ptx_logprobs(self, model, blocks: list[list[int]]) -> Tensor:
        inputs = ptx_inputs(blocks, self.args.device)
        if not self.is_deepspeed_enabled:
            return model(task="policy", **inputs)
        # A weight that gets no gradient from the first backward of a step would keep that of the step before.
        logprobs, values = model(task="policy_and_value", **inputs)
        return logprobs + 0.0 * values

    # ---- Evaluation -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Answers held-out prompts, always with the same random numbers, and logs means over them.

        It is the averaged policy that answers, if there is one, since that is what is saved.
        """
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise InputError("evaluate() needs an eval_dataset of prompts.")
        if isinstance(dataset, dict):
            results = [self.evaluate(d, ignore_keys, f"{metric_key_prefix}_{name}") for name, d in dataset.items()]
            return {name: value for result in results for name, value in result.items()}
        dataset = self._encode(dataset, metric_key_prefix, args)

        # Every process takes as many prompts, at the end some a second time, so that all make as many forward passes.
        total = len(dataset)
        rows = list(range(args.process_index, total + (-total) % args.world_size, args.world_size))
        columns = dataset[[i % total for i in rows]]
        uniforms = sampling_uniforms(total, args.response_length, args.seed, "eval")[[i % total for i in rows]]
        with averaged(self.actor_critic, self.ema):
            responses = self.sample(columns["input_ids"], uniforms, "evaluation: sampling")
            lengths = [len(p) + len(r) for p, r in zip(columns["input_ids"], responses, strict=True)]
            batches = self.score(split(lengths, 1, args.per_device_eval_batch_size)[0], columns, responses)
        self.shape(batches)
        means = episode_means(batches, self.kl.coef, self.sum, counted=sum(i < total for i in rows))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.append_samples(metric_key_prefix, columns, responses, batches)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> None:
        """What TRL's scripts end with: evaluates, if there are prompts for it, which appends to samples.jsonl."""
        if self.eval_dataset is not None:
            self.evaluate()

    def _encode(self, dataset: Dataset, name: str, args: PPOConfig) -> Dataset:
        return encode_prompts(dataset, self.processing_class, self.max_prompt_length, args.dataset_num_proc, name)

    def _pretraining_stream(self, sources, actor_critic: ActorCritic, args: PPOConfig) -> PretrainingStream | None:
        if args.ptx_coef == 0:
            return None
        length = block_length(args, context_length(actor_critic.config))
        return PretrainingStream(sources, self.processing_class, length, weights=args.ptx_weights, seed=args.seed)
