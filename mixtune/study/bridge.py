"""Bridge: joins the trials that workers run to the trials of the study, whoever runs the workers.

It makes candidates, takes reports, decides on pruning, records ends and tells the listeners. No Ray or Optuna here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtune.config import plain
from mixtune.regime.files import regime_to_dict, save_regime
from mixtune.study.events import Candidate, Listeners, State
from mixtune.study.sampling import Trials
from mixtune.training.curve import Curve, write_csv
from mixtune.training.run import TrainingConfig


@dataclass
class _Live:
    candidate: Candidate
    trial: Any  # optuna's live trial
    checkpoint: Path  # of this trial and of its earlier attempts, should the search have been cut off
    state: State = "FAIL"
    reason: str = "ended without its last report"
    score: float | None = None
    curve: Curve | None = None


class Bridge:
    """One of the runner's trials and one of the study's per candidate, found by the runner's id."""

    def __init__(self, trials: Trials, training: TrainingConfig, folder: Path, listeners: Listeners) -> None:
        self.trials, self.listeners = trials, listeners
        self._training, self._folder = training, folder
        self._left = trials.remaining()
        self._live: dict[str, _Live] = {}

    def suggest(self, run_id: str) -> dict[str, Any] | None:
        """The configuration of a new trial; None when the study has all its trials."""
        if self._left <= 0:
            return None
        self._left -= 1
        trial, params = self.trials.ask()
        published = str(trial.user_attrs.get("published", ""))
        regime = self.trials.space.regime(params, published or f"searched {trial.number}")
        folder = self._folder / "trials" / f"{trial.number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        training = plain(self._training)
        save_regime(folder / "regime.yaml", regime, training)
        candidate = Candidate(trial.number, regime, params, folder, published)
        lineage = int(trial.user_attrs.get("lineage", trial.number))
        checkpoint = self._folder / "checkpoints" / f"{lineage:04d}.pt"
        self._live[run_id] = _Live(candidate, trial, checkpoint)
        self.listeners.tell("started", candidate)
        return {
            "regime": regime_to_dict(regime),
            "training": training,
            "folder": str(folder),
            "checkpoint": str(checkpoint),
        }

    def report(self, run_id: str, result: Mapping[str, Any]) -> bool:
        """Take a worker's report; True when the trial is to be stopped."""
        live = self._live[run_id]
        if "failed" in result:
            live.state, live.reason = "FAIL", str(result["failed"])
            return True
        if "score" not in result:
            return False
        if not math.isfinite(float(result["score"])):
            live.state, live.reason = "FAIL", f"the score is not finite ({result['score']})"
            return True
        live.score, live.curve = float(result["score"]), Curve.from_rows(result["curve"])
        pruned = self.trials.report(live.trial, int(result["number"]), live.score, bool(result["last"]))
        self.listeners.tell("reported", live.candidate, result, live.score)
        if pruned:
            live.state, live.reason = "PRUNED", f"pruned at {100 * result['progress']:.0f} % of the budget"
        elif result["last"]:
            live.state, live.reason = "COMPLETE", ""
        return pruned

    def end(self, run_id: str, error: bool) -> None:
        """The trial's worker is done, stopped or dead."""
        live = self._live.pop(run_id, None)
        if live is None:
            return
        if error and live.state != "COMPLETE":
            live.state, live.reason = "FAIL", "its worker died (out of memory, or killed)"
        if live.curve is not None:
            write_csv(live.candidate.folder / "curve.csv", live.curve.rows())
        # The study is the record, so it is written first.
        self.trials.finish(live.trial, live.state, live.score, live.reason, live.curve)
        live.checkpoint.unlink(missing_ok=True)
        self.listeners.tell("ended", live.candidate, live.state, live.score, live.reason, live.curve)

    def interrupt(self) -> None:
        """The search ends early: tell the listeners. The study's own record is put right by ``Trials.reconcile``."""
        for live in self._live.values():
            self.listeners.tell("ended", live.candidate, "INTERRUPTED", live.score, "interrupted", live.curve)
        self._live.clear()
