"""Ledger: the study's storage with patience. What it does not take at once is kept on disk and sent when it answers.

Trials that run go on without it: they are not pruned meanwhile, and no new one is begun.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mixtune.evaluation.curve import Curve
from mixtune.search.outbox import Outbox
from mixtune.search.space import Space
from mixtune.search.spool import PermanentError, Record

log = logging.getLogger("mixtune")
KEPT = "unsent-study.jsonl"


class StorageAwayError(Exception):
    """The study's storage does not answer, or is locked by someone else."""


class Book(Protocol):
    """What the bridge writes a study into: ``sampling.Trials`` itself, or a Ledger in front of it.

    Every method may raise StorageAwayError, and NoRoomError on a full disk.
    """

    @property
    def space(self) -> Space:
        """What is searched."""

    def remaining(self) -> int:
        """How many trials are still to be run."""

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """A new trial and its parameters."""

    def report(self, trial: Any, number: int, score: float, last: bool) -> bool:
        """Record a report; True when the trial should be pruned."""

    def finish(self, trial: Any, state: str, score: float | None, reason: str, curve: Curve | None) -> None:
        """Record how a trial ended."""


class Storage(Book, Protocol):
    """What a Ledger needs of the study behind it (``sampling.Trials``)."""

    def reconcile(self, live: frozenset[int] = frozenset()) -> Any:
        """Close what is RUNNING and not live, and enqueue it again."""

    def report_of(self, trial: int, number: int, score: float) -> None:
        """Record a report of the trial with this number. Raises PermanentError when it cannot be one."""

    def finish_of(
        self, trial: int, state: str, score: float | None, reason: str, rows: list[Mapping[str, float]] | None
    ) -> None:
        """Record an end; one that is recorded already stays. Raises PermanentError when it cannot be one."""


class Ledger:
    """A ``Book`` that survives its storage being away, and this process's death meanwhile."""

    def __init__(self, trials: Storage, folder: Path, pause: float = 0.5, longest: float = 10.0) -> None:
        """``folder``: where what waits is kept; what an earlier process left there is sent first."""
        self._trials, self._live = trials, set[int]()
        self._torn = False  # an ask was cut off: the storage may hold a trial that nobody runs
        self.outbox = Outbox(folder / KEPT, self._deliver, "the study's storage", pause, longest)

    @property
    def space(self) -> Space:
        """What is searched."""
        return self._trials.space

    def remaining(self) -> int:
        """How many trials are still to be run."""
        return self._trials.remaining()

    def ask(self) -> tuple[Any, dict[str, Any]]:
        """A new trial and its parameters. Raises StorageAwayError while the storage is away."""
        if self.outbox.waiting:
            raise StorageAwayError("earlier records wait for it")
        try:
            if self._torn:
                self._trials.reconcile(frozenset(self._live))
                self._torn = False
            trial, params = self._trials.ask()
        except StorageAwayError as err:
            if not self._torn:
                log.warning("the study's storage does not answer (%s); no trial is begun until it does", err)
            self._torn = True
            raise
        self._live.add(trial.number)
        return trial, params

    def report(self, trial: Any, number: int, score: float, last: bool) -> bool:
        """Record a report, now or later; True when the trial should be pruned."""
        if not self.outbox.waiting:
            try:
                return self._trials.report(trial, number, score, last)
            except StorageAwayError:
                pass
        self.outbox.put({"do": "report", "trial": trial.number, "number": number, "score": score})
        return False

    def finish(self, trial: Any, state: str, score: float | None, reason: str, curve: Curve | None) -> None:
        """Record how a trial ended, now or later."""
        self._live.discard(trial.number)
        if not self.outbox.waiting:
            try:
                self._trials.finish(trial, state, score, reason, curve)
                return
            except StorageAwayError:
                pass
        rows = curve.rows() if curve is not None else None
        self.outbox.put(
            {"do": "finish", "trial": trial.number, "state": state, "score": score, "reason": reason, "rows": rows}
        )

    def flush(self, seconds: float = 60.0) -> bool:
        """Wait until the storage has everything, so long at most; False when it does not answer."""
        return self.outbox.flush(seconds)

    def close(self) -> None:
        """Stop sending; what waits is on disk."""
        self.outbox.close()

    def _deliver(self, r: Record) -> None:
        if r["do"] == "report":
            self._trials.report_of(r["trial"], r["number"], r["score"])
        elif r["do"] == "finish":
            self._trials.finish_of(r["trial"], r["state"], r["score"], r["reason"], r["rows"])
        else:
            raise PermanentError(f"unknown record {r['do']!r}")
