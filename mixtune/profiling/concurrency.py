"""Decide what a trial takes of the machines, and how many trials run at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from mixtune.errors import InputError
from mixtune.profiling.packing import best_pack
from mixtune.runtime.device import available_cpus
from mixtune.search.space import Space

MOST_PACKED = 16  # trials on a GPU, where the space does not say how many

Node = tuple[float, float]  # CPU cores and GPUs of a machine


@dataclass(frozen=True)
class Concurrency:
    """What each process of a trial takes of the machines, and how many trials run at once.

    A trial trains ``folds`` folds at once, each on ``workers`` processes. pack: trials that share one process of a GPU;
    together they are ``gain`` times as fast as one.
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
        """Return how many processes a trial has."""
        return self.workers * self.folds

    def with_folds(self, folds: int) -> Concurrency:
        """Return the same processes for trials that train this many folds at once."""
        return replace(self, folds=folds, at_once=max(1, self.at_once * self.folds // folds))

    def __str__(self) -> str:
        each = describe_share(self.cpus, self.gpus)
        each = f"{self.workers} workers of {each}" if self.workers > 1 else each
        each = f"{self.folds} folds at once of {each}" if self.folds > 1 else each
        return f"{self.at_once} at once, each on {each}"


def concurrency_for(space: Space, nodes: Sequence[Node]) -> Concurrency:
    """Return what a trial takes of these machines. Raises InputError when none has room for it."""
    wanted = space.resources
    all_gpus = sum(gpus for _, gpus in nodes)
    if space.device == "cuda" and wanted.gpus == 0:
        raise InputError("resources.gpus is 0 but device is cuda; give a trial a share of a GPU, or set device to cpu")
    gpu = wanted.gpus if wanted.gpus is not None else float(all_gpus >= 1 and space.device != "cpu")
    if gpu > all_gpus:
        raise InputError(
            f"resources.gpus: a trial asks for {gpu:g} GPUs and there are {all_gpus:g}; set resources.gpus=0 for CPUs"
        )
    if gpu > (most := max(gpus for _, gpus in nodes)):
        raise InputError(f"resources.gpus: a trial asks for {gpu:g} GPUs and no machine has more than {most:g} of them")
    cpu = wanted.cpus or 1
    if gpu and wanted.cpus is None:
        # With this many the GPUs of the machine with the fewest cores are all taken, and so are everyone's.
        cpu = min(int(cpus) // shares for cpus, gpus in nodes if (shares := _gpu_shares(gpus, gpu))) or 1
    if cpu > (most := max(cpus for cpus, _ in nodes)):
        raise InputError(f"resources.cpus: a trial asks for {cpu} CPU cores and no machine has more than {most:g}")
    room = sum(_processes(node, cpu, gpu) for node in nodes)
    if room < wanted.processes:
        key = "workers" if room < wanted.workers else "folds_at_once"
        folds = f"{wanted.folds_at_once} folds at once on " * (key == "folds_at_once")
        raise InputError(
            f"resources.{key}: a trial asks for {folds}{wanted.workers} worker{'s' * (wanted.workers > 1)} of "
            f"{describe_share(cpu, gpu)} each, and there is room for {room}"
        )
    at_once = min(wanted.at_once or room, room // wanted.processes)
    return Concurrency(cpu, gpu, at_once, wanted.workers, folds=wanted.folds_at_once)


def pack_limit(space: Space, concurrency: Concurrency, gpus: int) -> int:
    """Return how many trials may share one of this many GPUs.

    1 where the space gives a trial its share of one, and where images are read from files: their networks fill a GPU.
    """
    wanted = space.resources
    if concurrency.processes > 1:
        return 1
    measured = wanted.gpus is None and gpus and space.task.in_memory
    limit = wanted.pack or (MOST_PACKED if measured else 1)
    return min(limit, -(-wanted.at_once // max(1, gpus))) if wanted.at_once else limit


def packed(space: Space, concurrency: Concurrency, gpus: int, speeds: Mapping[int, float]) -> Concurrency:
    """Return the concurrency with as many trials on each GPU as the space says, else as these speeds make useful.

    speeds: steps per second of all trials that share a GPU, by how many they are; empty where none were measured.
    """
    pack, gain = pack_limit(space, concurrency, gpus), 1.0
    if space.resources.pack is None:
        speeds = speeds or {1: 1.0}
        pack = best_pack(speeds, pack)
        gain = speeds[pack] / speeds[1]
    if pack == 1:
        return concurrency
    most = pack * max(1, gpus)
    return replace(concurrency, at_once=min(space.resources.at_once or most, most), pack=pack, gain=gain)


def unused_gpus(concurrency: Concurrency, nodes: Sequence[Node]) -> str:
    """Return how many GPUs of these machines no trial takes, and what would use them; empty for none."""
    gpu = concurrency.gpus
    if not gpu:
        return ""
    # What is over of a GPU that is shared belongs to nobody.
    total = sum(gpus for _, gpus in nodes)
    usable = sum(_gpu_shares(gpus, gpu) for _, gpus in nodes) * gpu if gpu < 1 else total
    unused = int(usable - concurrency.at_once * concurrency.processes * gpu / concurrency.pack + 1e-9)
    cores = min(int(cpus) // shares for cpus, gpus in nodes if (shares := _gpu_shares(gpus, gpu)))
    hint = f"; resources.cpus {cores} would use all" if 0 < cores < concurrency.cpus else ""
    return f"{unused} of {total:g} GPUs stay unused{hint}" if unused >= 1 else ""


def describe_share(cpus: int, gpus: float) -> str:
    """Return "2 CPU cores and 0.5 GPU"."""
    return f"{cpus} CPU core{'s' * (cpus > 1)}" + (f" and {gpus:g} GPU" if gpus else "")


def _processes(node: Node, cpu: int, gpu: float) -> int:
    """Return for how many processes that take so much a machine has room."""
    return min(int(node[0]) // cpu, _gpu_shares(node[1], gpu)) if gpu else int(node[0]) // cpu


def _gpu_shares(gpus: float, gpu: float) -> int:
    """Return how often ``gpu`` of these GPUs can be had; a share below 1 is of a single one."""
    return int(gpus) * int(1 / gpu + 1e-9) if gpu < 1 else int(gpus / gpu)


def local_resources() -> tuple[int, int]:
    """Return the CPU cores and GPUs of this machine."""
    return available_cpus(), torch.cuda.device_count()
