"""The machine that a recipe is for: cores, memory, GPUs."""

from dataclasses import dataclass

import torch

from rlhf.models.precision import cpu_has_bf16
from rlhf.runs.console import gigabytes
from rlhf.runs.launch import count_cores, count_gpus
from rlhf.runs.machine_memory import main_memory


@dataclass(frozen=True)
class Machine:
    """Parts of this machine that a stage can use.

    Attributes:
        cores: of the CPU, for this process.
        memory: bytes of main memory, within the limits of cgroups.
        gpus: number of accelerators.
        gpu: name of the first one; "" without any.
        gpu_memory: bytes of the smallest; main memory where it is shared, as on a Mac; 0 without any.
        bf16: True if the accelerator, or the CPU where there is none, computes in bfloat16.
    """

    cores: int
    memory: int
    gpus: int = 0
    gpu: str = ""
    gpu_memory: int = 0
    bf16: bool = False

    def __str__(self) -> str:
        if not self.gpus:
            return f"{self.cores} CPU core{'s' * (self.cores > 1)}, {gigabytes(self.memory)} GB of memory, no GPU"
        return f"{self.gpus} x {self.gpu} with {gigabytes(self.gpu_memory)} GB, {self.cores} CPU cores"


def this_machine() -> Machine:
    """Returns the machine that this process runs on."""
    cores, memory, gpus = count_cores(), main_memory()[1], count_gpus()
    if not gpus:
        return Machine(cores, memory, bf16=cpu_has_bf16())
    if not torch.cuda.is_available():
        return Machine(cores, memory, gpus, str(torch.accelerator.current_accelerator()), memory)
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(gpus)]
    return Machine(cores, memory, gpus, torch.cuda.get_device_name(0), min(sizes), torch.cuda.is_bf16_supported(False))
