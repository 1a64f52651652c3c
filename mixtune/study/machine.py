"""Machine: where a command's trials run, the search's and those that follow it; Ray starts when it is first needed."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mixtune.errors import InputError
from mixtune.study import hosting, preflight, tuning
from mixtune.study.books import Books
from mixtune.study.bridge import Bridge
from mixtune.study.events import Listeners
from mixtune.study.folder import Places
from mixtune.study.space import Space
from mixtune.training import timing
from mixtune.training.run import TrainingConfig

log = logging.getLogger("mixtune")
RESTARTS = 3  # a fault of Ray itself ends an experiment; the study goes on in a new one


class Machine:
    """The cluster with what all trials share, for as many books as there are."""

    def __init__(self, space: Space, slots: preflight.Slots, places: Places, write: Callable[[str], None]) -> None:
        self._space, self._slots, self._places, self._write = space, slots, places, write
        self._device: Literal["auto", "cpu", "cuda"] = "cpu" if slots.gpus == 0 else space.device
        self._training: TrainingConfig | None = None
        self._gpus = 0

    def run(self, books: Books, folder: Path, listeners: Listeners, n_train: int | None = None) -> None:
        """Run a book's trials until none remains. ``n_train``: see ``Bridge``.

        Raises InputError when no trial can go on, KeyboardInterrupt when it is told to stop.
        """
        if self._training is None:
            self._training = self._started()
        # As this machine trains, with the folds of the book's own space.
        folds = books.trials.space.training().task.folds
        training = replace(self._training, task=replace(self._training.task, folds=folds))
        with _terminable():
            attempt = 0
            while (left := books.trials.remaining()) and attempt < RESTARTS:
                bridge = Bridge(books.ledger, training, folder, listeners, n_train)
                fault: Exception | None = None
                try:
                    hosting.run(bridge, self._slots, self._places.folder, self._device, self._gpus)
                except KeyboardInterrupt:
                    bridge.interrupt()
                    raise
                except Exception as err:
                    fault = err
                    bridge.interrupt()
                if bridge.halted:
                    raise InputError(bridge.halted)
                books.settle()
                attempt = 1 if books.trials.remaining() < left else attempt + 1  # in a row without a trial finished
                if fault is not None:
                    if attempt == RESTARTS:
                        raise fault
                    log.warning("Ray ended the experiment (%s); starting it again", str(fault).split("\n")[0])
                    tuning.disconnect()
                    tuning.connect(self._places.address, *preflight.local_resources())
                    signal.signal(signal.SIGTERM, _interrupt)

    def _started(self) -> TrainingConfig:
        space, places = self._space, self._places
        if places.address is None:
            tuning.connect(None, *preflight.local_resources())
        self._write(f"{self._slots}; {space.aim}")
        with _terminable():
            training = replace(space.training(self._slots.cpus), device=self._device)
            if space.budget.cost != "pixels":
                unit = space.budget.cost
                self._write(f"measuring the {unit} of a step of every shape, once (kept in costs.yaml)")
                kept = places.folder / "costs.yaml"
                costs = tuning.call(timing.step_costs, self._slots, training, space.shapes(), kept)
                training = replace(training, costs=costs)
            self._gpus = int(tuning.cluster()[1]) if self._slots.gpus else 0
            self._slots, said = hosting.packed(space, training, self._slots, self._gpus)
            if said:
                self._write(said)
        return training


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
