"""The calibration bias: labelers' demonstrations score 0 on average (arXiv 2203.02155, section 3.5).

The loss sees differences of scores only, so it fixes them up to a constant. With N demonstrations (x_i, y_i),

    bias = 1 / N * sum_i r(x_i, y_i),    calibrated score = r(x, y) - bias

A calibrated score of 0 means "as good as a demonstration".
"""

import logging
from dataclasses import replace

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.data import DataArguments, load_demonstrations
from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.data.loading import find_rows
from rlhf.data.prompt_style import in_prompt_style
from rlhf.errors import InputError, options_named
from rlhf.reward.config import KWiseRewardConfig
from rlhf.reward.trainer import KWiseRewardTrainer
from rlhf.tensors import PADDING_ID, length_batches, pad_right

logger = logging.getLogger(__name__)


def load_calibration_rows(
    args: KWiseRewardConfig, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, style: str | None = None
) -> list[list[int]] | None:
    """Returns token ids (prompt, response) of the demonstrations to calibrate with, from the validation split.

    Of `calibration_dataset`, the split `dataset_train_split` is read if there is one, else its split train. `columns`
    renames those of `dataset_name` alone.

    Returns None, with a warning, if no `calibration_dataset` is set and `dataset_name` has preferences alone.

    Args:
        style: form of the prompts of the comparisons, "chat" or "text".

    Raises:
        InputError: `calibration_dataset` cannot be read, or has no demonstration within `max_length`.
    """
    source = replace(data_args, dataset_eval_size=args.calibration_size)
    if args.calibration_dataset is not None:
        name, config = args.calibration_dataset, args.calibration_dataset_config
        columns = source.columns if name == source.dataset_name else None
        source = replace(source, dataset_name=name, dataset_config=config, dataset_format=None, columns=columns)
        with options_named({"dataset_name ": "calibration_dataset "}):
            splits = find_rows("demonstrations", source)
        if source.dataset_train_split not in splits:
            source = replace(source, dataset_train_split="train")
    try:
        rows = in_prompt_style(load_demonstrations(source, "validation"), source, tokenizer, "validation", style)
        return _sequences(rows, tokenizer, args.max_length)
    except InputError as error:
        if args.calibration_dataset is not None:
            raise
        logger.warning("scores are left uncalibrated; set calibration_dataset to calibrate them: %s", error)
        return None


def _sequences(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[list[int]]:
    sequences = [
        encode_prompt(tokenizer, prompt) + encode_completion(tokenizer, prompt, completion)
        for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)
    ]
    short = [ids for ids in sequences if max_length is None or len(ids) <= max_length]
    if not short:
        raise InputError(f"All {len(sequences)} demonstrations are longer than max_length {max_length}. Raise it.")
    num_long = len(sequences) - len(short)
    if num_long:
        logger.warning("%d of %d demonstrations are longer than max_length: not in the bias", num_long, len(sequences))
    return short


def calibrate(trainer: KWiseRewardTrainer, demonstrations: list[list[int]] | None) -> dict[str, float] | None:
    """Returns the `calibration` of the trained model's scores of the demonstrations, the same on every process."""
    if demonstrations is None:
        return None
    batch_size = trainer.args.completions_per_forward
    return calibration(score_sequences(trainer.model, demonstrations, PADDING_ID, batch_size))


def calibration(scores: torch.Tensor) -> dict[str, float]:
    """Returns `bias`, `std` and `n` of the raw scores [N] of demonstrations."""
    return {"bias": scores.mean().item(), "std": scores.std(correction=0).item(), "n": len(scores)}


@torch.no_grad()
def score_sequences(model: nn.Module, sequences: list[list[int]], pad_token_id: int, batch_size: int) -> torch.Tensor:
    """Returns the raw scores [N], float32 on the CPU, of N lists of token ids.

    Args:
        model: a sequence classifier on which `pool_at_last_token` was called.
        batch_size: sequences per forward pass; they are sorted by length first.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    scores = torch.empty(len(sequences))
    for rows in length_batches([len(ids) for ids in sequences], batch_size):
        batch = pad_right([sequences[i] for i in rows], pad_token_id)
        output = model(**{name: tensor.to(device) for name, tensor in batch.items()}, use_cache=False)
        scores[rows] = output.logits.squeeze(-1).float().cpu()
    model.train(training)
    return scores
