"""Sizes of a model, and how a stage is run: what the formulas of rlhf/models/memory.py need to know."""

from dataclasses import dataclass, replace
from typing import Literal

from transformers import PreTrainedConfig

from rlhf.errors import InputError
from rlhf.models.logprobs import GPU_LOGITS, LOGITS

Precision = Literal["float32", "bfloat16", "nf4", "nf4-nested"]
Sharding = Literal["ddp", "fsdp", "zero3"]
LLAMA = ("llama", "mistral", "qwen2", "qwen3", "smollm3")  # model types of each form
GPT = ("gpt2", "gpt_neox")
KNOWN = (*LLAMA, *GPT)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder of Llama's form: RMSNorm, projections of their own for q, k and v, an MLP with a gate.

    Attributes:
        tied: one matrix is embedding and unembedding.
        qk_norm: queries and keys are normalized, as in Qwen3.
        biases: of one layer.
        gpt: the form of GPT-2 and GPT-NeoX instead: LayerNorm, one matrix for q, k and v, an MLP without a gate.
        positions: learned embeddings of positions.
        new_gelu: the MLP's activation is transformers' `gelu_new`, which GPT-2 has.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    qk_norm: bool = False
    biases: int = 0
    gpt: bool = False
    positions: int = 0
    new_gelu: bool = False

    @property
    def queries(self) -> int:
        """Q."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """K."""
        return self.key_heads * self.head_size

    @property
    def layer_weights(self) -> int:
        """Weights of the linear layers of one layer: 2 H Q + 2 H K + 3 H I, or 2 H I without a gate."""
        return self.hidden * (2 * self.queries + 2 * self.keys + (2 if self.gpt else 3) * self.intermediate)

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings of tokens and positions, and of the unembedding if it is not tied."""
        return self.hidden * (self.vocabulary * (1 if self.tied else 2) + self.positions)

    @property
    def norms(self) -> int:
        """Weights of the norms, and biases: L (2 H + 2 head size if queries and keys are normalized + biases) + H.

        A LayerNorm has 2 H in place of H.
        """
        norm = self.hidden * (2 if self.gpt else 1)
        return self.layers * (2 * norm + 2 * self.head_size * self.qk_norm + self.biases) + norm

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_weights + self.embeddings + self.norms


def shape_of(config: PreTrainedConfig) -> Shape:
    """Returns the sizes in a model's configuration.

    Raises:
        InputError: the model is of another form.
    """
    config = config.get_text_config()
    if config.model_type not in KNOWN:
        raise InputError(
            f"The memory of {config.model_type} is not known, only that of {', '.join(KNOWN)}. Measure a short run."
        )
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or hidden // heads
    if config.model_type in GPT:
        inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * hidden
        biased = getattr(config, "attention_bias", True)
        return Shape(
            config.num_hidden_layers, hidden, inner, heads, heads, head_size, config.vocab_size,
            tied=config.tie_word_embeddings, biases=4 * hidden * biased + inner + hidden, gpt=True,
            positions=config.max_position_embeddings if config.model_type == "gpt2" else 0,
            new_gelu=getattr(config, "activation_function", None) == "gelu_new",
        )  # fmt: skip
    key_heads = config.num_key_value_heads
    return Shape(
        config.num_hidden_layers, hidden, config.intermediate_size, heads, key_heads, head_size, config.vocab_size,
        tied=config.tie_word_embeddings, qk_norm=config.model_type == "qwen3",
        biases=(heads + 2 * key_heads) * head_size if config.model_type == "qwen2" else 0,
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Form in which a stage is run.

    Attributes:
        base: dtype of the frozen weights; embeddings and norms of a 4-bit base are bfloat16.
        sharding: `fsdp` and `zero3` divide weights, gradients and optimizer states by the processes.
        autocast: the recipes' `bf16: true`.
        checkpointing: n: backward computes every n-th layer again, 1: all, as with the recipes'
            `gradient_checkpointing: true`; 0: none. True and False are 1 and 0.
        dropout: d, bytes of a number in a mask of the adapters' dropout: 1 on a GPU, 4 on a CPU, 0 without dropout.
        logits: at a time: of `rlhf.models.logprobs`, GPU_LOGITS or LOGITS.
        packed: rows stand in one row without padding (`rlhf.models.packed_attention`).
        cpu: attention is in float32 (`rlhf.models.packed_attention.sdpa`), and sampling has a copy of the weights
            (`rlhf.generation.decode_linears`).
    """

    base: Precision = "bfloat16"
    sharding: Sharding = "ddp"
    processes: int = 1
    autocast: bool = True
    checkpointing: int = 1
    rank: int = 16
    dropout: int = 0
    logits: int = GPU_LOGITS
    packed: bool = False
    cpu: bool = False

    @property
    def product(self) -> int:
        """e."""
        return 4 if self.base == "float32" and not self.autocast else 2

    @property
    def stream(self) -> int:
        """s."""
        return 4 if self.base == "float32" else 2

    def recomputed(self, layers: int) -> int:
        """Returns how many of the layers backward computes again: those with the numbers 0, n, 2 n, ..."""
        return -(-layers // self.checkpointing) if self.checkpointing else 0

    @property
    def quantized(self) -> bool:
        return self.base.startswith("nf4")

    def on(self, device: str, dropout: bool = False) -> "Layout":
        """Returns it with what depends on the device ("cpu", else a GPU), for adapters with dropout or without.

        Masks of dropout, logits at a time, and rows, which a GPU packs in 16 bits.
        """
        cpu = device == "cpu"
        mask, logits = (4, LOGITS) if cpu else (1, GPU_LOGITS)
        return replace(self, dropout=mask * dropout, logits=logits, packed=not cpu and self.product == 2, cpu=cpu)
