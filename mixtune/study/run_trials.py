"""Run the trials of a study and of the rounds after it; Ray starts when it is first needed."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixtune.errors import InputError
from mixtune.execution import cluster_checks, ray_tune, worker
from mixtune.execution.coordinator import Coordinator
from mixtune.execution.estimate import StudyToRun, TrialSetup, prepare_trials
from mixtune.profiling.concurrency import Concurrency, local_resources
from mixtune.profiling.feasibility import Refuse, infeasible, refuse_nothing
from mixtune.search.callbacks import Callbacks
from mixtune.study.stores import OpenStudy

log = logging.getLogger("mixtune")
RESTARTS = 3  # of the experiment in a row, after a fault of Ray itself, without a trial finished


class TrialRunner:
    """The cluster, with what all trials of a study and its rounds share."""

    def __init__(
        self, study: StudyToRun, concurrency: Concurrency, write: Callable[[str], None], remeasure: bool = False
    ) -> None:
        """Start nothing yet. remeasure: also what was measured before."""
        self._study, self._concurrency, self._write, self._remeasure = study, concurrency, write, remeasure
        self._setup: TrialSetup | None = None

    def prepare(self, trials_left: int = 0) -> TrialSetup:
        """Start Ray and measure what the study needs to know, once. Raises what ``prepare_trials`` raises.

        trials_left: trials of the search that are still to be run.
        """
        if self._setup is None:
            space, paths = self._study.space, self._study.paths
            if paths.address is None:
                ray_tune.connect(None, *local_resources())
            else:
                cluster_checks.check_machines(paths.folder, cluster_checks.named_paths(space))
            with _sigterm_as_interrupt():
                self._setup = prepare_trials(self._study, self._concurrency, trials_left, self._write, self._remeasure)
        return self._setup

    @property
    def refuse(self) -> Refuse:
        """Return the function that tells which candidates of the search cannot be trained here."""
        return partial(infeasible, self._study.space, n_train=self._study.n_train, profile=self.prepare().profile)

    def run(self, study: OpenStudy, folder: Path, callbacks: Callbacks, refuse: Refuse = refuse_nothing) -> None:
        """Run trials until none of the study remains.

        Raises InputError when no trial can go on, KeyboardInterrupt when the process is asked to stop.
        """
        setup, trials, paths = self.prepare(), study.trials, self._study.paths
        # Trained as this machine does, with the folds of the study's own space.
        task = replace(setup.training.task, folds=trials.space.training().task.folds)
        training = replace(setup.training, task=task)
        concurrency = setup.concurrency.with_folds(trials.space.resources.folds_at_once)
        attempt = 0
        with _sigterm_as_interrupt():
            while (left := trials.remaining()) and attempt < RESTARTS:
                coordinator = Coordinator(trials, training, folder, callbacks, refuse)
                fault: Exception | None = None
                try:
                    worker.run_trials(coordinator, concurrency, paths.folder, training.device, setup.gpus)
                except KeyboardInterrupt:
                    coordinator.interrupt()
                    raise
                except Exception as err:
                    fault = err
                    coordinator.interrupt()
                if coordinator.halted:
                    raise InputError(coordinator.halted)
                study.reconcile()
                attempt = 1 if trials.remaining() < left else attempt + 1
                if fault is not None:
                    if attempt == RESTARTS:
                        raise fault
                    log.warning("Ray ended the experiment (%s); starting it again", str(fault).split("\n")[0])
                    ray_tune.disconnect()
                    ray_tune.connect(paths.address, *local_resources())
                    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End a search by SIGTERM as by Ctrl-C. To be entered after Ray is started, which takes the signal for itself."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
