"""Device: choose where a run is computed, count its CPU cores, and time its work."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch

from mixtune.errors import InputError, error_chain

# What plain RuntimeErrors contain when a device no longer works: those of CUDA's driver, cuDNN and cuBLAS.
_DEVICE_LOST_MESSAGES = (
    "CUDA error",
    "CUDA driver error",
    "No CUDA GPUs are available",
    *(f"{library}_STATUS_{code}" for library in ("CUDNN", "CUBLAS") for code in ("EXECUTION_FAILED", "INTERNAL_ERROR")),
)


def pick_device(name: str) -> torch.device:
    """Return the device called "cpu", "cuda" or "auto", which is the GPU where there is one.

    Raise InputError when "cuda" is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def is_device_lost(err: BaseException) -> bool:
    """Return whether this process can no longer use its device (an ECC error, an illegal access, one off the bus).

    Another process may well be able to. Ask ``oom.is_out_of_memory`` first, whose errors look alike.
    """
    return any(
        isinstance(cause, torch.AcceleratorError)
        or (isinstance(cause, RuntimeError) and any(message in str(cause) for message in _DEVICE_LOST_MESSAGES))
        for cause in error_chain(err)
    )


def default_generator(device: torch.device) -> torch.Generator:
    """Return what dropout draws from. (torch.manual_seed takes 0.2 ms, because it seeds every kind of device.)"""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def available_cpus() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DeviceTimer(Protocol):
    """Measures how long work takes on a device."""

    def mark(self) -> Any:
        """Mark the moment when the device has done what was issued so far, without waiting for it."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two marks. Waits for the second."""


class CudaTimer:
    """A timer of events in the current stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        """Record an event after the work that was issued so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two events; they include the time in which the device waited for the host."""
        end.synchronize()
        seconds: float = start.elapsed_time(end) / 1000
        return seconds
