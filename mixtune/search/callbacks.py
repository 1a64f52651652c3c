"""What happens to a trial, told to everyone who wants to know (console, MLflow) without knowing them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mixtune.errors import NoRoomError
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
        """Its name for people: the published regime's, or "searched"."""
        return self.published or "searched"


class Callback(Protocol):
    """Told of everything that happens to trials, in order."""

    def started(self, trial: Candidate) -> None:
        """The trial was handed to a worker."""

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """The trial reached a report point; ``report`` is what ``trial.metrics_of`` makes of it."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """The trial ended; score and curve are its last ones, ``reason`` says why it is not COMPLETE."""


class Callbacks:
    """Tells every listener; a listener's fault is its own and never a trial's or the study's end."""

    def __init__(self, listeners: Sequence[Callback]) -> None:
        self._listeners = listeners
        self.faults: dict[str, int] = {}

    def tell(self, event: Literal["started", "reported", "ended"], *details: Any) -> None:
        """Call ``event`` on every listener. Raises NoRoomError, after all were told, when one could not write."""
        full: NoRoomError | None = None
        for listener in self._listeners:
            try:
                getattr(listener, event)(*details)
            except NoRoomError as err:
                full = err
            except Exception as err:
                name = type(listener).__name__
                self.faults[name] = self.faults.get(name, 0) + 1
                if self.faults[name] == 1:  # once, not at every report of every trial
                    log.warning("%s failed (%s: %s); the search goes on without it", name, type(err).__name__, err)
        if full:
            raise full
