"""Memory: how much of it a device has free, and the most that this process has had of it."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from pathlib import Path

import torch

_FORGET_PEAK = "5"  # to Linux: count the largest resident size from now on (proc(5), clear_refs)
# Of a container: the limit, and what of it is used. Version 2 of control groups, then version 1.
_GROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


class Peak:
    """The most memory, in bytes, that this process has had since this was made.

    On a GPU what torch has reserved of it, on a CPU what is resident, interpreter and libraries included; where the
    system cannot forget an earlier peak, that of the process's whole life.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_FORGET_PEAK, encoding="ascii")

    def bytes(self) -> float:
        """The peak so far."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_reserved(self._device))
        peak = _kilobytes(Path("/proc/self/status"), "VmHWM")
        if peak is not None:
            return peak
        unit = 1 if sys.platform == "darwin" else 1024
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def room(device: torch.device, root: Path = Path("/")) -> float:
    """Bytes that this process could have: what is free of the device, and what it has already.

    On a CPU of the machine, or of the container where that is less.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    free = _kilobytes(root / "proc/meminfo", "MemAvailable")
    if free is None:
        free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit, used in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            most, taken = (float((root / "sys/fs/cgroup" / name).read_text()) for name in (limit, used))
            free = min(free, most - taken)
    return free + (_kilobytes(root / "proc/self/status", "VmRSS") or 0.0)


def _kilobytes(file: Path, name: str) -> float | None:
    """A line ``name: 123 kB`` of a file of Linux, in bytes; None where there is none."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024.0 * int(found[1]) if found else None
