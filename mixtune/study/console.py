"""Print what a person reads while a study runs and when it ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixtune.data.file_issues import ISSUES_FILE
from mixtune.evaluation.curve import Curve
from mixtune.regime import Regime
from mixtune.search.callbacks import Candidate, State
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study.statistics import mean_sd


class Console:
    """Write one line per event of a trial (a ``Callback``)."""

    def __init__(self, trials: int, best: TrialResult | None, write: Callable[[str], None] | None = None) -> None:
        self._trials = trials
        self._best, self._best_name = (best.score, f"#{best.number}") if best else (None, "")
        self._write = write or (lambda line: print(line, flush=True))
        self._began = time.monotonic()
        self._issues: Counter[str] = Counter()  # images that are not plain photographs, by kind
        self._longest_list: tuple[int, Path] = (0, Path())  # how many images it names, and its folder
        self._remarks: set[str] = set()

    def header(self) -> None:
        """Write the names of the columns."""
        self._write(
            f"{'time':>5}  {'trial':>5}  {'family':<11} {'budget':>6}  {'score':>7}  {'best so far':<12}  regime: "
            "size x batch (x copies), % of steps"
        )

    def started(self, trial: Candidate) -> None:
        """Write that a trial begins."""
        self._line(trial, "start", None)

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Write how far a trial is, but for its last report, and those of its remarks that are new."""
        issues = Counter(dict(report.get("findings", ())))
        self._issues |= issues  # trials read the same files: the most that one has met
        self._longest_list = max(self._longest_list, (issues.total(), trial.folder))
        for remark in report.get("said", ()):
            if remark not in self._remarks:
                self._remarks.add(remark)
                self._write(f"{'':>7}#{trial.number}: {remark}")
        if not report["last"]:
            self._line(trial, f"{100 * report['progress']:.0f} %", score)

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Write that a trial is done, pruned or failed."""
        if state == "COMPLETE" and score is not None and (self._best is None or score > self._best):
            self._best, self._best_name = score, f"#{trial.number}"
        word = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "FAILED", "INTERRUPTED": "broken"}[state]
        self._line(trial, word, score)
        if state == "FAIL":
            self._write(f"{'':>7}#{trial.number} failed: {reason}")

    def file_issues(self) -> str:
        """Return what was odd about the images that trials read, in one line; empty for nothing."""
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self._issues.items()))
        folder = self._longest_list[1]
        return f"images that are not plain photographs: {kinds}; named in {folder / ISSUES_FILE}" if kinds else ""

    def _line(self, trial: Candidate, progress: str, score: float | None) -> None:
        seconds = int(time.monotonic() - self._began)
        best = "" if self._best is None else f"{self._best:.4f} {self._best_name}"
        shown = "" if score is None else f"{score:.4f}"
        name = f"#{trial.number}"
        self._write(
            f"{seconds // 60:2d}:{seconds % 60:02d}  {name:>5}  {trial.label:<11} {progress:>6}  {shown:>7}  "
            f"{best:<12}  {trial.regime}"
        )


class RoundConsole:
    """Write one line per finished run of a round after the search (a ``Callback``)."""

    def __init__(self, done: int, total: int, write: Callable[[str], None]) -> None:
        self._done, self._total, self._write = done, total, write

    def started(self, trial: Candidate) -> None:
        """Write nothing."""

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Write nothing."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Write that a run is done or failed."""
        if state == "INTERRUPTED" or trial.repeat is None:
            return
        self._done += 1
        result = f"{score:.4f}" if state == "COMPLETE" else f"FAILED: {reason}"
        name = f"#{trial.repeat.of}"
        self._write(
            f"{self._done:>5} of {self._total}  {name:>5}  {trial.label:<11} seed {trial.repeat.seed:<3}  {result}  "
            f"({'test set' if trial.repeat.judge == 'test' else 'held-out images'})"
        )


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Return mean and deviation; in per cent where ``scale`` is 100."""
    mean, deviation = mean_sd(values)
    return f"{scale * mean:.2f}" + (f" ± {scale * deviation:.2f}" if deviation is not None else "")


def results_table(outcomes: Sequence[TrialResult], regime_of: Callable[[TrialResult], Regime], top: int = 5) -> str:
    """Return the best searched trials beside the published regimes, best first, with the primary metric by size."""
    complete = sorted((o for o in outcomes if o.state == "COMPLETE"), key=lambda o: -(o.score or 0.0))
    searched = [o for o in complete if not o.published][:top]
    shown = [o for o in complete if o.published or o in searched]
    if not shown:
        return "no trial was completed"
    assert shown[0].curve is not None
    sizes, primary = shown[0].curve.sizes, shown[0].curve.primary
    head = f"{'trial':>5}  {'family':<11} {'score':>7}  " + "".join(f"{f'{S} px':>8}" for S in sizes) + "  regime"
    unit = f" in {primary.unit}" if primary.unit else ""
    lines = [f"{primary.label}{unit} on the held-out images, by inference size", head]
    for o in shown:
        assert o.curve is not None
        values = "".join(f"{primary.shown(value, 1):>8}" for value in o.curve.by_size().values())
        name = f"#{o.number}"
        lines.append(f"{name:>5}  {o.published or 'searched':<11} {o.score:7.4f}  {values}  {regime_of(o)}")
    states = [o.state for o in outcomes]
    counts = f"{states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned, {states.count('FAIL')} failed"
    hidden = sum(not o.published for o in complete) - len(searched)
    return "\n".join([*lines, f"trials: {counts}" + (f" ({hidden} more searched ones not shown)" if hidden else "")])


def pareto_table(outcomes: Sequence[TrialResult], space: Space) -> str:
    """Return the trials that no other beats in every objective, the best score first."""
    lines = [f"Pareto set of {len(outcomes)} trials ({space.aim})"]
    lines.append(f"{'trial':>5}  {'family':<11}" + "".join(f"{name:>10}" for name in space.objectives))
    for o in sorted(outcomes, key=lambda o: -(o.score or 0.0)):
        assert o.curve is not None
        values = "".join(f"{v:>10.4g}" for v in space.values(o.curve))
        lines.append(f"{f'#{o.number}':>5}  {o.published or 'searched':<11}{values}")
    return "\n".join(lines)
