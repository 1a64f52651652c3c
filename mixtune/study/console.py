"""What a person reads while a study runs and when it ends."""

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
    """One line per event of a trial (a ``Listener``)."""

    def __init__(self, trials: int, best: TrialResult | None, write: Callable[[str], None] | None = None) -> None:
        self._trials = trials
        self._best, self._best_name = (best.score, f"#{best.number}") if best else (None, "")
        self._write = write or (lambda line: print(line, flush=True))
        self._began = time.monotonic()
        self._findings: Counter[str] = Counter()
        self._listed: tuple[int, Path] = (0, Path())  # how many images the longest list names, and its folder
        self._said: set[str] = set()

    def header(self) -> None:
        """What the columns are."""
        self._write(
            f"{'time':>5}  {'trial':>5}  {'family':<11} {'budget':>6}  {'score':>7}  {'best so far':<12}  regime: "
            "size x batch (x copies), % of steps"
        )

    def started(self, trial: Candidate) -> None:
        """A trial begins."""
        self._line(trial, "start", None)

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """A trial goes on; the last report is left to ``ended``. What it says is written when it is new."""
        found = Counter(dict(report.get("findings", ())))
        self._findings |= found  # trials read the same files: the most that one has met
        self._listed = max(self._listed, (found.total(), trial.folder))
        for text in report.get("said", ()):
            if text not in self._said:
                self._said.add(text)
                self._write(f"{'':>7}#{trial.number}: {text}")
        if not report["last"]:
            self._line(trial, f"{100 * report['progress']:.0f} %", score)

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """A trial is done, pruned or failed."""
        if state == "COMPLETE" and score is not None and (self._best is None or score > self._best):
            self._best, self._best_name = score, f"#{trial.number}"
        word = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "FAILED", "INTERRUPTED": "broken"}[state]
        self._line(trial, word, score)
        if state == "FAIL":
            self._write(f"{'':>7}#{trial.number} failed: {reason}")

    def findings(self) -> str:
        """What was odd about the data that trials read, in one line; empty for nothing."""
        said = ", ".join(f"{n} {kind}" for kind, n in sorted(self._findings.items()))
        named = f"named in {self._listed[1] / ISSUES_FILE}"
        return f"images that are not plain photographs: {said}; {named}" if said else ""

    def _line(self, trial: Candidate, done: str, score: float | None) -> None:
        seconds = int(time.monotonic() - self._began)
        best = "" if self._best is None else f"{self._best:.4f} {self._best_name}"
        shown = "" if score is None else f"{score:.4f}"
        name = f"#{trial.number}"
        self._write(
            f"{seconds // 60:2d}:{seconds % 60:02d}  {name:>5}  {trial.label:<11} {done:>6}  {shown:>7}  {best:<12}  "
            f"{trial.regime}"
        )


class RoundConsole:
    """One line per finished run of a round after the search (a ``Listener``)."""

    def __init__(self, done: int, total: int, write: Callable[[str], None]) -> None:
        self._done, self._total, self._write = done, total, write

    def started(self, trial: Candidate) -> None:
        """Nothing is said."""

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Nothing is said."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """A run is done or failed."""
        if state == "INTERRUPTED" or trial.repeat is None:
            return
        self._done += 1
        said = f"{score:.4f}" if state == "COMPLETE" else f"FAILED: {reason}"
        name = f"#{trial.repeat.of}"
        self._write(
            f"{self._done:>5} of {self._total}  {name:>5}  {trial.label:<11} seed {trial.repeat.seed:<3}  {said}  "
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
    """The trials that no other beats in every objective, the best score first."""
    lines = [f"Pareto set of {len(outcomes)} trials ({space.aim})"]
    lines.append(f"{'trial':>5}  {'family':<11}" + "".join(f"{name:>10}" for name in space.objectives))
    for o in sorted(outcomes, key=lambda o: -(o.score or 0.0)):
        assert o.curve is not None
        values = "".join(f"{v:>10.4g}" for v in space.values(o.curve))
        lines.append(f"{f'#{o.number}':>5}  {o.published or 'searched':<11}{values}")
    return "\n".join(lines)
