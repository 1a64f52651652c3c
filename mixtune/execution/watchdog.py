"""Watch running trials between Ray's events: kill workers that exceed a time limit, notice that Ray itself died."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray._private import worker
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune import Callback
from ray.tune.experiment import Trial

from mixtune.errors import TrainingError
from mixtune.execution.coordinator import Coordinator

log = logging.getLogger("mixtune")
EVERY = 0.5  # seconds between looks
STALL = 10.0  # seconds: when the driver was held up for longer, by the study's storage, trials waited for it


class ClusterLostError(TrainingError):
    """A process of the local Ray cluster died: nothing runs any more, and Ray would only say so after a minute."""


def dead_ray_processes() -> str:
    """Return which processes of the local cluster are dead; "" for none, or where the cluster is another's."""
    node = worker._global_node
    return ", ".join(sorted({str(kind) for kind, _ in node.dead_processes()})) if node else ""


class Watchdog(Callback):  # type: ignore[misc]
    """Looks at running trials; Ray calls it between events, at least every 0.1 s."""

    def __init__(self, coordinator: Coordinator, clock: Callable[[], float] = time.monotonic) -> None:
        self.coordinator: Coordinator | None = coordinator
        self._clock: Callable[[], float] | None = clock
        self._read = self._time = clock()
        self._looked = -EVERY
        self._over: list[Trial] = []

    def on_trial_start(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        """Start the clock of a trial that a worker begins."""
        assert self.coordinator is not None
        self.coordinator.start_clock(trial.trial_id, self._now())

    def on_trial_complete(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        """Note a trial that is over."""
        self._over.append(trial)

    def on_trial_error(self, iteration: int, trials: Sequence[Trial], trial: Trial, **info: Any) -> None:
        """Note a trial whose worker died."""
        self._over.append(trial)

    def on_step_end(self, iteration: int, trials: Sequence[Trial], **info: Any) -> None:
        """Release the trials that are over; every ``EVERY`` seconds, look at those that run.

        Raises ClusterLostError, which ends the experiment, when Ray has died.
        """
        assert self.coordinator is not None
        while self._over:  # only now, when every other callback has seen them
            release_trial(self._over.pop())
        now = self._now()
        if now - self._looked < EVERY:
            return
        self._looked = now
        if dead := dead_ray_processes():
            raise ClusterLostError(f"{dead} of the local Ray cluster died")
        for run_id in self.coordinator.overdue(now):
            (trial,) = (t for t in trials if t.trial_id == run_id)
            if (actor := trial.temporary_state.ray_actor) is not None:
                ray.kill(actor)  # from outside, so that a worker that is stuck in C code ends too

    def _now(self) -> float:
        """Return the time in seconds, without what the driver was held up for beyond ``STALL``: no trial's fault."""
        assert self._clock is not None
        read = self._clock()
        self._time += min(read - self._read, STALL)
        self._read = read
        return self._time

    def __getstate__(self) -> dict[str, Any]:
        return {"coordinator": None, "_clock": None, "_read": 0.0, "_time": 0.0, "_looked": 0.0, "_over": []}


def release_trial(trial: Trial) -> None:
    """Drop a finished trial's configuration, last report and statistics, which Ray would keep (60 KiB a trial)."""
    trial.config, trial.evaluated_params = {}, {}
    metadata = trial.run_metadata
    metadata.last_result, metadata.metric_analysis, metadata.metric_n_steps = {}, {}, {}


def treat_memory_kills_as_deaths() -> None:
    """Make Tune take a worker that Ray's memory monitor killed as any other dead worker: one trial's end.

    Tune takes the monitor's error for a fault of its own and ends the experiment (Ray 2.60).
    """
    before = RayActorManager._actor_task_failed
    if getattr(before, "_mixtune", False):
        return

    def failed(self: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, ray.exceptions.OutOfMemoryError):
            log.warning("Ray's memory monitor killed a worker: %s", str(exception).split("\n")[0])
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        before(self, tracked_actor_task, exception)

    failed._mixtune = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = failed
