"""Machine: where a command's trials run, the search's and those that follow it; Ray starts when it is first needed."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixtune.errors import InputError
from mixtune.execution import cluster_checks, estimate, ray_tune, worker
from mixtune.execution.coordinator import Coordinator
from mixtune.execution.estimate import Ready
from mixtune.profiling.concurrency import Concurrency, local_resources
from mixtune.profiling.feasibility import Refuse, infeasible, nothing
from mixtune.search.callbacks import Callbacks
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.study.stores import OpenStudy

log = logging.getLogger("mixtune")
RESTARTS = 3  # a fault of Ray itself ends an experiment; the study goes on in a new one


class TrialRunner:
    """The cluster with what all trials share, for as many studies as there are."""

    def __init__(
        self,
        space: Space,
        slots: Concurrency,
        places: StudyPaths,
        n_train: int,
        write: Callable[[str], None],
        again: bool = False,
    ) -> None:
        """``again``: measure what was measured before."""
        self._space, self._slots, self._places, self._n_train, self._write = space, slots, places, n_train, write
        self._again = again
        self._ready: Ready | None = None

    def ready(self, left: int = 0) -> Ready:
        """Start Ray and measure what a study needs to know, once. Raises what ``estimate.ready`` raises.

        left: trials of the search that are still to be run.
        """
        if self._ready is None:
            if self._places.address is None:
                ray_tune.connect(None, *local_resources())
            else:
                cluster_checks.check_machines(self._places.folder, cluster_checks.named_paths(self._space))
            with _terminable():
                self._ready = estimate.ready(
                    self._space, self._slots, self._places, self._n_train, left, self._write, again=self._again
                )
        return self._ready

    @property
    def refuse(self) -> Refuse:
        """Says which candidates of the search cannot be trained here."""
        return partial(infeasible, self._space, n_train=self._n_train, room=self.ready().room)

    def run(self, study: OpenStudy, folder: Path, listeners: Callbacks, refuse: Refuse = nothing) -> None:
        """Run a study's trials until none remains.

        Raises InputError when no trial can go on, KeyboardInterrupt when it is told to stop.
        """
        ready, trials = self.ready(), study.trials
        # As this machine trains, with the folds of the study's own space.
        task = replace(ready.training.task, folds=trials.space.training().task.folds)
        training = replace(ready.training, task=task)
        slots = ready.slots.with_folds(trials.space.resources.folds_at_once)
        attempt = 0
        with _terminable():
            while (left := trials.remaining()) and attempt < RESTARTS:
                bridge = Coordinator(trials, training, folder, listeners, refuse)
                fault: Exception | None = None
                try:
                    worker.run_trials(bridge, slots, self._places.folder, training.device, ready.gpus)
                except KeyboardInterrupt:
                    bridge.interrupt()
                    raise
                except Exception as err:
                    fault = err
                    bridge.interrupt()
                if bridge.halted:
                    raise InputError(bridge.halted)
                study.reconcile()
                attempt = 1 if trials.remaining() < left else attempt + 1  # in a row without a trial finished
                if fault is not None:
                    if attempt == RESTARTS:
                        raise fault
                    log.warning("Ray ended the experiment (%s); starting it again", str(fault).split("\n")[0])
                    ray_tune.disconnect()
                    ray_tune.connect(self._places.address, *local_resources())
                    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a search as Ctrl-C does. To be entered after Ray is started, which takes the signal for itself."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
