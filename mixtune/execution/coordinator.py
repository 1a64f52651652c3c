"""Join the trials that workers run to the trials of the study, whoever runs the workers.

The coordinator makes candidates, takes reports, decides on pruning, records ends and calls the callbacks. No Ray or
Optuna here.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtune.errors import DISK_FULL, DiskFullError, StorageAwayError, disk_full_error
from mixtune.evaluation.curve import Curve, write_csv
from mixtune.execution.position import TrialClock, describe_position, remove_positions
from mixtune.execution.trial import Cause
from mixtune.execution.trial_config import make_candidate, trial_config, trial_training
from mixtune.profiling.feasibility import Refuse, refuse_nothing
from mixtune.runtime.memory import count_oom_kills
from mixtune.search.callbacks import Callbacks, Candidate, State
from mixtune.training.run import TrainingConfig

if TYPE_CHECKING:
    from mixtune.search.optuna_study import OptunaStudy

log = logging.getLogger("mixtune")
INFEASIBLE_IN_A_ROW = 200


@dataclass
class _RunningTrial:
    candidate: Candidate
    trial: Any  # optuna's live trial
    checkpoint: Path  # of this trial and of its earlier attempts, should the search have been cut off
    clock: TrialClock
    config: dict[str, Any]
    state: State | None = None  # None: not decided yet
    reason: str = ""
    cause: Cause = "unknown"  # of its failure
    score: float | None = None
    curve: Curve | None = None
    reports: int = 0  # the number of the last one that was taken
    deaths: int = 0  # of its workers, or of what they need of the machine
    oom_kills: int = field(default_factory=count_oom_kills)


class Coordinator:
    """The trials that run: one of the study's per candidate, one of the runner's per attempt at it.

    ``run_id`` is the runner's name of an attempt.
    """

    def __init__(
        self,
        trials: OptunaStudy,
        training: TrainingConfig,
        folder: Path,
        callbacks: Callbacks,
        refuse: Refuse = refuse_nothing,
    ) -> None:
        """``refuse``: why a candidate cannot be trained, and is recorded as infeasible; empty where it can be."""
        self.trials, self.callbacks, self._refuse = trials, callbacks, refuse
        self.halted = ""  # why no trial can go on (a full disk, a storage that is away, no candidate)
        self._training, self._folder = training, folder
        self._limits = trials.space.limits
        self._left = trials.remaining()
        self._running: dict[str, _RunningTrial] = {}
        self._retries: deque[_RunningTrial] = deque()  # the machine ended them, and they go on

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run, now or later."""
        return bool(self.halted) or not (self._left > 0 or self._running or self._retries)

    def suggest(self, run_id: str) -> dict[str, Any] | None:
        """Return the configuration of the runner's next attempt; None when there is none now (see ``done``)."""
        if self.halted or not (self._retries or self._left > 0):
            return None
        if self._retries:
            running = self._running[run_id] = self._retries.popleft()
            remove_positions(running.candidate.folder)
            (running.candidate.folder / "error.txt").unlink(missing_ok=True)
            running.clock = TrialClock(self._limits, running.candidate.folder)
            return running.config
        started = None
        try:
            started = self._ask()
        except (OSError, DiskFullError, StorageAwayError) as err:
            self._halt_on(err, self._folder)
        if started is None:
            return None
        self._running[run_id] = started
        self._left -= 1
        self._call_back("started", started.candidate)
        return started.config

    def _ask(self) -> _RunningTrial | None:
        for _ in range(INFEASIBLE_IN_A_ROW):
            trial, params = self.trials.ask()
            space = self.trials.space
            candidate = make_candidate(space, trial.number, params, trial.user_attrs, self._folder)
            training = trial_training(space, self._training, candidate)
            if not (reason := self._refuse(candidate.regime, training)):
                return self._start(trial, candidate, training)
            self.trials.finish(trial, "INFEASIBLE", None, reason, None)
        self._halt(
            f"{INFEASIBLE_IN_A_ROW} candidates in a row cannot be trained (the last: {reason}); raise budget.epochs, "
            "lower base.B, or leave out of search what cannot be met"
        )
        return None

    def _start(self, trial: Any, candidate: Candidate, training: TrainingConfig) -> _RunningTrial:
        lineage = int(trial.user_attrs.get("lineage", trial.number))
        checkpoint = self._folder / "checkpoints" / f"{lineage:04d}.pt"
        remove_positions(candidate.folder)  # of an attempt that was cut off
        config = trial_config(self.trials.space, candidate, training, checkpoint)
        return _RunningTrial(candidate, trial, checkpoint, TrialClock(self._limits, candidate.folder), config)

    def start_clock(self, run_id: str, now: float) -> None:
        """Note that a worker has begun with the trial, at this time in seconds."""
        if run_id in self._running:
            self._running[run_id].clock.start(now)

    def overdue(self, now: float) -> list[str]:
        """Return the attempts that have just exceeded a limit: their workers are to be killed."""
        run_ids = []
        for run_id, running in self._running.items():
            if running.state is None and (reason := running.clock.exceeded(now)):
                running.state, running.reason = "FAIL", reason
                run_ids.append(run_id)
        return run_ids

    def report(self, run_id: str, result: Mapping[str, Any]) -> bool:
        """Take a worker's report (``trial.combined_reports``); return True when the trial is to be stopped."""
        running = self._running[run_id]
        running.clock.reported()
        if "no_room" in result:
            self._halt(str(result["no_room"]))
        if self.halted and not result.get("last"):
            return True
        if running.state is not None:  # overdue: its worker is being killed
            return True
        if "failed" in result:
            running.state, running.reason = "FAIL", str(result["failed"])
            running.cause = result.get("cause", "unknown")
            return True
        if "score" not in result:
            return False
        if not math.isfinite(float(result["score"])):
            running.state, running.reason = "FAIL", f"the score is not finite ({result['score']})"
            running.cause = "regime"
            return True
        running.score, running.curve = (
            float(result["score"]),
            Curve.from_rows(result["curve"], self.trials.space.task.metrics),
        )
        if result["last"]:
            running.state = "COMPLETE"
        if int(result["number"]) <= running.reports:
            return False  # reported again by a worker that went on from a checkpoint
        running.reports = int(result["number"])
        value = float(result["own"]) if self.trials.space.paired else running.score
        try:
            pruned: bool = self.trials.report(running.trial, running.reports, value, bool(result["last"]))
        except (DiskFullError, StorageAwayError) as err:
            running.state = None  # it is run again, and soon at its end: its checkpoint is there
            self._halt(str(err))
            return True
        if pruned:
            running.state = "PRUNED"
            running.reason = f"pruned at {100 * result['progress']:.0f} % of the budget"
        self._call_back("reported", running.candidate, result, running.score)
        return pruned

    def end(self, run_id: str, error: bool) -> None:
        """Take note that the attempt's worker is done, stopped or, with ``error``, dead."""
        running = self._running.pop(run_id, None)
        if running is None:
            return
        # A repeat's regime was trained before, so that a lack of memory is no property of the regime either.
        transient = ("machine",) if running.candidate.repeat is None else ("machine", "memory")
        lost = running.state == "FAIL" and running.cause in transient
        if (lost or (running.state is None and error)) and not self.halted:
            running.deaths += 1
            reason = running.reason if lost else self._death(running)
            if running.deaths <= self._limits.retries:
                running.state, running.cause = None, "unknown"
                log.warning("#%d: %s; it goes on from its checkpoint", running.candidate.number, reason)
                self._retries.append(running)
                return
            deaths = f" ({running.deaths} times)" if running.deaths > 1 else ""
            running.state, running.reason = "FAIL", reason + deaths
        if running.state is None:
            running.state, running.reason = (
                ("INTERRUPTED", self.halted) if self.halted else ("FAIL", "ended without a result")
            )
        try:
            if running.state != "INTERRUPTED":
                self._record_end(running)
        except (OSError, DiskFullError, StorageAwayError) as err:
            self._halt_on(err, running.candidate.folder)
            running.state, running.reason = "INTERRUPTED", self.halted
        self._call_back("ended", running.candidate, running.state, running.score, running.reason, running.curve)

    def _record_end(self, running: _RunningTrial) -> None:
        remove_positions(running.candidate.folder)
        if running.curve is not None:
            write_csv(running.candidate.folder / "curve.csv", running.curve.rows())
        assert running.state is not None
        # The study is the record, so it is written before the callbacks are called and the checkpoint is given up.
        state = "DIVERGED" if running.cause == "regime" else running.state
        self.trials.finish(running.trial, state, running.score, running.reason, running.curve)
        for stage in running.checkpoint.parent.glob(f"{running.checkpoint.stem}-*"):
            stage.unlink()

    def _death(self, running: _RunningTrial) -> str:
        """Return what is known of a worker's death."""
        position = describe_position(running.candidate.folder)
        kills, running.oom_kills = count_oom_kills() - running.oom_kills, count_oom_kills()
        what = "out of host memory" if kills > 0 else "out of memory, or killed"
        return f"its worker died ({what})" + (f", at {position}" if position else "")

    def interrupt(self) -> None:
        """End the search early: tell the callbacks. The study's own record is put right by ``reconcile``."""
        for running in [*self._running.values(), *self._retries]:
            self._call_back("ended", running.candidate, "INTERRUPTED", running.score, "interrupted", running.curve)
        self._running.clear()
        self._retries.clear()

    def _call_back(self, *event: Any) -> None:
        try:
            self.callbacks.call(*event)
        except DiskFullError as err:
            self._halt(str(err))

    def _halt_on(self, err: OSError | DiskFullError | StorageAwayError, path: Path) -> None:
        """Halt on what other trials would meet, too: a full disk, a storage that is away. Raise any other error."""
        if not isinstance(err, OSError):
            return self._halt(str(err))
        if err.errno not in DISK_FULL:
            raise err
        return self._halt(str(disk_full_error(err.filename or path)))

    def _halt(self, reason: str) -> None:
        self.halted = self.halted or reason
