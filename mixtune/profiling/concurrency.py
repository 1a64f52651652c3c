"""Slots: what a trial takes of the machine, and how many trials run at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mixtune.errors import InputError
from mixtune.search.space import Space


@dataclass(frozen=True)
class Concurrency:
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

    def with_folds(self, folds: int) -> Concurrency:
        """The same processes for trials that train this many folds at once."""
        return replace(self, folds=folds, at_once=max(1, self.at_once * self.folds // folds))

    def __str__(self) -> str:
        each = f"{self.cpus} CPU core{'s' * (self.cpus > 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        each = f"{self.workers} workers of {each}" if self.workers > 1 else each
        return f"{self.at_once} at once, each on " + (
            f"{self.folds} folds at once of {each}" * (self.folds > 1) or each
        )


def concurrency_for(
    space: Space, cpus: float, gpus: float, nodes: Sequence[tuple[float, float]] | None = None
) -> Concurrency:
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
    machines = nodes or [(cpus, gpus)]
    most = max(g for _, g in machines)
    if gpu > most:
        raise InputError(f"resources.gpus: a trial asks for {gpu:g} GPUs and no machine has more than {most:g} of them")
    # With this many a machine's GPUs are all taken, and so are those of every machine that has more cores.
    cpu = want.cpus or (min(int(c) // _shares(g, gpu) for c, g in machines if _shares(g, gpu)) if gpu else 1) or 1
    if cpu > (there := max(c for c, _ in machines)):
        no_more = f"no machine has more than {there:g}" if nodes else f"there are {there:g}"
        raise InputError(f"resources.cpus: a trial asks for {cpu} CPU cores and {no_more}")
    fit = sum(processes_per_machine(cpu, gpu, machines))
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
    return Concurrency(cpu, gpu, at_once, want.workers, folds=want.folds_at_once)


def processes_per_machine(cpu: int, gpu: float, nodes: Sequence[tuple[float, float]]) -> list[int]:
    """On each of these machines, how many processes that take so many CPUs and GPUs there is room for."""
    return [min(int(c) // cpu, _shares(g, gpu)) if gpu else int(c) // cpu for c, g in nodes]


def unused_gpus(space: Space, slots: Concurrency, nodes: Sequence[tuple[float, float]]) -> str:
    """How many GPUs of these machines no trial takes, and why; empty where every one is taken."""
    if not slots.gpus:
        return ""
    there, want = sum(g for _, g in nodes), space.resources
    # Of a GPU that is shared, what is over belongs to nobody.
    all_used = sum(_shares(g, slots.gpus) for _, g in nodes) * slots.gpus if slots.gpus < 1 else there
    left = int(all_used - slots.at_once * slots.processes * slots.gpus / slots.pack + 1e-9)
    if left < 1:
        return ""
    cores = min(int(c) // n for c, g in nodes if (n := _shares(g, slots.gpus)))
    if want.at_once is not None and slots.at_once >= want.at_once:
        why = f"resources.at_once is {want.at_once}"
    elif cores >= slots.cpus:
        each = " + ".join(f"{g:g}" for _, g in nodes if g)
        why = f"a trial takes {slots.processes * slots.gpus:g}, and machines have {each}"
    elif cores:
        why = f"resources.cpus is {slots.cpus}, and with {cores} all would be used"
    else:
        why = "a machine has fewer CPU cores than trials its GPUs could hold"
    return f"{left} of {there:g} GPUs stay{'s' * (left == 1)} unused: {why}"


def _shares(gpus: float, gpu: float) -> int:
    """How often ``gpu`` of them can be had, where less than one is of a single one."""
    return int(gpus) * int(1 / gpu + 1e-9) if gpu < 1 else int(gpus / gpu)


def local_resources() -> tuple[int, int]:
    """CPU cores and GPUs of this machine."""
    from mixtune.runtime.device import available_cpus

    return available_cpus(), torch.cuda.device_count()
