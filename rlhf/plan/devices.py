"""Devices that a plan is for: memory and speeds of named GPUs, or of this machine, measured in a second."""

from dataclasses import dataclass

import torch

from rlhf.errors import InputError
from rlhf.models.machine_speed import copied_bytes_per_s, matmul_flops_per_s
from rlhf.models.model_sizes import Sharding
from rlhf.runs.launch import count_gpus, threads
from rlhf.runs.machine_memory import main_memory

# A large bfloat16 matmul's share of the data sheet's dense peak: 775 to 793 of 989 TFLOP/s on one H200.
MATMUL_SHARE = 0.79


@dataclass(frozen=True)
class Device:
    """A device and what it can do.

    Attributes:
        memory: bytes, 10^9 to the GB.
        matmul: FLOPs per second of a large matmul, by the precision of its product, {"bfloat16", "float32"}.
        bandwidth: bytes per second of its memory.
        source: where the numbers are from.
    """

    name: str
    kind: str  # "gpu" or "cpu"
    memory: float
    matmul: dict[str, float]
    bandwidth: float
    source: str


@dataclass(frozen=True)
class Launch:
    """Launch of a stage, beside its own options."""

    sharding: Sharding
    processes: int
    device: Device


def _gpu(name: str, memory: int, bfloat16: float, float32: float, bandwidth: float) -> Device:
    """A GPU by its data sheet: GB, dense TFLOP/s in bfloat16 and (without TF32) in float32, TB/s."""
    matmul = {"bfloat16": MATMUL_SHARE * bfloat16 * 1e12, "float32": MATMUL_SHARE * float32 * 1e12}
    source = f"data sheet, {MATMUL_SHARE:.0%} of its matmul peak"
    return Device(name, "gpu", memory * 1e9, matmul, bandwidth * 1e12, source)


GPUS = {
    "h200": _gpu("H200", 141, 989, 67, 4.8),
    "h100": _gpu("H100 80 GB", 80, 989, 67, 3.35),
    "a100": _gpu("A100 80 GB", 80, 312, 19.5, 2.04),
    "a100-40": _gpu("A100 40 GB", 40, 312, 19.5, 1.56),
    "l40s": _gpu("L40S", 48, 362, 91.6, 0.864),
    "4090": _gpu("RTX 4090", 24, 165, 82.6, 1.01),
    "a10": _gpu("A10", 24, 125, 31.2, 0.6),
    "l4": _gpu("L4", 24, 121, 30.3, 0.3),
}


def find_device(name: str | None, use_cpu: bool = False, processes: int = 1) -> Device:
    """Returns a GPU by name, or this machine's device for None.

    Args:
        use_cpu: the launch is for CPUs, even on a machine with a GPU.
        processes: on a CPU they share its cores and its memory.

    Raises:
        InputError: no such name.
    """
    if name is not None:
        if name.lower() not in GPUS:
            raise InputError(f"--gpu {name} is not known. Choose from {', '.join(GPUS)}, or leave it out for this one.")
        return GPUS[name.lower()]
    return this_cpu(processes) if use_cpu or not count_gpus() else this_gpu()


def this_gpu() -> Device:
    """Returns this machine's first GPU; its speeds are measured."""
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    matmul = {name: matmul_flops_per_s(device, getattr(torch, name)) for name in ("bfloat16", "float32")}
    bandwidth = copied_bytes_per_s(device)
    return Device(properties.name, "gpu", properties.total_memory, matmul, bandwidth, "matmul and copy measured now")


def this_cpu(processes: int = 1) -> Device:
    """Returns what a process on this machine's CPU has.

    The speed of a matmul is one thread's, times the threads of the process: where other programs use the cores,
    several threads wait for the slowest.
    """
    device, before, number = torch.device("cpu"), torch.get_num_threads(), threads(processes)
    torch.set_num_threads(1)
    try:
        matmul = {name: number * matmul_flops_per_s(device, getattr(torch, name)) for name in ("bfloat16", "float32")}
        bandwidth = copied_bytes_per_s(device)
    finally:
        torch.set_num_threads(before)
    name = f"CPU, {number} thread{'s' * (number > 1)} a process"
    memory = main_memory()[1] / processes
    return Device(name, "cpu", memory, matmul, bandwidth, "matmul and copy of one thread measured now")
