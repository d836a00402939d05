"""Memory of a stage by arithmetic, before anything is loaded: bytes on each GPU, term by term.

The model is a decoder of Llama's form (`rlhf.models.model_sizes`): RMSNorm, attention with grouped keys, SwiGLU; or of
GPT's: LayerNorm, one matrix for q, k and v, GELU. A LoRA adapter of rank r is on all linear layers of the layers, the
base is frozen, and the optimizer is AdamW. Dropout is that of the adapters; a base's own in attention does not count.
Letters in the formulas:

    L  layers                        V  vocabulary
    H  width                         r  rank of the adapters
    Q  heads x head size             W  processes
    K  key heads x head size         e  bytes of a product: 4 in float32 without autocast, else 2
    I  width of the MLP              s  bytes of a hidden state between layers: 4 on a float32 base, else 2
                                     d  bytes of a number of a dropout's mask: 1 on a GPU, 4 on a CPU, 0 without

tests/test_models_memory.py compares every term with the tensors that PyTorch makes. docs/scale.md says how far whole
stages are off, and what is not counted: the CUDA context, buffers of NCCL, fragmentation.
"""

import math
from dataclasses import dataclass, field

from rlhf.errors import InputError
from rlhf.models.model_sizes import Layout, Precision, Shape

# Bytes of a linear weight. nf4: half a byte, and a float32 scale for each 64 weights. Nested: the scales are 8-bit
# numbers, with a float32 for each 256 of them.
LINEAR_BYTES = {"float32": 4, "bfloat16": 2, "nf4": 0.5 + 4 / 64, "nf4-nested": 0.5 + 1 / 64 + 4 / (64 * 256)}
PREFILL_TOKENS = 2**14  # rlhf.generation.continuous_batching
SFT_CHUNK = 256  # tokens, of TRL's chunked loss
# Defaults of DeepSpeed's ZeRO-3: weights that stay gathered, weights fetched ahead, gradients in a bucket.
ZERO3_LIVE, ZERO3_PREFETCH, ZERO3_BUCKET = 10**9, 5 * 10**7, 5 * 10**8


@dataclass
class Memory:
    """Bytes on each GPU.

    Attributes:
        resident: term -> bytes that are there during the whole stage.
        phases: phase -> term -> bytes that are there only in this phase.
    """

    resident: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Resident bytes, plus those of the largest phase."""
        return sum(self.resident.values()) + max(sum(terms.values()) for terms in self.phases.values())


# ---- What is there all the time --------------------------------------------------------------------------------------


def base_bytes(shape: Shape, base: Precision) -> int:
    """Frozen weights, not sharded: linear weights at LINEAR_BYTES, embeddings and norms at 4 in float32, else at 2."""
    others = 4 if base == "float32" else 2
    return round(shape.layers * shape.layer_weights * LINEAR_BYTES[base]) + others * (shape.embeddings + shape.norms)


def adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of one adapter: L r (2 (H + Q) + 2 (H + K) + 3 (H + I)), for q and o, k and v, and the MLP.

    In GPT's form L r ((H + Q + 2 K) + (H + Q) + 2 (H + I)): one adapter for q, k and v, no gate.
    """
    h, i, q, k = shape.hidden, shape.intermediate, shape.queries, shape.keys
    if shape.gpt:
        return shape.layers * rank * (2 * (h + q) + 2 * k + 2 * (h + i))
    return shape.layers * rank * (2 * (h + q) + 2 * (h + k) + 3 * (h + i))


def resident_bytes(shape: Shape, layout: Layout, trained: int, frozen: int = 0, averaged: int = 0) -> dict[str, int]:
    """Base, adapters, gradients, optimizer, and what sharding adds.

        base        base_bytes / W where sharded; 4-bit weights are not sharded
        adapters    4 (trained + frozen weights), float32; / W under FSDP. ZeRO-3 keeps matrices of less than 100,000
                    weights whole, and those of an adapter are that small: 2 (trained + frozen) + 4 trained / W
        gradients   4 trained, float32; / W where sharded. DDP with several processes: 8, since it copies them to send
        optimizer   8 trained: the two moments of Adam, float32; / W where sharded
        average     4 averaged: PPO's average of the policy, float32; / W under FSDP and ZeRO-3
        gathered    FSDP: weights of two layers, the one that computes and the next, and of the embeddings, in bfloat16.
                    ZeRO-3: 2 bytes of ZERO3_LIVE + ZERO3_PREFETCH weights, or of all if there are fewer, and of
                    ZERO3_BUCKET gradients

    Args:
        trained: weights that are trained.
        frozen: weights of frozen adapters.
        averaged: weights of which an average is kept.
    """
    sharded = layout.sharding != "ddp"
    if sharded and layout.quantized:
        raise InputError("A 4-bit base is not sharded by FSDP or ZeRO-3. Take bfloat16, or ddp.")
    share = layout.processes if sharded else 1
    adapters = 4 * (trained + frozen) // share
    if layout.sharding == "zero3":
        adapters = 2 * (trained + frozen) + 4 * trained // share
    terms = {
        "base": base_bytes(shape, layout.base) // share,
        "adapters": adapters,
        "gradients": 4 * trained // share * (2 if layout.sharding == "ddp" and layout.processes > 1 else 1),
        "optimizer": 8 * trained // share,
        "average": 4 * averaged // share,
    }
    if layout.sharding == "fsdp":
        terms["gathered"] = 2 * (2 * shape.layer_weights + shape.embeddings)
    if layout.sharding == "zero3":
        gathered = min(ZERO3_LIVE + ZERO3_PREFETCH, shape.parameters)
        terms["gathered"] = 2 * (gathered + ZERO3_BUCKET)
    return terms


# ---- Activations -----------------------------------------------------------------------------------------------------


def attention_bytes(shape: Shape, layout: Layout, rows: float, queries: float, keys: float, masked: bool) -> int:
    """Returns what fused attention of a layer keeps for backward: `rows` of `queries` tokens look at `keys` tokens.

    Queries and output, keys and values, and the logarithm of the sum for each head:

        rows (queries (2 e Q + 4 heads) + keys 2 e K)

    With a mask, transformers repeats keys and values for each head (2 e Q in place of 2 e K), and PyTorch makes the
    mask of booleans one of numbers: + rows e queries keys. On a CPU e is 4; 16 bits also keep their output: + 2 Q.
    """
    e, width = 4 if layout.cpu else layout.product, shape.queries if masked else shape.keys
    output = 2 * shape.queries * (e > layout.product)
    kept = queries * (2 * e * shape.queries + output + 4 * shape.heads) + keys * 2 * e * width
    return round(rows * (kept + masked * e * queries * keys))


def token_bytes(shape: Shape, layout: Layout, batched: bool = False) -> int:
    """Returns what the rest of one layer keeps for backward, for each token.

        norms           8 H: both take a float32 copy, or the float32 hidden states. + 4 (Q + K) with qk_norm.
                        LayerNorm 2 s H, or 8 H under a GPU's autocast
        MLP             3 e I: gate, its activation, up. GPT-NeoX e I. GPT-2 4 e I, since it computes its activation
                        step by step, or 14 I under a GPU's autocast
        rotation        e (Q + K) in GPT-NeoX: queries and keys before it stay, in one matrix with the values
        LoRA's inputs   a (5 H + Q + I) where PEFT casts the input of each of the seven layers on its own: a bfloat16
                        base with float32 adapters (a = 2 under autocast, else 4), or a float32 base under autocast (2);
                        e (2 H + I) where the layers share their inputs: float32 without autocast, 4-bit under autocast,
                        FSDP and ZeRO-3 (adapters in bfloat16), and the batched adapters of `rlhf.models.batched_lora`
        LoRA's factors  7 a r
        dropout         d (5 H + Q + I) of masks, and each of the seven layers keeps its own input, in a

    GPT's form has four such layers, with inputs of 2 H + Q + I, and dropout after attention and MLP: + 2 min(d, s) H.

    The output of attention is in `attention_bytes`.

    Args:
        batched: policy and value share a pass (`SharedBase.use` with several names).
    """
    h, i, q, k, e = shape.hidden, shape.intermediate, shape.queries, shape.keys, layout.product
    a = 2 if layout.autocast else 4
    d, s = layout.dropout, layout.stream
    own = layout.base == "float32" if layout.autocast else layout.base != "float32"
    if layout.autocast and layout.base == "bfloat16":
        own = layout.sharding == "ddp" and not batched
    width = (2 if shape.gpt else 5) * h + q + i
    inputs = (a + d) * width if own or d else e * (2 * h + i)
    if shape.gpt:
        mlp = (14 if layout.autocast else 4 * e) * i if shape.new_gelu else e * i
        rotation = 0 if shape.positions else e * (q + k)
        norms, masks = 2 * (4 if layout.autocast else s) * h, 2 * min(d, s) * h
        return norms + mlp + rotation + inputs + 4 * a * layout.rank + masks
    return 8 * h + 4 * (q + k) * shape.qk_norm + 3 * e * i + inputs + 7 * a * layout.rank


def kept_weights(shape: Shape, layout: Layout) -> int:
    """Copies of one layer's weights that each pass keeps: 2 bytes each for a float32 base under autocast, else none."""
    return 2 * shape.layer_weights if layout.base == "float32" and layout.autocast else 0


def forward_bytes(shape: Shape, layout: Layout, tokens: int, layer: int, passes: int = 1) -> dict[str, int]:
    """Returns what the layers keep between forward and backward.

        activations  (L - C) (layer + passes kept_weights) + C s H tokens: of the C layers that are computed again,
                     the inputs alone
        final norm   (4 + s) H tokens

    Args:
        tokens: of all passes that one backward follows.
        layer: what one layer keeps of them: `attention_bytes` + tokens `token_bytes`.
        passes: their number.
    """
    kept = layer + passes * kept_weights(shape, layout)
    inputs, again = layout.stream * shape.hidden * tokens, layout.recomputed(shape.layers)
    return {
        "activations": (shape.layers - again) * kept + again * inputs,
        "final norm": (4 + layout.stream) * shape.hidden * tokens,
    }


def backward_bytes(shape: Shape, layout: Layout, tokens: int, layer: int) -> dict[str, int]:
    """Returns what backward adds in one layer of one pass.

        recomputed  with checkpointing, what the layer keeps: layer + kept_weights
        gradients of activations
                    tokens (e (3 I + H) + 4 I): of the MLP, where LoRA's share is float32 before it is added
        dequantized 2 H I on a 4-bit base, its largest weight

    Args:
        tokens: of the largest pass.
        layer: what one layer keeps of it.
    """
    h, i, e = shape.hidden, shape.intermediate, layout.product
    return {
        "recomputed": layer + kept_weights(shape, layout) if layout.checkpointing else 0,
        "gradients of activations": tokens * (e * (3 * i + h) + 4 * i),
        "dequantized": 2 * h * i if layout.quantized else 0,
    }


def train_phases(
    shape: Shape, layout: Layout, whole: tuple[int, int], largest: tuple[int, int], passes: int, loss: dict[str, int]
) -> dict[str, dict[str, int]]:
    """Phases of a micro-batch: `loss`, after forward, and `backward`.

    Args:
        whole: (tokens, layer) of all passes; see `forward_bytes`.
        largest: (tokens, layer) of the largest pass.
        loss: terms of the loss itself.
    """
    forward = forward_bytes(shape, layout, *whole, passes)
    return {"loss": forward | loss, "backward": forward | backward_bytes(shape, layout, *largest)}


def logits_bytes(shape: Shape, layout: Layout, tokens: int) -> int:
    """Returns what the log-probabilities of `tokens` tokens take (`rlhf.models.logprobs`).

        (8 + e) c V + e H tokens

    of a chunk of c tokens the logits, and in float32 a copy and the log-softmax; the gradient of the hidden states; on
    a float32 base under autocast 2 V H more, the unembedding in bfloat16.
    """
    v, h, e, copied = shape.vocabulary, shape.hidden, layout.product, layout.autocast and layout.base == "float32"
    return (8 + e) * v * min(max(1, layout.logits // v), tokens) + e * h * tokens + copied * 2 * v * h


# ---- The stages ------------------------------------------------------------------------------------------------------


def sft_memory(shape: Shape, layout: Layout, rows: int, tokens: float) -> Memory:
    """Supervised fine-tuning: one adapter; rows are padded and attention has a mask, unless they are packed.

        loss  `logits_bytes` of all tokens. Sharded, TRL's chunked loss: 2 V H + 18 c V bytes for c = SFT_CHUNK tokens,
              at least 6 V H, since its copy of the unembedding is made of a float32 copy

    Args:
        rows: `per_device_train_batch_size`.
        tokens: of the longest row; packed, of each row on average.
    """
    trained = adapter_weights(shape, layout.rank)
    number = round(rows * tokens)
    attention = attention_bytes(shape, layout, rows, tokens, tokens, masked=not layout.packed)
    whole = (number, attention + number * token_bytes(shape, layout))
    loss = logits_bytes(shape, layout, number)
    if layout.sharding != "ddp":
        unembedding, chunk = shape.vocabulary * shape.hidden, min(SFT_CHUNK, number) * shape.vocabulary
        loss = max(6 * unembedding, 2 * unembedding + 18 * chunk)
    phases = train_phases(shape, layout, whole, whole, 1, {"loss": loss})
    return Memory(resident_bytes(shape, layout, trained), phases)


def reward_memory(
    shape: Shape, layout: Layout, prompts: int, completions: float, prompt: float, completion: float, per_forward: int
) -> Memory:
    """Reward model on K ranked completions, which share the pass of their prompt (`rlhf.reward.prefix`).

    Tokens of the linear layers: prompts (P + K C). Attention of prompts to themselves, without a mask, and of
    completions to prompt and completion, with one unless packed. One adapter and a head of H weights are trained.

    Args:
        prompts: `per_device_train_batch_size`.
        completions: K, of one prompt; a mean where prompts differ, as P and C may be.
        prompt, completion: tokens P and C, of the longest.
        per_forward: `completions_per_forward`: completions of one pass.
    """

    def part(prompts: int) -> tuple[int, int]:
        rows = prompts * completions
        tokens = round(prompts * prompt + rows * completion)
        attention = attention_bytes(shape, layout, prompts, prompt, prompt, masked=False)
        attention += attention_bytes(shape, layout, rows, completion, prompt + completion, masked=not layout.packed)
        return tokens, attention + tokens * token_bytes(shape, layout)

    passes = min(prompts, math.ceil(prompts * completions / per_forward))
    trained = adapter_weights(shape, layout.rank) + shape.hidden
    phases = train_phases(shape, layout, part(prompts), part(-(-prompts // passes)), passes, {})
    return Memory(resident_bytes(shape, layout, trained), phases)


def ppo_memory(
    shape: Shape,
    layout: Layout,
    rows: int,
    prompt: int,
    response: int,
    slots: int,
    rewards: int = 1,
    average: bool = True,
    pass_tokens: int = 16384,
    text: int = 0,
) -> Memory:
    """PPO with the shared base: adapters policy and value are trained, sft and the reward models are frozen.

    The update passes 2 R (P + T) tokens, half for the policy and half for the value model. Policy and value share a
    pass where `batched_lora` can: not on a 4-bit base, nor sharded. Scoring keeps less than the update.

    The loss takes `logits_bytes` of R T tokens. PPO-ptx passes R blocks of text first, with logits of all tokens.

    Phase `rollout`, with S slots, beside the resident bytes:

        cache      S (P + T) L 2 K e; on a CPU also `weights`, e (L weights of a layer + V H)
        prefill    p (L 2 K e + 3 e I + (4 + 2 s) H) for p = min(S P, PREFILL_TOKENS) tokens; sharded p = S P
        step       S (P + T) 2 Q e for the keys and values of a layer, which its mask makes transformers repeat, and
                   16 S V for logits, probabilities and their sums; the larger of prefill and step counts

    Args:
        rows: `per_device_train_batch_size`.
        prompt, response: tokens P and T, of the longest.
        slots: `local_rollout_forward_batch_size`.
        rewards: reward adapters.
        average: `ema_decay` is set.
        pass_tokens: most tokens of one pass (`rlhf.models.pass_limits`), adapters counted.
        text: tokens of a block of pretraining text, 0 without.
    """
    length, sharded, e = prompt + response, layout.sharding != "ddp", layout.product
    batched = not sharded and not layout.quantized
    one = token_bytes(shape, layout, batched) * length + attention_bytes(shape, layout, 1, length, length, masked=False)
    sequences = 2 * rows
    in_pass = rows if sharded else max(1 + batched, min(sequences, pass_tokens // length))
    whole, largest = ((n * length, n * one) for n in (sequences, in_pass))
    logits = {"logits": logits_bytes(shape, layout, rows * response)}
    phases = train_phases(shape, layout, whole, largest, -(-sequences // in_pass), logits)
    if text:
        kept = rows * text * token_bytes(shape, layout) + attention_bytes(shape, layout, rows, text, text, False)
        block, logits = (rows * text, kept), {"logits": logits_bytes(shape, layout, rows * text)}
        ptx = train_phases(shape, layout, block, block, 1, logits)
        phases |= {f"{phase} of the text": terms for phase, terms in ptx.items()}
    cache = shape.layers * 2 * shape.keys * e
    prefilled = slots * prompt if sharded else min(slots * prompt, max(PREFILL_TOKENS, prompt))
    prefill = prefilled * (cache + 3 * e * shape.intermediate + (4 + 2 * layout.stream) * shape.hidden)
    step = slots * length * 2 * shape.queries * e + 16 * slots * shape.vocabulary
    phases["rollout"] = {"cache": slots * length * cache, "prefill or step": max(prefill, step)}
    if layout.cpu:
        phases["rollout"]["weights"] = e * (shape.layers * shape.layer_weights + shape.vocabulary * shape.hidden)
    weights = adapter_weights(shape, layout.rank)
    trained, frozen = 2 * weights + shape.hidden + 1, (1 + rewards) * weights + rewards * (shape.hidden + 1)
    return Memory(resident_bytes(shape, layout, trained, frozen, weights * average), phases)
