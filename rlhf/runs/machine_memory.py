"""Memory of this machine: of a GPU, or main memory within the limits of the process's cgroups (containers, Slurm)."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch


def free_memory(device: torch.device) -> int:
    """Returns the bytes that this process may still take on a device; 0 where that is not known.

    On a GPU, these are the free ones and those that PyTorch's allocator holds without a tensor in them.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return main_memory()[0] if device.type in ("cpu", "mps") else 0


def main_memory() -> tuple[int, int]:
    """Returns the bytes of main memory: those that are free, and all."""
    memory = psutil.virtual_memory()
    free, total = memory.available, memory.total
    for limit, used in cgroup_limits():
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def cgroup_limits(own: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup") -> Iterator[tuple[int, int]]:
    """Yields (limit, used) in bytes for each cgroup with a limit that this process is in; none on other systems.

    Files in the cache of which the kernel would drop first do not count as used. A container may see its own cgroup as
    the root, and not the path that /proc names, so all folders above the path are looked at.

    Args:
        own: file with a line `number:controllers:path` for each hierarchy; version 2 names no controllers.
        root: folder in which the hierarchies are mounted.
    """
    lines = Path(own).read_text(encoding="utf-8").splitlines() if Path(own).is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, names = Path(root), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top, names = Path(root, "memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(top))):
            limit, used, cache = names
            text = _read(group / limit)
            if text.isdigit():  # version 2 says "max" where there is none
                stat = dict(row.split() for row in _read(group / "memory.stat").splitlines() if row.count(" ") == 1)
                yield int(text), max(0, int(_read(group / used) or 0) - int(stat.get(cache, 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
