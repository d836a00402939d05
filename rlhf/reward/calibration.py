"""The bias that gives labeler demonstrations mean score 0 (arXiv 2203.02155, section 3.5)."""

import logging
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.data import DataArguments, load_demonstrations
from rlhf.data.encode import encode_completion, encode_prompt
from rlhf.errors import InputError
from rlhf.reward.collator import pad_right
from rlhf.reward.config import KWiseRewardConfig
from rlhf.reward.trainer import KWiseRewardTrainer
from rlhf.sampling import length_batches

logger = logging.getLogger(__name__)


def load_calibration_rows(
    args: KWiseRewardConfig, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase
) -> list[list[int]] | None:
    """Token ids of the demonstrations to calibrate with, from the validation split: prompt, response, EOS.

    None, with a warning, if none were named and `dataset_name` has no demonstrations (plain preference data).

    Raises:
        InputError: `calibration_dataset` cannot be read.
    """
    source = replace(data_args, dataset_eval_size=args.calibration_size)
    if args.calibration_dataset is not None:
        source = replace(source, dataset_name=args.calibration_dataset, dataset_config=None, dataset_format=None)
    try:
        rows = load_demonstrations(source, "validation")
    except InputError as error:
        if args.calibration_dataset is not None:
            raise
        logger.warning("scores are left uncalibrated, set calibration_dataset to calibrate them: %s", error)
        return None
    sequences = [
        encode_prompt(tokenizer, row["prompt"]) + encode_completion(tokenizer, row["prompt"], row["completion"])
        for row in rows
    ]
    return [ids for ids in sequences if args.max_length is None or len(ids) <= args.max_length] or None


def calibrate(trainer: KWiseRewardTrainer, demonstrations: list[list[int]] | None) -> dict[str, float] | None:
    """`calibration` of what the trained model gives the demonstrations, scored on every process alike."""
    if demonstrations is None:
        return None
    pad_token_id, batch_size = trainer.processing_class.pad_token_id, trainer.args.completions_per_forward
    return calibration(score_sequences(trainer.model, demonstrations, pad_token_id, batch_size))


def calibration(scores: torch.Tensor) -> dict[str, float]:
    """From the raw scores [N] of demonstrations: `bias`, which is subtracted from every score, `std` and `n`.

    The loss fixes scores up to a constant only. With this one, a score of 0 means "as good as a demonstration".
    """
    return {"bias": scores.mean().item(), "std": scores.std(correction=0).item(), "n": len(scores)}


@torch.no_grad()
def score_sequences(model: nn.Module, sequences: list[list[int]], pad_token_id: int, batch_size: int) -> torch.Tensor:
    """Raw scores [N] float32, on the CPU, of N lists of token ids.

    Args:
        model: a sequence classifier on which `pool_at_last_token` was called.
        batch_size: sequences in one forward; they are sorted by length first.
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
