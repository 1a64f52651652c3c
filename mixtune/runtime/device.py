"""Device: where a run is computed, the CPU cores at hand, and how long the device takes."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch

from mixtune.errors import InputError, raised_on

# In plain RuntimeErrors of a device that does not work any more: CUDA's driver, cuDNN and cuBLAS.
_LOST = (
    "CUDA error",
    "CUDA driver error",
    "No CUDA GPUs are available",
    *(f"{library}_STATUS_{what}" for library in ("CUDNN", "CUBLAS") for what in ("EXECUTION_FAILED", "INTERNAL_ERROR")),
)


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises InputError when "cuda" is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def lost(err: BaseException) -> bool:
    """Whether a device was lost (an ECC error, an illegal access, one that fell off the bus): of no use to the process
    any more, while another process may well find it, or another one, in order. To be asked after ``shortage.lacking``.
    """
    return any(
        isinstance(one, torch.AcceleratorError)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _LOST))
        for one in raised_on(err)
    )


def default_generator(device: torch.device) -> torch.Generator:
    """What dropout draws from. (torch.manual_seed takes 0.2 ms, for it seeds every kind of device.)"""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def available_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Watch(Protocol):
    """Tells how long the device takes."""

    def mark(self) -> Any:
        """The moment when the device has done what it was given so far; nobody waits for it."""

    def seconds(self, began: Any, ended: Any) -> float:
        """Between two marks. Waits for the second."""


class Events:
    """Marks in the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """An event after the work issued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        """Between two events, also where the device had to wait for the host."""
        ended.synchronize()
        seconds: float = began.elapsed_time(ended) / 1000
        return seconds
