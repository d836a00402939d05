"""Decoder layers by torch.compile, each for itself: all layers of a model share their graphs.

A compiled forward rounds otherwise than an eager one, and the graph for training otherwise than the one for inference,
because they fuse other products. PPO compares log-probabilities of passes with and without gradients, and of trained
and frozen adapters. So there is only one graph: passes without gradients run the graph for training layer by layer,
and free what each layer keeps for backward; frozen adapters are inputs like trained ones (`lora_factors`).
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.fx.experimental._config
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

logger = logging.getLogger(__name__)

# A pass of fewer tokens is not worth a graph of its own: the trial passes of `find_unembedding` have two.
MIN_TOKENS = 256
GRAPHS = 64  # torch compiles at most 8 for a function: here one for each number of adapters, rank and mode
# FLOPs of the layers, forward and backward, after which a run has gained what the compilation took: three minutes of
# eager layers on an H100.
REPAID_FLOPS = 6e16

COMPILE = {
    "help": "Compile the decoder layers with torch.compile: true, false or auto. auto: on a GPU whose compiler works, "
    "if the run is long enough to gain from it, and not with FSDP or DeepSpeed."
}


def compile_by_choice(
    choice: str, lm: nn.Module, device: torch.device, tokens: float, obstacle: str | None = None
) -> bool:
    """Compiles the decoder layers of `lm` if `choice` is "true", or "auto" and it is worth it; returns if it did.

    Args:
        tokens: tokens that pass the layers forward and backward on one device in the run.
        obstacle: why the layers cannot be compiled, for the log.
    """
    if choice == "false" or (choice == "auto" and (device.type != "cuda" or not is_repaid(lm, tokens))):
        return False
    obstacle = obstacle or layers_obstacle(lm) or compiler_obstacle(device)
    if obstacle:
        logger.warning("layers are not compiled, because %s", obstacle)
        return False
    compile_layers(lm)
    return True


def is_repaid(lm: nn.Module, tokens: float) -> bool:
    """True if a run of `tokens` gains more time from compiled layers than their compilation takes."""
    return 4 * sum(p.numel() for layer in decoder_layers(lm) for p in layer.parameters()) * tokens > REPAID_FLOPS


def layers_obstacle(lm: nn.Module) -> str | None:
    """Returns None, or why the layers of `lm` cannot be compiled."""
    return None if decoder_layers(lm) else f"{type(lm).__name__} has no layers of transformers' checkpointing"


def compiler_obstacle(device: torch.device) -> str | None:
    """Returns None, or why torch.compile does not work on `device`: tries a small function, forward and backward."""
    try:
        with torch.enable_grad():
            x = torch.ones(8, device=device, requires_grad=True)
            torch.compile(lambda x: x.sin().square().sum())(x).backward()
    except Exception as error:  # of triton, of a C compiler, of a file system, of torch
        return f"torch.compile does not work here: {first_line(error)}"
    return None


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def decoder_layers(lm: nn.Module) -> list[nn.Module]:
    """The layers of `lm` that transformers can checkpoint."""
    return [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(lm: nn.Module, backend: str = "inductor") -> None:
    """Compiles the decoder layers of `lm` in place. Names of modules and weights do not change.

    Layers compile in their first pass. If that fails, a line in the log says why, and they stay eager.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.specialize_float = True  # else dynamic=True makes inputs of epsilons and scales
    torch.fx.experimental._config.use_duck_shape = False  # else sizes that are equal in the first pass must stay equal
    layers = decoder_layers(lm)
    classes = {cls: compiled_class(cls, backend) for cls in {type(layer) for layer in layers}}
    for layer in layers:
        layer.__class__ = classes[type(layer)]


def compiled_class(cls: type[nn.Module], backend: str) -> type[nn.Module]:
    """A subclass with a compiled forward, which transformers wraps in its checkpoint as it does with any layer.

    Recomputation in backward runs the compiled forward. Passes with a cache, which decode, stay eager.
    """
    plain: Callable[..., Any] = cls.forward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]  # no checkpoint
    compiled = torch.compile(plain, dynamic=True, fullgraph=True, backend=backend)
    failed: list[Exception] = []

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        decodes = kwargs.get("use_cache") or kwargs.get("past_key_values") is not None
        if failed or decodes or hidden_states[..., 0].numel() < MIN_TOKENS:
            return plain(self, hidden_states, *args, **kwargs)
        try:
            with torch.enable_grad():  # also without gradients: see above
                leaf = hidden_states if hidden_states.requires_grad else hidden_states.detach().requires_grad_()
                output = compiled(self, leaf, *args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            logger.warning("layers are not compiled, because %s failed: %s", cls.__name__, first_line(error))
            failed.append(error)
            return plain(self, hidden_states, *args, **kwargs)
        return output if torch.is_grad_enabled() else tree_map(detached, output)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__})


def detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x
