"""Environment: the machine and the versions that a result was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mixtune import __version__
from mixtune.runtime.device import available_cpus

PACKAGES = ("torch", "torchvision", "timm", "numpy", "ray", "optuna", "mlflow")


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Processor, GPU, system, Python and the versions of those ``packages`` that are installed."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    found = {
        "cpu": f"{available_cpus()} of {os.cpu_count()} cores, {_processor()}",
        "gpu": ", ".join(gpus) or "none",
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "mixtune": __version__,
    }
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name where the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
