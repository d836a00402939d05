"""TRL's RewardTrainer for K ranked completions per prompt (arXiv 2203.02155, section 3.5)."""

import logging
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput
from trl import RewardTrainer

from rlhf.data.encode import encode_prompt_and_completions
from rlhf.data.lengths import comparison_sizes, largest_batch
from rlhf.data.schemas import RowError, comparison
from rlhf.data.splits import conversation_id
from rlhf.errors import InputError
from rlhf.models.adapter_files import check_lora_config
from rlhf.models.compiled_layers import compile_if_asked
from rlhf.models.embeddings import set_pad_token_id
from rlhf.models.memory import Memory, reward_memory
from rlhf.models.micro_batches import fit_memory
from rlhf.models.model_sizes import Layout, Shape
from rlhf.models.packed_attention import enable_packing, noise_obstacle
from rlhf.models.peft_layers import unwrap_peft
from rlhf.models.precision import computing_dtype, float_trained_weights, trained_weights_kept
from rlhf.reward.accuracy import PADDING, Predictions, accuracy_report, flat_metrics
from rlhf.reward.collator import PER_PROMPT, KWiseCollator
from rlhf.reward.config import KWiseRewardConfig
from rlhf.reward.initialization import pool_at_last_token
from rlhf.reward.loss import center_penalty, kwise_loss, ranked_pairs
from rlhf.reward.pairs import as_pairs
from rlhf.reward.prefix import enable_shared_prompts, share_prompts
from rlhf.runs.checkpoints import AtomicCheckpoints
from rlhf.tensors import PADDING_ID

logger = logging.getLogger(__name__)

NO_LABELER_GROUP = -1
COLUMNS = ["completions_ids", "ranks", *PER_PROMPT]


class KWiseRewardTrainer(AtomicCheckpoints, RewardTrainer):
    """Trains a sequence classifier with one output on rankings.

    Rows are comparisons: `prompt`, `completions` (K of them, two or more), `ranks` (K integers, 0 is the best, equal is
    a tie) and optionally `labeler_group`; TRL's `prompt`, `chosen`, `rejected` is K = 2. Each completion passes the
    model once, and so does each prompt if the architecture allows it (`rlhf.reward.prefix`). All pairs of a prompt are
    one element of the batch. The loss is the mean over the prompts of an optimizer step, however they are divided over
    devices and micro-batches. Evaluation reports pairwise accuracy overall, by K and by labeler group. Takes the
    arguments of TRL's RewardTrainer, with `args` a `KWiseRewardConfig`.
    """

    stage = "reward"

    args: KWiseRewardConfig
    model: PreTrainedModel | PeftModel
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    eval_dataset: Dataset

    # compute_loss divides by the prompts of the whole accumulated batch, so the Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, model, args: KWiseRewardConfig | None = None, **kwargs):
        check_lora_config(kwargs.get("peft_config"), "peft_config")  # TRL sets the seed before it draws LoRA weights
        self.labeler_groups: list[str] = []  # labeler_group_id -> name, filled by _prepare_dataset
        self.training_groups: frozenset[str] = frozenset()  # labeler groups in the training data
        args = KWiseRewardConfig() if args is None else args
        check_arguments(args, kwargs)
        kwargs.setdefault("compute_metrics", self._compute_metrics)
        data_collator = kwargs.pop("data_collator", None)
        with trained_weights_kept(model):
            super().__init__(model, args, **kwargs)
        float_trained_weights(self.model)
        self.loss_is_scaled_for_ga = True
        self.data_collator = data_collator or KWiseCollator(PADDING_ID, args.pad_to_multiple_of)
        classifier = unwrap_peft(self.model)
        assert isinstance(self.processing_class.pad_token_id, int), "TRL's constructor sets the pad token"
        set_pad_token_id(classifier, self.processing_class.pad_token_id)
        pool_at_last_token(classifier)
        noise, dtype = noise_obstacle(args), computing_dtype(args, classifier.dtype)
        self.packs = noise is None and enable_packing(classifier, args.device, dtype) is None
        obstacle = None if self.packs else noise or enable_shared_prompts(classifier, args.max_length)
        self.shares_prompts = obstacle is None
        if obstacle:
            logger.warning("each prompt is computed again for each of its completions, because %s", obstacle)
        fit_memory(self, classifier, self.step_memory, self.row_tokens)
        compile_if_asked(self, classifier)

    @cached_property
    def row_sizes(self) -> list[tuple[int, int, int]]:
        return comparison_sizes(self.train_dataset["prompt_length"], self.train_dataset["completions_ids"])

    def row_tokens(self, layout: Layout) -> float:
        """Tokens of a prompt and its completions, on average."""
        return fmean(prompt * (1 if self.shares_prompts else k) + tokens for prompt, k, tokens in self.row_sizes)

    def step_memory(self, shape: Shape, layout: Layout, rows: int) -> Memory:
        """Memory of a step on the largest of many random batches."""
        prompt, k, completion = largest_batch(self.row_sizes, rows)
        passed = 1 if self.shares_prompts else k  # times that each prompt passes
        prompts, layout = round(passed * rows), replace(layout, packed=self.packs)
        return reward_memory(shape, layout, prompts, k / passed, prompt, completion, self.args.completions_per_forward)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Any:
        """Returns the K-wise loss; with `return_outputs` (loss, {"scores": [N]}).

        Args:
            num_items_in_batch: prompts of the optimizer step on all devices and micro-batches.
        """
        scores = self.score(model, inputs)  # [N]
        batch = (scores, inputs["ranks"], inputs["completions_per_prompt"], num_items_in_batch)
        loss = kwise_loss(*batch)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * center_penalty(*batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, but here they must add up
        if self.model.training:
            self._record(scores.detach(), inputs)
        return (loss, {"scores": scores}) if return_outputs else loss

    def score(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Scores [N] float32 of all completions of a batch, computed in parts of similar length to save padding."""
        return self._score_with_shared_prompts(model, inputs) if self.shares_prompts else self._score(model, inputs)

    def _score_with_shared_prompts(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes, last_token = inputs["completions_per_prompt"], inputs["last_token"]
        rows_of = torch.arange(len(last_token), device=sizes.device).split(sizes.tolist())  # one [K] per prompt
        parts = inputs["prompt_length"].argsort().tensor_split(self._num_parts(inputs, most=len(sizes)))
        order, scores = [], []
        for prompts in parts:
            rows = torch.cat([rows_of[prompt] for prompt in prompts.tolist()])
            batch = share_prompts(
                inputs["input_ids"][rows],
                last_token[rows],
                inputs["prompt_length"][prompts],
                sizes[prompts],
                packed=self.packs,
            )
            scores.append(model(**batch, use_cache=False).logits.squeeze(-1))
            order.append(rows)
        return torch.cat(scores)[torch.cat(order).argsort()]

    def _score(self, model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        last_token = inputs["last_token"]
        order = last_token.argsort()
        scores = []
        # Every device has at least 2 B completions, so no part is empty.
        for rows in order.tensor_split(self._num_parts(inputs, most=2 * len(inputs["completions_per_prompt"]))):
            longest = int(last_token[rows[-1]]) + 1
            longest += -longest % (self.args.pad_to_multiple_of or 1)
            output = model(
                input_ids=inputs["input_ids"][rows, :longest],
                attention_mask=inputs["attention_mask"][rows, :longest],
                last_token=last_token[rows],
                use_cache=False,
            )
            scores.append(output.logits.squeeze(-1))
        return torch.cat(scores)[order.argsort()]

    def _num_parts(self, inputs: dict[str, torch.Tensor], most: int) -> int:
        """Number of forward passes for the batch, at most `most`; the same on every device.

        DDP and FSDP communicate in each forward pass, so devices must agree, although their numbers of completions
        differ. B is the same on all.
        """
        wanted = torch.tensor(-(-len(inputs["last_token"]) // self.args.completions_per_forward))
        if self.accelerator.num_processes > 1:
            wanted = self._gather(wanted.to(self.accelerator.device)).max()
        return min(int(wanted), most)

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(tensor)  # pyright: ignore[reportReturnType]

    def _get_num_items_in_batch(self, batch_samples, device):
        """Prompts of an optimizer step on all devices and micro-batches, the divisor of the loss."""
        prompts = torch.tensor(sum(len(batch["completions_per_prompt"]) for batch in batch_samples), device=device)
        return self._gather(prompts).sum()

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the loss, scores [B, K], and labels (ranks, lengths [B, K], prompt ids, labeler groups [B])."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        sizes = inputs["completions_per_prompt"].tolist()
        lengths = inputs["last_token"] + 1 - inputs["prompt_length"].repeat_interleave(inputs["completions_per_prompt"])
        scores, ranks, lengths = (
            pad_sequence(values.split(sizes), batch_first=True, padding_value=PADDING)
            for values in (outputs["scores"], inputs["ranks"], lengths)
        )
        return loss, scores, (ranks, lengths, inputs["prompt_id"], inputs["labeler_group_id"])

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        return flat_metrics(self._report(_named(prediction)))

    def _report(self, predictions: Predictions) -> dict[str, Any]:
        return accuracy_report(predictions, self.labeler_groups, self.training_groups)

    def predictions(self, dataset: Dataset) -> Predictions:
        """Scores of a prepared dataset (`train_dataset`, `eval_dataset`) beside its labels; logs the metrics.

        Raises:
            InputError: scores are not finite, so they order nothing.
        """
        output = self.predict(dataset, metric_key_prefix="eval")  # pyright: ignore[reportArgumentType]
        predictions = _named(output)
        if not np.isfinite(predictions.scores).all():
            raise InputError("The reward model's scores are not finite: training diverged. Lower learning_rate.")
        self.log(output.metrics or {})
        return predictions

    def report(self) -> dict[str, Any]:
        """Evaluates on `eval_dataset`: `eval_loss` and the report of `rlhf.reward.accuracy`; logs the metrics."""
        report = self._report(self.predictions(self.eval_dataset))
        return {"eval_loss": report.pop("loss"), **report}

    def _record(self, scores: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        """Records the training metrics of TRL's RewardTrainer over the completions and pairs of a micro-batch."""
        winners, losers, _ = ranked_pairs(inputs["ranks"], inputs["completions_per_prompt"])
        margins = scores[winners] - scores[losers]
        correct = (margins > 0).float() + 0.5 * (margins == 0).float()
        sums = torch.stack([inputs["attention_mask"].sum(), scores.sum(), correct.sum(), margins.sum()])
        counts = torch.tensor([len(scores), len(margins)], device=scores.device)
        tokens, score, right, margin = self._gather(sums[None]).sum(0).tolist()
        completions, pairs = self._gather(counts[None]).sum(0).tolist()
        extremes = self._gather(torch.stack([scores.min(), scores.max()])[None])
        self._total_train_tokens += int(tokens)
        metrics = self._metrics["train"]
        metrics["num_tokens"] = [self._total_train_tokens]
        metrics["min_reward"].append(extremes[:, 0].min().item())
        metrics["mean_reward"].append(score / completions)
        metrics["max_reward"].append(extremes[:, 1].max().item())
        if pairs:
            metrics["accuracy"].append(right / pairs)
            metrics["margin"].append(margin / pairs)

    def _prepare_dataset(
        self, dataset: Dataset, processing_class, args: KWiseRewardConfig, dataset_name: str
    ) -> Dataset:
        """Tokenizes comparisons, unless `tokenize_comparisons` has done it, and numbers the labeler groups."""
        if "labeler_group_id" in dataset.column_names:
            return dataset
        unread = sorted({"margin", "tools", "chat_template_kwargs"} & set(dataset.column_names))
        if unread:
            raise InputError(
                f"the {dataset_name} comparisons have the column {', '.join(unread)}, which is not read here; "
                "remove it, or train with TRL's RewardTrainer."
            )
        if "completions_ids" not in dataset.column_names:
            dataset = tokenize_comparisons(dataset, processing_class, args.dataset_num_proc)
        if dataset_name == "train" and args.shuffled_pairs:
            dataset = as_pairs(dataset)
        _check_lengths(dataset, args.max_length, dataset_name)
        labeler_groups = dataset["labeler_group"]
        self.labeler_groups += sorted(set(labeler_groups) - {""} - set(self.labeler_groups))
        if dataset_name == "train":
            self.training_groups = frozenset(self.labeler_groups)
        ids = [self.labeler_groups.index(name) if name else NO_LABELER_GROUP for name in labeler_groups]
        return dataset.add_column("labeler_group_id", ids).select_columns(COLUMNS)

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = COLUMNS


def check_arguments(args: Any, options: dict[str, Any]) -> None:
    """Raises InputError for arguments of TRL's RewardTrainer that this one does not take."""
    if not isinstance(args, KWiseRewardConfig):
        raise InputError(f"args is a {type(args).__name__}; pass a KWiseRewardConfig, which has the same fields.")
    if args.label_smoothing_factor:
        raise InputError(
            f"label_smoothing_factor is {args.label_smoothing_factor}, and ranks are no labels. Leave it out."
        )
    for name in ("train_dataset", "eval_dataset"):
        value = options.get(name)
        for dataset in value.values() if isinstance(value, dict) else [value]:
            if isinstance(dataset, IterableDataset):
                raise InputError(f"{name} is streamed; load it whole, for example with Dataset.from_list(list(rows)).")


def _named(output: EvalPrediction | PredictionOutput) -> Predictions:
    """Names the arrays of `KWiseRewardTrainer.prediction_step`."""
    scores: Any = output.predictions
    labels: Any = output.label_ids
    return Predictions(scores, *labels)


def tokenize_comparisons(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None) -> Dataset:
    """Tokenizes comparisons.

    Returns:
        columns `completions_ids` (K lists: prompt, completion, EOS), `ranks`, `prompt_length` in tokens, `prompt_id`
        (`conversation_id`: equal for conversations that begin with the same message, which are one cluster),
        `labeler_id` and `labeler_group` ("" if the comparison has none).
    """

    def encode(row, number):
        try:
            row = comparison(row)
        except RowError as error:
            raise InputError(f"row {number + 1} of the comparisons: {error}.") from error
        prompt_ids, completions_ids = encode_prompt_and_completions(tokenizer, row["prompt"], row["completions"])
        ids = [prompt_ids + ids for ids in completions_ids]
        labels = {name: row.get(name, "") for name in ("labeler_id", "labeler_group")}
        conversation = {"prompt_length": len(prompt_ids), "prompt_id": conversation_id(row)}
        return {"completions_ids": ids, "ranks": row["ranks"], **conversation, **labels}

    return dataset.map(
        encode,
        with_indices=True,
        remove_columns=dataset.column_names,
        num_proc=num_proc,
        desc="Tokenizing comparisons",
    )


def _check_lengths(dataset: Dataset, max_length: int | None, dataset_name: str) -> None:
    """Raises InputError for rows longer than `max_length`, which TRL would drop silently."""
    longest = [max(map(len, ids)) for ids in dataset["completions_ids"]]
    if max_length is not None and longest and max(longest) > max_length:
        row = int(np.argmax(longest))
        raise InputError(
            f"row {row + 1} of the {dataset_name} comparisons has a completion that ends at token {longest[row]}, "
            f"beyond max_length {max_length}. Raise max_length or remove the row."
        )
