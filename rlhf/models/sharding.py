"""Sharded weights. FSDP2 makes DTensors of the parameters; DeepSpeed ZeRO-3 empties them and attaches `ds_tensor`.

Without sharding, the shard of a parameter is the parameter, and gathering and releasing do nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations import is_deepspeed_zero3_enabled

if TYPE_CHECKING:

    class PartitionedParameter(nn.Parameter):
        """The attributes that ZeRO-3 gives to a parameter."""

        ds_tensor: Tensor  # this process's shard, flat and padded
        ds_process_group: dist.ProcessGroup
        ds_numel: int
        ds_shape: torch.Size

        def partition(self) -> None: ...


def is_partitioned(parameter: nn.Parameter) -> "TypeGuard[PartitionedParameter]":
    """True if ZeRO-3 shards the parameter."""
    return hasattr(parameter, "ds_tensor")


def is_sharded(model: nn.Module) -> bool:
    """True if processes hold shards of the weights, so that all must make the same passes at the same time."""
    kinds = (FSDPModule, FullyShardedDataParallel)
    return is_deepspeed_zero3_enabled() or any(isinstance(module, kinds) for module in model.modules())


def local_shard(parameter: nn.Parameter) -> Tensor:
    """Returns this process's shard of a parameter, to read and write. Under ZeRO-3 it is flat and padded."""
    if is_partitioned(parameter):
        return parameter.ds_tensor
    shard = parameter.detach()
    return shard.to_local() if isinstance(shard, DTensor) else shard


def shard_of(tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    """Returns this process's shard of a full `tensor`, cut like `parameter`; all processes must have the tensor."""
    if is_partitioned(parameter):
        size = parameter.ds_tensor.numel()
        begin = size * dist.get_rank(parameter.ds_process_group)
        shard = tensor.flatten()[begin : begin + size]
        return F.pad(shard, (0, size - len(shard))).to(parameter.ds_tensor.device)
    if isinstance(parameter, DTensor):
        tensor = tensor.to(parameter.device)
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    return tensor.to(parameter.device)


def full_tensor(shard: Tensor, parameter: nn.Parameter) -> Tensor:
    """Gathers the full tensor; each process passes its shard, and all processes must call."""
    if is_partitioned(parameter):
        group, shard = parameter.ds_process_group, shard.to(parameter.device)
        shards = [torch.empty_like(shard) for _ in range(dist.get_world_size(group))]
        dist.all_gather(shards, shard, group=group)
        return torch.cat(shards)[: parameter.ds_numel].view(parameter.ds_shape)
    if isinstance(parameter, DTensor):
        layout = {"shape": parameter.shape, "stride": parameter.stride()}
        return DTensor.from_local(shard, parameter.device_mesh, parameter.placements, **layout).full_tensor()
    return shard


def release(model: nn.Module) -> None:
    """Frees full weights that are still gathered after a pass, since writes to the shards do not reach them.

    FSDP keeps those of the outermost module gathered, as the parameters of `model`.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for parameter in model.parameters():
        if is_partitioned(parameter):
            parameter.partition()


@contextmanager
def gathered(model: nn.Module, parameters: Iterable[nn.Parameter], keep: bool) -> Iterator[None]:
    """Context in which `parameters` of `model` are full, to be saved, on processes with `keep`. Call `release` before.

    FSDP's parameters are gathered one at a time, and kept on the CPU.
    """
    parameters = list(parameters)
    if any(is_partitioned(parameter) for parameter in parameters):
        import deepspeed  # pyright: ignore[reportMissingImports]

        with deepspeed.zero.GatheredParameters(parameters):
            yield
        return
    full_parameters = {}
    for parameter in parameters:
        shard = parameter.detach()
        if isinstance(shard, DTensor):
            full = shard.full_tensor()
            if keep:
                full_parameters[id(parameter)] = nn.Parameter(full.cpu(), requires_grad=False)
    replaced = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in full_parameters
    ]
    for module, name, parameter in replaced:
        module._parameters[name] = full_parameters[id(parameter)]
    try:
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter
