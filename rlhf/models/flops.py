"""FLOPs of passes by arithmetic. A multiplication and an addition count as 2.

The letters L, H, Q, V are those of `rlhf.models.memory`. Besides:

    W  weights of the linear layers of one layer (`Shape.layer_weights`)
    A  weights of one adapter
    N  tokens that pass the layers
    U  tokens that have logits
    C  pairs of a query and a key that it sees: T (T + 1) / 2 in a causal row of T tokens

Norms, activations, softmax, dropout and the optimizer do not count. Padding counts where the caller counts it in N.
"""

from rlhf.models.memory import adapter_weights
from rlhf.models.model_sizes import Shape

MODEL_FLOPS = "4 L W N + 4 V H U"  # of `model_flops`, for tables


def causal_pairs(lengths: list[int]) -> int:
    """Returns C of causal rows: the sum of T (T + 1) / 2."""
    return sum(length * (length + 1) // 2 for length in lengths)


def forward_flops(
    shape: Shape, tokens: float, logits: float = 0, pairs: float = 0, rank: int = 0, passes: float = 1
) -> dict[str, float]:
    """Returns the FLOPs of forward passes: {term: FLOPs}.

        linear       2 L W N
        adapters     2 A N
        attention    4 L Q C, a product of queries and keys and one with the values
        unembedding  2 V H U

    Args:
        tokens, logits, pairs: N, U, C.
        rank: of the adapters; 0 is a base without.
        passes: times that each is computed.
    """
    return {
        "linear": passes * 2 * shape.layers * shape.layer_weights * tokens,
        "adapters": passes * 2 * adapter_weights(shape, rank) * tokens,
        "attention": passes * 4 * shape.layers * shape.queries * pairs,
        "unembedding": passes * 2 * shape.vocabulary * shape.hidden * logits,
    }


def training_flops(
    shape: Shape,
    tokens: float,
    logits: float = 0,
    pairs: float = 0,
    rank: int = 0,
    checkpointing: float = 0,
    logits_twice: bool = False,
) -> dict[str, float]:
    """Returns the FLOPs of forward and backward of adapters on a frozen base: {term: FLOPs}.

    Backward computes a gradient for each input (as many FLOPs as forward) and for each trained weight (as many again).
    Frozen weights have none, so backward of the base costs as much as forward, of adapters and attention twice as much:

        linear       4 L W N
        adapters     6 A N
        attention    12 L Q C
        unembedding  4 V H U

    Args:
        tokens, logits, pairs, rank: as in `forward_flops`.
        checkpointing: share of the layers that backward computes a second time; True is all.
        logits_twice: backward computes the logits a second time: 6 V H U.
    """
    forward = forward_flops(shape, tokens, logits, pairs, rank)
    times = {"linear": 2, "adapters": 3, "attention": 3, "unembedding": 2}
    again = {name: logits_twice if name == "unembedding" else checkpointing for name in times}
    return {name: (times[name] + again[name]) * flops for name, flops in forward.items()}


def model_flops(shape: Shape, tokens: float, logits: float = 0) -> float:
    """Returns 4 L W N + 4 V H U: what training adapters on a frozen base costs at least, whatever the implementation.

    Its share of a matmul's speed says how much of a GPU is used. Attention, adapters, padding and what is computed
    twice do not count, so N are tokens of the data, and U those that a loss predicts.
    """
    return 4 * (shape.layers * shape.layer_weights * tokens + shape.vocabulary * shape.hidden * logits)


def decode_bytes(shape: Shape, weights: int, rows: int, positions: float, product: int, repeated: bool = True) -> float:
    """Returns the bytes that a step of decoding moves, which takes one token of each row through the model.

        weights + rows positions L (2 K e + 4 Q e if repeated)

    The weights are read once, keys and values of all positions of the rows, too. A mask makes transformers repeat keys
    and values for each head (`repeated`): 2 Q are written and read again.

    Args:
        weights: bytes of the base and of one adapter.
        positions: of a row that attention reads, on average.
        product: e, bytes of a number in the cache.
    """
    width = 2 * shape.keys + 4 * shape.queries * repeated
    return weights + rows * positions * shape.layers * width * product
