"""Slots: what a trial takes of the machine, and how many trials run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mixtune.errors import InputError
from mixtune.study.space import Space


@dataclass(frozen=True)
class Slots:
    """What one trial takes of the machine, each of its ``workers`` by itself, and how many trials run at once, ``pack``
    of them in one process of a GPU, together ``gain`` times as fast as one. folds: that a trial trains at once, each
    on as many workers.
    """

    cpus: int
    gpus: float
    at_once: int
    workers: int = 1
    pack: int = 1
    gain: float = 1.0
    folds: int = 1

    @property
    def processes(self) -> int:
        """How many a trial has."""
        return self.workers * self.folds

    def with_folds(self, folds: int) -> Slots:
        """The same processes for trials that train this many folds at once."""
        return replace(self, folds=folds, at_once=max(1, self.at_once * self.folds // folds))

    def __str__(self) -> str:
        each = f"{self.cpus} CPU core{'s' * (self.cpus > 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        each = f"{self.workers} workers of {each}" if self.workers > 1 else each
        return f"{self.at_once} at once, each on " + (
            f"{self.folds} folds at once of {each}" * (self.folds > 1) or each
        )


def fitting(space: Space, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]] | None = None) -> Slots:
    """What one trial takes and how many run at once on this many CPUs and GPUs. Raises InputError when none fits.

    nodes: CPUs and GPUs of each machine, where there are several: a worker needs its share on one of them.
    """
    want = space.resources
    if space.device == "cuda" and want.gpus == 0:
        raise InputError("resources.gpus is 0 but device is cuda; give a trial a share of a GPU, or set device to cpu")
    gpu = want.gpus if want.gpus is not None else float(gpus >= 1 and space.device != "cpu")
    if gpu > gpus:
        raise InputError(
            f"resources.gpus: a trial asks for {gpu:g} GPUs and there are {gpus:g}; set resources.gpus=0 for CPUs"
        )
    by_gpu = int(gpus / gpu + 1e-9) if gpu else None
    cpu = want.cpus or (max(1, int(cpus) // by_gpu) if by_gpu else 1)
    if cpu > cpus:
        raise InputError(f"resources.cpus: a trial asks for {cpu} CPU cores and there are {cpus:g}")
    fit = sum(min(int(c) // cpu, int(g / gpu + 1e-9)) if gpu else int(c) // cpu for c, g in (nodes or [(cpus, gpus)]))
    if fit < want.processes:
        each = f"{cpu} CPU core{'s' * (cpu > 1)}" + (f" and {gpu:g} GPU" if gpu else "")
        key, folds = "workers", ""
        if fit >= want.workers:
            key, folds = "folds_at_once", f"{want.folds_at_once} folds at once on "
        raise InputError(
            f"resources.{key}: a trial asks for {folds}{want.workers} worker{'s' * (want.workers > 1)} of {each} each, "
            f"and there is room for {fit}"
        )
    at_once = min(want.at_once or fit, fit // want.processes)
    return Slots(cpu, gpu, at_once, want.workers, folds=want.folds_at_once)


def local_resources() -> tuple[int, int]:
    """CPU cores and GPUs of this machine."""
    from mixtune.training.task import available_cpus

    return available_cpus(), torch.cuda.device_count()
