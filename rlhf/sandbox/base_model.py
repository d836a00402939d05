"""The sandbox's base model: its tokenizer, its architecture and the token blocks it is trained on."""

import random
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlhf.sandbox.graded_work import EOS
from rlhf.sandbox.tasks import draw_category, draw_task

VOCABULARY = 2560
PAD = "<|pad|>"


def train_tokenizer(documents: Iterable[str], seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE in which nearly every word of the world is one token.

    It also reads instructions in the default chat template, so that "User:" and "Assistant:" are tokens. The model
    itself reads none before fine-tuning.
    """
    rng = random.Random(f"tokenizer-{seed}")
    tasks = [draw_task(rng, draw_category(rng), "train") for _ in range(3000)]
    instructions = [f"User: {task.instruction}\nAssistant:" for task in tasks]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*documents, *instructions], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=512)


def architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Config of a Llama of 2.1 million parameters: enough for the world's facts, small enough for two CPU cores."""
    ids = tokenizer.get_vocab()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        intermediate_size=512,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=ids[EOS],
        pad_token_id=ids[PAD],
    )


def pack(documents: list[str], tokenizer: PreTrainedTokenizerFast, length: int) -> torch.Tensor:
    """Packs documents, each ended by EOS, into blocks: [N, length] int64. Drops the tokens that fill no block."""
    ids: list[int] = []
    for start in range(0, len(documents), 10_000):  # one call for all would keep all offsets in memory
        for tokens in tokenizer(documents[start : start + 10_000])["input_ids"]:
            ids += [*tokens, tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
