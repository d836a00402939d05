"""Decoder layers by torch.compile, each for itself: all layers of a model share their graphs.

A compiled forward rounds otherwise than an eager one, and the graph for training otherwise than the one for inference,
because it fuses other operations. PPO compares log-probabilities of passes with and without gradients, and of trained
and frozen adapters. So there is only one graph: passes without gradients run the graph for training layer by layer,
and free what each layer keeps for backward; frozen adapters are inputs like trained ones (`lora_factors`).
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo.exc
import torch._functorch.config
import torch.fx.experimental._config
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel, Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf.errors import first_line

logger = logging.getLogger(__name__)

# A pass of fewer tokens is not worth a graph of its own: the trial passes of `find_unembedding` have two.
MIN_TOKENS = 256
GRAPHS = 64  # torch compiles at most 8 for a function: here one for each number of adapters, rank and mode

COMPILE: dict[str, Any] = {
    "help": "Compile the decoder layers with torch.compile. Without effect with FSDP and DeepSpeed, and in PPO if not "
    "all roles are plain LoRA adapters of one base; the log says so. auto: off; it gains little on CPUs, and is "
    "not measured on GPUs.",
    "nargs": "?",
    "const": True,
}  # metadata of the field


def compile_if_asked(trainer: Trainer, lm: PreTrainedModel, obstacle: str | None = None) -> bool:
    """Compiles the decoder layers of `lm` in place if the trainer's option `compile` is true; returns True if it did.

    Where that is impossible, a line in the log says why, and the layers stay eager.

    Args:
        obstacle: None, or a reason why the stage cannot use compiled layers.
    """
    args: Any = trainer.args  # TRL's own, which scripts may pass, have no such option
    if not (hasattr(args, "compile") and args.compile):
        return False
    obstacle = obstacle or layers_obstacle(trainer, lm) or compiler_obstacle(args.device)
    if obstacle:
        logger.warning("layers are not compiled, because %s", obstacle)
        return False
    compile_layers(lm)
    return True


def layers_obstacle(trainer: Trainer, lm: nn.Module) -> str | None:
    """Returns None, or why the layers of `lm` cannot be compiled."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or trainer.args.n_gpu > 1:
        return "FSDP, DeepSpeed or DataParallel runs them"
    if not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        return f"torch {torch.__version__} is too old"
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
    torch._functorch.config.force_non_lazy_backward_lowering = True  # else backward fails, when it is too late
    layers = decoder_layers(lm)
    classes = {cls: compiled_class(cls, backend) for cls in {type(layer) for layer in layers}}
    for layer in layers:
        layer.__class__ = classes[type(layer)]


def compiled_class(cls: type[nn.Module], backend: str) -> type[nn.Module]:
    """A subclass with a compiled forward, which transformers wraps in its checkpoint as it does with any layer.

    Recomputation in backward runs the compiled forward. Passes with a cache, which decode, stay eager. After a failure,
    layers that have run compiled try on, because backward may have to recompute them in the same way.
    """
    plain: Callable[..., Any] = cls.forward.__wrapped__  # pyright: ignore[reportFunctionMemberAccess]  # no checkpoint

    def rows_joined(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The plain forward for hidden states [R, B / R, T, H]."""
        return plain(self, hidden_states.flatten(0, 1), *args, **kwargs)

    compiled = torch.compile(rows_joined, dynamic=True, fullgraph=True, backend=backend)
    failed: list[Exception] = []
    working: set[nn.Module] = set()

    def forward(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        decodes = kwargs.get("use_cache") or kwargs.get("past_key_values") is not None
        given_up = failed and self not in working
        if given_up or decodes or hidden_states[..., 0].numel() < MIN_TOKENS:
            return plain(self, hidden_states, *args, **kwargs)
        try:
            with torch.enable_grad():  # also without gradients: see above
                leaf = hidden_states if hidden_states.requires_grad else hidden_states.detach().requires_grad_()
                rows = leaf.unflatten(0, (adapters_of(self), -1))
                torch._dynamo.mark_static(rows, 0)
                output = compiled(self, rows, *args, **kwargs)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            if not failed:
                logger.warning("layers are not compiled, because %s failed: %s", cls.__name__, first_line(error))
            failed.append(error)
            working.discard(self)
            return plain(self, hidden_states, *args, **kwargs)
        working.add(self)
        return output if torch.is_grad_enabled() else tree_map(detached, output)

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__})


def adapters_of(layer: nn.Module) -> int:
    """Number R of adapters that share the rows of a pass (`SharedBase.use`).

    Each takes B / R rows. In a graph for any B, torch does not know that R divides B, so its kernels would divide whole
    numbers for each element; for any B / R it need not.
    """
    return next((len(vars(module)["factors"][0]) for module in layer.modules() if "factors" in vars(module)), 1)


def detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x
