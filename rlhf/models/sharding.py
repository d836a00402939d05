"""Weights of which each process holds a part: FSDP2 makes DTensors of the parameters, DeepSpeed ZeRO-3 empties them.

Where nothing is sharded, a parameter's part is the parameter, and all of this does nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import is_deepspeed_zero3_enabled


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of the weights, so that all have to make the same passes at the same time."""
    kinds = (FSDPModule, FullyShardedDataParallel)
    return is_deepspeed_zero3_enabled() or any(isinstance(module, kinds) for module in model.modules())


def local_shard(parameter: nn.Parameter) -> Tensor:
    """What this process holds of a parameter, to read and write: of its shape, or flat and padded under ZeRO-3."""
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.detach().to_local() if isinstance(parameter, DTensor) else parameter.detach()


def shard_of(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """The part of a full `tensor` that this process holds of `parameter`; all processes have the tensor."""
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        begin = size * dist.get_rank(parameter.ds_process_group)
        part = tensor.flatten()[begin : begin + size]
        return F.pad(part, (0, size - len(part))).to(parameter.ds_tensor.device)
    if isinstance(parameter, DTensor):
        tensor = tensor.to(parameter.device)
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    return tensor.to(parameter.device)


def full_tensor(part: Tensor, parameter: nn.Parameter) -> Tensor:
    """The full tensor of which every process passes its part."""
    if hasattr(parameter, "ds_tensor"):
        group, part = parameter.ds_process_group, part.to(parameter.device)
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part, group=group)
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
    if isinstance(parameter, DTensor):
        layout = {"shape": parameter.shape, "stride": parameter.stride()}
        return DTensor.from_local(part, parameter.device_mesh, parameter.placements, **layout).full_tensor()
    return part


def release(model: nn.Module) -> None:
    """Lets go of the weights that are still together after a pass, since they do not see what is written to the parts.

    FSDP keeps those of the outermost module, and meanwhile shows them as the parameters of `model`.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            parameter.partition()


@contextmanager
def gathered(model: nn.Module, parameters: Iterable[nn.Parameter], keep: bool) -> Iterator[None]:
    """Within it `parameters` of `model` are whole, to be saved, on processes that `keep` them; `release` comes before.

    FSDP's are gathered one at a time, and kept in the memory of the CPU.
    """
    parameters = list(parameters)
    if any(hasattr(parameter, "ds_tensor") for parameter in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters):
            yield
        return
    kept = {}
    for parameter in parameters:
        if isinstance(parameter, DTensor):
            full = parameter.detach().full_tensor()
            if keep:
                kept[id(parameter)] = nn.Parameter(full.cpu(), requires_grad=False)
    places = [(module, name, parameter) for module in model.modules() for name, parameter in module._parameters.items()]
    places = [(module, name, parameter) for module, name, parameter in places if id(parameter) in kept]
    for module, name, parameter in places:
        module._parameters[name] = kept[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter
