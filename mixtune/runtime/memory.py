"""Memory: measure how much of a device's memory is free, and this process's peak."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import torch

_RESET_PEAK = "5"  # to Linux: count the largest resident size from now on (proc(5), clear_refs)
# A container's limit and usage: version 2 of control groups, then version 1.
_CONTROL_GROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class PeakMemory:
    """The largest amount of memory that this process had since the object was made.

    On a GPU what torch has reserved; on a CPU what is resident, with interpreter and libraries. Where the system cannot
    reset the peak, it is that of the process's whole life.
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
        """Return the peak so far, in bytes."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self._device))
        peak = _read_kilobytes(Path("/proc/self/status"), "VmHWM")
        if peak is not None:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def available_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Return the bytes that this process could use: what is free on the device, plus what it has already.

    On a CPU this is the memory of the machine, or of the container where that is less.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    free = _read_kilobytes(root / "proc/meminfo", "MemAvailable")
    if free is None:
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for names in _CONTROL_GROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limit, usage = (float((root / "sys/fs/cgroup" / name).read_text()) for name in names)
            free = min(free, limit - usage)
    return free + (_read_kilobytes(root / "proc/self/status", "VmRSS") or 0.0)


def _read_kilobytes(file: Path, name: str) -> float | None:
    """Return the bytes in a line ``name: 123 kB`` of a file of Linux; None where there is none."""
    try:
        match = re.search(rf"^{name}:\s*(\d+) kB$", file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024.0 * int(match[1]) if match else None
