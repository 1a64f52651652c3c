"""Call whoever follows the trials (console, MLflow) at what happens to them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mixtune.errors import DiskFullError
from mixtune.evaluation.curve import Curve
from mixtune.regime import Regime
from mixtune.search.final import Repeat

State = Literal["COMPLETE", "PRUNED", "FAIL", "INTERRUPTED"]
log = logging.getLogger("mixtune")


@dataclass(frozen=True)
class Candidate:
    """A trial that has been asked for: its number in the study, regime, parameters and folder.

    ``published`` is the name of the published regime it is, or "". ``repeat``: which trial of the search it repeats.
    """

    number: int
    regime: Regime
    params: Mapping[str, Any]
    folder: Path
    published: str
    repeat: Repeat | None = None

    @property
    def label(self) -> str:
        """The published regime's name, or "searched"."""
        return self.published or "searched"


class Callback(Protocol):
    """Follows what happens to trials, in order."""

    def started(self, trial: Candidate) -> None:
        """Take note that the trial was handed to a worker."""

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Take note that the trial reached a report point; ``report``: see ``execution.trial.combined_reports``."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Take note that the trial ended; score and curve are its last, ``reason`` is why it is not COMPLETE."""


class Callbacks:
    """Several callbacks as one; an error in one of them never ends a trial or the study."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks
        self.errors: dict[str, int] = {}  # by the name of the class

    def call(self, event: Literal["started", "reported", "ended"], *details: Any) -> None:
        """Call ``event`` of every callback. Raises DiskFullError, after all were called, when one could not write."""
        full: DiskFullError | None = None
        for callback in self._callbacks:
            try:
                getattr(callback, event)(*details)
            except DiskFullError as err:
                full = err
            except Exception as err:
                name = type(callback).__name__
                self.errors[name] = self.errors.get(name, 0) + 1
                if self.errors[name] == 1:  # once, not at every report of every trial
                    log.warning("%s failed (%s: %s); the search goes on without it", name, type(err).__name__, err)
        if full:
            raise full
