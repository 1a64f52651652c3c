"""Where a run is computed: the device and the CPU cores at hand."""

from __future__ import annotations

import os

import torch

from mixtune.errors import InputError


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one. Raises InputError when "cuda" is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device: cuda was asked for, but torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def default_generator(device: torch.device) -> torch.Generator:
    """What dropout draws from. (torch.manual_seed takes 0.2 ms, for it seeds every kind of device.)"""
    return torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator


def available_cpus() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
