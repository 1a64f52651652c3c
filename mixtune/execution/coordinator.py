"""Bridge: joins the trials that workers run to the trials of the study, whoever runs the workers.

It makes candidates, takes reports, decides on pruning, records ends and tells the listeners. No Ray or Optuna here.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtune.errors import NO_ROOM, NoRoomError, StorageAwayError, no_room
from mixtune.evaluation.curve import Curve, write_csv
from mixtune.execution.trial import Cause
from mixtune.execution.work import candidate_of, handed_over, training_of
from mixtune.profiling.feasibility import Refuse, nothing
from mixtune.search.callbacks import Callbacks, Candidate, State
from mixtune.search.timeouts import Clock, forget_position, memory_kills, position
from mixtune.training.run import TrainingConfig

if TYPE_CHECKING:
    from mixtune.search.optuna_study import Trials

log = logging.getLogger("mixtune")
INFEASIBLE_IN_A_ROW = 200


@dataclass
class _Live:
    candidate: Candidate
    trial: Any  # optuna's live trial
    checkpoint: Path  # of this trial and of its earlier attempts, should the search have been cut off
    clock: Clock
    configuration: dict[str, Any]
    state: State | None = None  # None: not decided yet
    reason: str = ""
    cause: Cause = "unknown"  # of its failure
    score: float | None = None
    curve: Curve | None = None
    reports: int = 0  # the number of the last one that was taken
    deaths: int = 0  # of its workers, or of what they need of the machine
    memory_kills: int = field(default_factory=memory_kills)


class Coordinator:
    """One of the study's trials per candidate, and one of the runner's per attempt at it, found by the runner's id."""

    def __init__(
        self, trials: Trials, training: TrainingConfig, folder: Path, listeners: Callbacks, refuse: Refuse = nothing
    ) -> None:
        """``refuse``: why a candidate cannot be trained, and is recorded as infeasible; empty where it can be."""
        self.trials, self.listeners, self._refuse = trials, listeners, refuse
        self.halted = ""  # why no trial can go on (a full disk, no candidate)
        self._training, self._folder = training, folder
        self._limits = trials.space.limits
        self._left = trials.remaining()
        self._live: dict[str, _Live] = {}
        self._again: deque[_Live] = deque()  # the machine ended them, and they go on

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run, now or later."""
        return bool(self.halted) or not (self._left > 0 or self._live or self._again)

    def suggest(self, run_id: str) -> dict[str, Any] | None:
        """The configuration of the next of the runner's trials; None when there is none now (see ``done``)."""
        if self.halted or not (self._again or self._left > 0):
            return None
        if self._again:
            live = self._live[run_id] = self._again.popleft()
            forget_position(live.candidate.folder)
            (live.candidate.folder / "error.txt").unlink(missing_ok=True)
            live.clock = Clock(self._limits, live.candidate.folder)
            return live.configuration
        begun = None
        try:
            begun = self._next()
        except (OSError, NoRoomError, StorageAwayError) as err:
            self._halt_on(err, self._folder)
        if begun is None:
            return None
        self._live[run_id] = begun
        self._left -= 1
        self._tell("started", begun.candidate)
        return begun.configuration

    def _next(self) -> _Live | None:
        for _ in range(INFEASIBLE_IN_A_ROW):
            trial, params = self.trials.ask()
            space = self.trials.space
            candidate = candidate_of(space, trial.number, params, trial.user_attrs, self._folder)
            training = training_of(space, self._training, candidate)
            if not (reason := self._refuse(candidate.regime, training)):
                return self._begin(trial, candidate, training)
            self.trials.finish(trial, "INFEASIBLE", None, reason, None)
        said = f"{INFEASIBLE_IN_A_ROW} candidates in a row cannot be trained (the last: {reason})"
        self._halt(f"{said}; raise budget.epochs, lower base.B, or leave out of search what cannot be met")
        return None

    def _begin(self, trial: Any, candidate: Candidate, training: TrainingConfig) -> _Live:
        lineage = int(trial.user_attrs.get("lineage", trial.number))
        checkpoint = self._folder / "checkpoints" / f"{lineage:04d}.pt"
        forget_position(candidate.folder)  # of an attempt that was cut off
        configuration = handed_over(self.trials.space, candidate, training, checkpoint)
        return _Live(candidate, trial, checkpoint, Clock(self._limits, candidate.folder), configuration)

    def running(self, run_id: str, now: float) -> None:
        """A worker has begun with the trial, at this time in seconds."""
        if run_id in self._live:
            self._live[run_id].clock.start(now)

    def overdue(self, now: float) -> list[str]:
        """Trials that have just exceeded a limit: their workers are to be killed."""
        found = []
        for run_id, live in self._live.items():
            if live.state is None and (why := live.clock.exceeded(now)):
                live.state, live.reason = "FAIL", why
                found.append(run_id)
        return found

    def report(self, run_id: str, result: Mapping[str, Any]) -> bool:
        """Take a worker's report; True when the trial is to be stopped."""
        live = self._live[run_id]
        live.clock.reported()
        if "no_room" in result:
            self._halt(str(result["no_room"]))
        if self.halted and not result.get("last"):
            return True
        if live.state is not None:  # overdue: its worker is being killed
            return True
        if "failed" in result:
            live.state, live.reason, live.cause = "FAIL", str(result["failed"]), result.get("cause", "unknown")
            return True
        if "score" not in result:
            return False
        if not math.isfinite(float(result["score"])):
            live.state, live.reason = "FAIL", f"the score is not finite ({result['score']})"
            live.cause = "regime"
            return True
        live.score, live.curve = (
            float(result["score"]),
            Curve.from_rows(result["curve"], self.trials.space.task.metrics),
        )
        if result["last"]:
            live.state = "COMPLETE"
        if int(result["number"]) <= live.reports:
            return False  # told again by a worker that went on from a checkpoint
        live.reports = int(result["number"])
        value = float(result["own"]) if self.trials.space.paired else live.score
        try:
            pruned: bool = self.trials.report(live.trial, live.reports, value, bool(result["last"]))
        except (NoRoomError, StorageAwayError) as err:
            live.state = None  # it is run again, and soon at its end: its checkpoint is there
            self._halt(str(err))
            return True
        if pruned:
            live.state, live.reason = "PRUNED", f"pruned at {100 * result['progress']:.0f} % of the budget"
        self._tell("reported", live.candidate, result, live.score)
        return pruned

    def end(self, run_id: str, error: bool) -> None:
        """The trial's worker is done, stopped or dead."""
        live = self._live.pop(run_id, None)
        if live is None:
            return
        # A repeat's regime was trained before, so that a lack of memory is no property of the regime either.
        passing = ("machine",) if live.candidate.repeat is None else ("machine", "memory")
        lost = live.state == "FAIL" and live.cause in passing
        if (lost or (live.state is None and error)) and not self.halted:
            live.deaths += 1
            why = live.reason if lost else self._death(live)
            if live.deaths <= self._limits.retries:
                live.state, live.cause = None, "unknown"
                log.warning("#%d: %s; it goes on from its checkpoint", live.candidate.number, why)
                self._again.append(live)
                return
            live.state, live.reason = "FAIL", why + (f" ({live.deaths} times)" if live.deaths > 1 else "")
        if live.state is None:
            live.state, live.reason = (
                ("INTERRUPTED", self.halted) if self.halted else ("FAIL", "ended without a result")
            )
        try:
            if live.state != "INTERRUPTED":
                self._close(live)
        except (OSError, NoRoomError, StorageAwayError) as err:
            self._halt_on(err, live.candidate.folder)
            live.state, live.reason = "INTERRUPTED", self.halted
        self._tell("ended", live.candidate, live.state, live.score, live.reason, live.curve)

    def _close(self, live: _Live) -> None:
        forget_position(live.candidate.folder)
        if live.curve is not None:
            write_csv(live.candidate.folder / "curve.csv", live.curve.rows())
        assert live.state is not None
        # The study is the record, so it is written before the listeners are told and the checkpoint is given up.
        state = "DIVERGED" if live.cause == "regime" else live.state
        self.trials.finish(live.trial, state, live.score, live.reason, live.curve)
        for stage in live.checkpoint.parent.glob(f"{live.checkpoint.stem}-*"):
            stage.unlink()

    def _death(self, live: _Live) -> str:
        """What is known of a worker's death."""
        where = position(live.candidate.folder)
        kills, live.memory_kills = memory_kills() - live.memory_kills, memory_kills()
        cause = "out of host memory" if kills > 0 else "out of memory, or killed"
        return f"its worker died ({cause})" + (f", at {where}" if where else "")

    def interrupt(self) -> None:
        """The search ends early: tell the listeners. The study's own record is put right by ``Trials.reconcile``."""
        for live in [*self._live.values(), *self._again]:
            self._tell("ended", live.candidate, "INTERRUPTED", live.score, "interrupted", live.curve)
        self._live.clear()
        self._again.clear()

    def _tell(self, *event: Any) -> None:
        try:
            self.listeners.tell(*event)
        except NoRoomError as err:
            self._halt(str(err))

    def _halt_on(self, err: OSError | NoRoomError | StorageAwayError, path: Path) -> None:
        """Nothing can be written. Raises the error when it is neither for want of room nor of the storage."""
        if not isinstance(err, OSError):
            return self._halt(str(err))
        if err.errno not in NO_ROOM:
            raise err
        return self._halt(str(no_room(err.filename or path)))

    def _halt(self, reason: str) -> None:
        self.halted = self.halted or reason
