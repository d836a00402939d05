"""Speed of this machine: FLOPs per second of a large matmul, and bytes per second of a copy."""

import statistics
import time
from collections.abc import Callable

import torch


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Returns the FLOPs per second of a product of two matrices [size, size].

    Args:
        size: None: 8,192 on a GPU, which takes milliseconds; 512 on a CPU.
    """
    size = size or (512 if device.type == "cpu" else 8192)
    a, b = torch.randn(2, size, size, dtype=dtype, device=device)
    return 2 * size**3 / seconds_of(lambda: a @ b, device)


def copied_bytes_per_s(device: torch.device, size: int | None = None) -> float:
    """Returns the bytes per second that a large copy reads and writes.

    Args:
        size: bytes that are copied. None: 2 GB on a GPU, 64 MB on a CPU, more than its caches hold.
    """
    size = size or (2**26 if device.type == "cpu" else 2**31)
    source, target = torch.zeros(2, size // 4, dtype=torch.float32, device=device)
    return 2 * size / seconds_of(lambda: target.copy_(source), device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of short work: on a GPU the median of 20 calls, on a CPU, which others use, the fastest."""
    times = all_seconds(work, 20)
    return min(times) if device.type == "cpu" else statistics.median(times)


def median_seconds(work: Callable[[], object], times: int, warm_up: int = 2) -> float:
    """Returns the median seconds of `work`, after `warm_up` calls that are not timed."""
    return statistics.median(all_seconds(work, times, warm_up))


def all_seconds(work: Callable[[], object], times: int, warm_up: int = 2) -> list[float]:
    """Returns the seconds of each call of `work`, after `warm_up` calls that are not timed."""
    seconds = []
    for call in range(warm_up + times):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        if call >= warm_up:
            seconds.append(time.perf_counter() - start)
    return seconds


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
