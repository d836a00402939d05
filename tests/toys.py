"""Toy models and tokenizers: real architectures of two layers with random weights, made in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    set_seed,
)

EOS = "<|endoftext|>"
TEXT = """\
User: What is the capital of France? Assistant: The capital of France is Paris, a city on the river Seine.
User: Name three fruits. Assistant: Apples, pears and plums are fruits that grow on trees in the garden.
User: Write a short story about a dog. Assistant: The dog ran over the hill to the river and back to the house again.
User: Is the moon made of cheese? Assistant: No, the moon is made of rock, and nobody has ever eaten it.
"""


def build_tokenizer(vocab_size: int = 300, special_tokens: tuple[str, ...] = (EOS,)) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end-of-text token, no pad token and no chat template: like GPT-2's, 256 bytes and more."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS)


def tiny_llama(vocab_size: int = 320, tie_word_embeddings: bool = True, seed: int = 0, **kwargs) -> LlamaForCausalLM:
    """Llama, hidden 32, 2 layers, grouped key-value heads; 20 embedding rows more than the toy tokenizer has tokens."""
    set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        **{**sizes, "num_key_value_heads": 2, "max_position_embeddings": 256, **kwargs},
        vocab_size=vocab_size,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )
    return _lively(LlamaForCausalLM(config))


def tiny_gpt2(vocab_size: int = 300, seed: int = 0) -> GPT2LMHeadModel:
    """GPT-2: Conv1D layers, learned positions, no spare embedding row for a pad token; no dropout, as in the others."""
    set_seed(seed)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    return _lively(GPT2LMHeadModel(config))


def tiny_gpt_neox(vocab_size: int = 320, seed: int = 0) -> GPTNeoXForCausalLM:
    """GPT-NeoX: fused query-key-value, unembedding of its own called `embed_out`."""
    set_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    return _lively(GPTNeoXForCausalLM(config))


def _lively(model: PreTrainedModel) -> PreTrainedModel:
    """Weights ten times those of an untrained model, whose next-token distributions are all but flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    return model.eval()


TINY = {"llama": tiny_llama, "gpt2": tiny_gpt2, "gpt_neox": tiny_gpt_neox}


def save_toy(folder: Path, architecture: str = "llama", **kwargs) -> Path:
    """Writes a toy model and its tokenizer where `from_pretrained` finds them."""
    TINY[architecture](**kwargs).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder
