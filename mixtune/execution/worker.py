"""Worker: one Ray actor per GPU trains several trials, while Ray Tune sees and schedules one trial per regime.

Ray Tune's process of a trial asks a worker for the trial's reports and passes them on. When a worker dies, Ray starts
it again and each of its trials goes on from its own checkpoint; an error of one trial ends that one only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.exceptions import RayActorError

from mixtune.execution import ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import Concurrency
from mixtune.training.packing import TrialPack

WORKER_NAME = "mixtune-worker"  # the names of all workers begin with it
MAX_WORKER_DEATHS = 3  # before a trial's next report
WORKER_START_TIMEOUT = 120.0  # seconds: a worker imports torch and may have to wait for its GPU


class Worker:
    """The actor, whose process and GPU at most ``capacity`` trials share."""

    def __init__(self, device: str, capacity: int) -> None:
        from mixtune.runtime.device import pick_device

        self._device, self._capacity = pick_device(device), capacity
        self._pack: TrialPack[dict[str, Any]] = TrialPack(self._device)

    def start(self, trial: str, config: dict[str, Any]) -> bool:
        """Start or resume a trial; return False when there are enough others already."""
        self._pack.drop(trial)
        if len(self._pack) >= self._capacity:
            return False
        self._pack.start(trial, lambda yield_turn, report: ray_tune.train_and_report(config, report, yield_turn))
        return True

    def next(self, trial: str) -> dict[str, Any] | None:
        """Return the trial's next report, None after the last one."""
        report = self._pack.next(trial)
        if report is not None and "failed" in report:
            self._exit_if_gpu_lost()
        return report

    def drop(self, trial: str) -> None:
        """End a trial."""
        self._pack.drop(trial)

    def pid(self) -> int:
        """Return the id of this process."""
        return os.getpid()

    def _exit_if_gpu_lost(self) -> None:
        """Exit where an error (an illegal access) made the GPU unusable for this process; Ray starts another."""
        if self._device.type != "cuda":
            return
        import torch

        try:
            with self._pack.paused():
                torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)


@contextlib.contextmanager
def start_workers(concurrency: Concurrency, device: str, gpus: int) -> Iterator[list[str]]:
    """Start one worker per GPU, or a single one on CPUs; yield their names. They end with the block."""
    names = [f"{WORKER_NAME}-{uuid4().hex}" for _ in range(max(1, gpus))]
    options: dict[str, Any] = {
        "num_cpus": 0,
        "num_gpus": 1 if gpus else 0,
        "max_restarts": -1,
        "max_concurrency": 2 * concurrency.pack + 2,  # every trial waits in a call, and may be dropped in another
    }
    actors = [ray.remote(Worker).options(name=name, **options).remote(device, concurrency.pack) for name in names]
    try:
        yield names
    finally:
        for actor in actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def run_packed_trial(config: dict[str, Any], names: Sequence[str]) -> None:
    """Pass the reports of a trial from one of the named workers on to Ray Tune, whose process calls this."""
    trial, number, deaths, worker = config["folder"], 0, 0, None
    try:
        while True:
            try:
                worker = _start_on_worker(trial, config, names)
                while (report := ray.get(worker.next.remote(trial))) is not None:
                    if report.get("number", number + 1) <= number:
                        continue  # a resumed trial yields its earlier reports again
                    number, deaths = report.get("number", number), 0
                    tune.report(report)
                return
            except RayActorError:
                deaths += 1
                if deaths > MAX_WORKER_DEATHS:
                    reason = f"the process that trained it and others died {deaths} times in a row"
                    tune.report({"failed": reason, "cause": "machine"})
                    return
    finally:
        if worker is not None:
            worker.drop.remote(trial)  # when Ray Tune stops this trial


def _start_on_worker(trial: str, config: dict[str, Any], names: Sequence[str]) -> Any:
    """Return a worker that has started the trial. Raise RayActorError when none does in ``WORKER_START_TIMEOUT``."""
    deadline = time.monotonic() + WORKER_START_TIMEOUT
    while True:
        for name in names:
            with contextlib.suppress(RayActorError, ValueError):
                worker = ray.get_actor(name)
                if ray.get(worker.start.remote(trial, config)):
                    return worker
        if time.monotonic() > deadline:
            raise RayActorError(error_msg="no worker has room for the trial")
        time.sleep(0.2)


def run_trials(coordinator: Coordinator, concurrency: Concurrency, folder: Path, device: str, gpus: int) -> None:
    """Run a study's trials as ``ray_tune.run`` does, in workers where several are to share a process."""
    if concurrency.pack == 1:
        return ray_tune.run(coordinator, concurrency, folder)
    with start_workers(concurrency, device, gpus) as names:

        def trial(config: dict[str, Any]) -> None:
            run_packed_trial(config, names)

        return ray_tune.run(coordinator, concurrency, folder, trial)
