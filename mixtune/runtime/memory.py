"""Tell how much memory of a device this process can have, and the most that it has had."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import torch

_RESET_PEAK = "5"  # written to clear_refs (proc(5)): Linux counts the largest resident size from now on
# A container's limit and usage: version 2 of control groups, then version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class PeakMemory:
    """The most memory, in bytes, that this process has had since this object was made.

    On a GPU: what torch has reserved. On a CPU: the resident size, interpreter and libraries included; where the system
    cannot reset the peak, that of the process's whole life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")

    def bytes(self) -> float:
        """Return the peak so far."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self._device))
        peak = _proc_bytes(Path("/proc/self/status"), "VmHWM")
        unit = 1 if sys.platform == "darwin" else 1024
        return peak or float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Return the bytes that this process can have: what is free of the device and what it holds already.

    On a CPU: of the machine, or of the container where that is less. root: where /proc and /sys are.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    free = _proc_bytes(root / "proc/meminfo", "MemAvailable")
    if free is None:
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for names in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limit, used = (float((root / "sys/fs/cgroup" / name).read_text()) for name in names)
            free = min(free, limit - used)
    return free + (_proc_bytes(root / "proc/self/status", "VmRSS") or 0.0)


def _proc_bytes(file: Path, name: str) -> float | None:
    """Return the line ``name: 123 kB`` of a file in /proc in bytes; None where there is none."""
    try:
        match = re.search(rf"^{name}:\s*(\d+) kB$", file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024.0 * int(match[1]) if match else None


def count_oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """Return how many processes this machine's kernel has killed for want of memory since it started; 0 if unknown."""
    try:
        match = re.search(r"^oom_kill (\d+)$", vmstat.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0
