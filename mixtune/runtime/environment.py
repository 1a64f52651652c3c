"""Environment: describe the machine and the versions that a result was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mixtune import __version__
from mixtune.runtime.device import available_cpus

REPORTED_PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray", "optuna", "mlflow")


def describe_environment(packages: Sequence[str] = REPORTED_PACKAGES) -> dict[str, str]:
    """Return processor, GPU, system, Python and the versions of those ``packages`` that are installed."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    description = {
        "cpu": f"{available_cpus()} of {os.cpu_count()} cores, {_processor()}",
        "gpu": ", ".join(gpus) or "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "mixtune": __version__,
    }
    for name in packages:
        try:
            description[name] = version(name)
        except PackageNotFoundError:
            continue
    return description


def _processor() -> str:
    """Return the processor's name where the system has it, else its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
