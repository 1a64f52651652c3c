"""Where a run is computed: the device and the CPU cores at hand."""

from __future__ import annotations

import os

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
