"""Hosting: one Ray actor per GPU computes several trials, while Ray Tune sees and schedules one trial per regime.

A trial of Ray Tune asks a host for its reports and passes them on. When a host dies, with whatever trials it had, Ray
starts it again and each of them goes on from its own checkpoint; an error of one trial ends that one only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.exceptions import RayActorError

from mixtune.execution import ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling import packing_plan
from mixtune.profiling.concurrency import Concurrency
from mixtune.regime import published
from mixtune.search.space import Space
from mixtune.tasks.registry import task_class
from mixtune.training.packing import TrialPack
from mixtune.training.run import TrainingConfig

WORKER_NAME = "mixtune-host"  # what the names of all hosts begin with
MAX_WORKER_DEATHS = 3  # of a trial whose host dies again and again before its next report
WORKER_START_TIMEOUT = 120.0  # seconds for a host to start: it imports torch and may have to wait for its GPU


class Worker:
    """What the actor does: its trials share this process and its GPU."""

    def __init__(self, device: str, room: int) -> None:
        from mixtune.runtime.device import pick_device

        self._device, self._room = pick_device(device), room
        self._pack: TrialPack[dict[str, Any]] = TrialPack(self._device)

    def start(self, trial: str, config: dict[str, Any]) -> bool:
        """Begin or resume a trial; False when there is no room for another."""
        self._pack.drop(trial)
        if len(self._pack) >= self._room:
            return False
        self._pack.start(trial, lambda pause, report: ray_tune.train_and_report(config, report, pause))
        return True

    def next(self, trial: str) -> dict[str, Any] | None:
        """The trial's next report, None after the last one."""
        made = self._pack.next(trial)
        if made is not None and "failed" in made:
            self._leave_if_the_gpu_is_lost()
        return made

    def drop(self, trial: str) -> None:
        """Nobody wants this trial any more."""
        self._pack.drop(trial)

    def pid(self) -> int:
        """The process that computes."""
        return os.getpid()

    def _leave_if_the_gpu_is_lost(self) -> None:
        """Some errors (an illegal access) make a GPU unusable for the whole process: the next one goes on."""
        if self._device.type != "cuda":
            return
        import torch

        try:
            with self._pack.paused():
                torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


def plan_packing(
    space: Space, training: TrainingConfig, slots: Concurrency, gpus: int, again: bool = False
) -> tuple[Concurrency, str]:
    """How many trials share a GPU, as the space says or as measured on one, and a sentence about it.

    A trial that is given its share of GPUs, or runs on CPU cores, has a process of its own.
    """
    want = space.resources
    at_most = want.pack or (16 if want.gpus is None and gpus else 1)
    if slots.processes > 1:
        at_most = 1
    if want.at_once:
        at_most = min(at_most, -(-want.at_once // max(1, gpus)))
    if at_most == 1:
        return slots, ""
    pack, gain, said = at_most, 1.0, f"{at_most} trials share a process"
    if want.pack is None:
        regime = published("fixed", space.base, space.search.sizes, task_class(space.task.kind).stride(space.task))
        pack, gain, said = ray_tune.call(packing_plan.measure, slots, training, regime, at_most, again)
    if pack == 1:
        return slots, said
    at_once = min(want.at_once or pack * max(1, gpus), pack * max(1, gpus))
    return replace(slots, at_once=at_once, pack=pack, gain=gain), said


@contextlib.contextmanager
def start_workers(slots: Concurrency, device: str, gpus: int) -> Iterator[list[str]]:
    """One host per GPU, or a single one on a CPU. Gives their names; they end with the block."""
    names = [f"{WORKER_NAME}-{uuid4().hex}" for _ in range(max(1, gpus))]
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": 1 if gpus else 0,
        "max_restarts": -1,
        "max_concurrency": 2 * slots.pack + 2,  # every trial waits in a call, and may be dropped in another
    }
    actors = [ray.remote(Worker).options(name=name, **options).remote(device, slots.pack) for name in names]
    try:
        yield names
    finally:
        for a in actors:
            with contextlib.suppress(Exception):
                ray.kill(a)


def run_packed_trial(config: dict[str, Any], names: Sequence[str]) -> None:
    """What a Ray Tune worker runs: get a trial's reports from a host and pass them on."""
    trial, number, deaths, host = config["folder"], 0, 0, None
    try:
        while True:
            try:
                host = _begin(trial, config, names)
                while (made := ray.get(host.next.remote(trial))) is not None:
                    if made.get("number", number + 1) <= number:
                        continue  # a resumed trial gives its earlier reports again
                    number, deaths = made.get("number", number), 0
                    tune.report(made)
                return
            except RayActorError:
                deaths += 1
                if deaths > MAX_WORKER_DEATHS:
                    said = f"the process that trained it and others died {deaths} times in a row"
                    tune.report({"failed": said, "cause": "machine"})
                    return
    finally:
        if host is not None:
            host.drop.remote(trial)  # when Ray Tune stops this trial


def _begin(trial: str, config: dict[str, Any], names: Sequence[str]) -> Any:
    """A host that has taken the trial. Raises RayActorError when none answers."""
    until = time.monotonic() + WORKER_START_TIMEOUT
    while True:
        for name in names:
            with contextlib.suppress(RayActorError, ValueError):
                host = ray.get_actor(name)
                if ray.get(host.start.remote(trial, config)):
                    return host
        if time.monotonic() > until:
            raise RayActorError(error_msg="no host has room for the trial")
        time.sleep(0.2)


def run_trials(coordinator: Coordinator, slots: Concurrency, folder: Path, device: str, gpus: int) -> None:
    """``tuning.run``, with the trials in hosts where several are to share a process."""
    if slots.pack == 1:
        return ray_tune.run(coordinator, slots, folder)
    with start_workers(slots, device, gpus) as names:

        def trial(config: dict[str, Any]) -> None:
            run_packed_trial(config, names)

        return ray_tune.run(coordinator, slots, folder, trial)
