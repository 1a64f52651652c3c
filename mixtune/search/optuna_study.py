"""The study in Optuna's storage, which is its only truth: what was asked, reported, pruned and finished.

Starting and resuming are the same act. Optuna is known here, in ``named``, ``storage`` and ``journal``.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.samplers.nsgaii._elite_population_selection_strategy import _crowding_distance_sort
from optuna.trial import Trial, TrialState

from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve
from mixtune.search import grid
from mixtune.search import storage as storage_
from mixtune.search.optuna_factories import make_pruner, make_sampler
from mixtune.search.outcome import TrialResult
from mixtune.search.space import Space
from mixtune.search.storage import at_once, reached
from mixtune.secrets import masked

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# What Optuna has no state for, and the one it gets. An infeasible point was pruned before it had any value.
_NOTED = {"INFEASIBLE": "PRUNED", "DIVERGED": "FAIL"}
KEPT = ("published", "known", "grid", "proxy", "point", "repeat")  # what a trial that starts again takes along


class Trials:
    """An open study: hands out candidates, takes reports, decides on pruning and records how trials ended."""

    def __init__(self, url: str, space: Space, stride: int, proxy: Mapping[str, float] | None = None) -> None:
        """Open or create the study ``space.study`` at an Optuna storage URL and enqueue the published regimes.

        proxy: scores on another task, by the name of a published or the file of a known regime.
        Raises InputError when the storage cannot be opened or holds a study with this name but another space. This and
        every other method raise StorageAwayError when the storage does not answer, NoRoomError on a full disk.
        """
        points = {name: space.published_params(name, stride) for name in space.published}
        self._first = {"published": points, "known": space.known_points(stride)}
        if space.sampler.name == "grid":
            count = space.trials - len(points) - len(self._first["known"])
            self._first["grid"] = grid.points(space.search, space.seed, count)
        self._proxy = proxy or {}
        self._open(url, space, space.study)

    def _open(self, url: str, space: Space, name: str) -> None:
        self.space = space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_default_handler()
        storage = self._storage = storage_.open_storage(url)
        pruner = make_pruner(space)
        with reached():
            self._study = optuna.create_study(
                study_name=name, storage=storage, directions=space.directions, pruner=pruner, load_if_exists=True
            )
            # The same seed after a restart would suggest the same candidates again.
            seed = space.seed + len(self._study.get_trials(deepcopy=False))
            self._study.sampler = make_sampler(space, seed)
            self.resumed = "digest" in self._study.user_attrs
            if self.resumed:
                self._check_same(url)
            self._fill()
            if not self.resumed:  # new, or killed while it was being made: the digest is written last
                self._study.set_user_attr("digest", space.digest())

    def _fill(self) -> None:
        """Enqueue what is tried first and is not there yet."""
        # Some are there where the study goes on, perhaps with more of them, or was killed while it was being made.
        trials = self._study.get_trials(deepcopy=False)
        for kind, each in self._first.items():
            there = {t.user_attrs.get(kind) for t in trials}
            for name, point in each.items():
                if name not in there:
                    known = {"proxy": self._proxy[name]} if name in self._proxy else {}
                    self._enqueue(point, {kind: name, **known})

    def _enqueue(self, point: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        # The point again, because a kill between taking a trial and suggesting leaves one without.
        self._study.enqueue_trial(dict(point), user_attrs={**attributes, "point": dict(point)})

    def _check_same(self, url: str) -> None:
        theirs = self._study.user_attrs.get("digest")
        if theirs != self.space.digest():
            raise InputError(
                f"study {self.space.study!r} in {masked(url)} was started with another space (task, budget, recipe, "
                "search, score, sampler, pruner or seed differ), so its scores do not compare; give this one another "
                "name with --set study=NAME or another folder with --out"
            )

    def close(self) -> None:
        """Give the storage back."""
        storage_.close(self._storage)

    def note(self, key: str, value: str) -> None:
        """Remember something of the study as a whole."""
        with reached():
            self._study.set_user_attr(key, value)

    def noted(self, key: str) -> str | None:
        """What was remembered."""
        return self._study.user_attrs.get(key)

    def reconcile(self, live: frozenset[int] = frozenset()) -> list[Mapping[str, Any]]:
        """Close trials that a dead or interrupted search left running, and enqueue their points again.

        They become FAIL and are listed as interrupted, which tells them from trials that failed by themselves. Every
        order of writing here survives being killed half-way. ``live``: numbers of trials that do run. Returns the
        user attributes of what was closed.
        """
        with reached():
            return self._reconcile(live)

    def _reconcile(self, live: frozenset[int]) -> list[Mapping[str, Any]]:
        trials = self._study.get_trials(deepcopy=False)
        waiting = {t.user_attrs.get("retry_of") for t in trials if t.state is TrialState.WAITING}
        stale = [t for t in trials if t.state is TrialState.RUNNING and t.number not in live]
        if stale:
            self._note_interrupted({t.number for t in stale})
        for trial in stale:
            point = trial.user_attrs.get("point", trial.params)
            if point and trial.number not in waiting:
                attrs = {k: v for k, v in trial.user_attrs.items() if k in KEPT}
                # The checkpoint is found by the number of the first attempt.
                lineage = {"lineage": trial.user_attrs.get("lineage", trial.number), "retry_of": trial.number}
                self._study.enqueue_trial(point, user_attrs=attrs | lineage)
            self._study.tell(trial.number, state=TrialState.FAIL)
        return [trial.user_attrs for trial in stale]

    def _note_interrupted(self, numbers: set[int]) -> None:
        self._study.set_user_attr("interrupted", sorted(self._interrupted() | numbers))

    def _interrupted(self) -> set[int]:
        return set(self._study.user_attrs.get("interrupted", ()))

    def remaining(self) -> int:
        """How many trials are still to be run: those asked for, less those finished by themselves."""
        left = max(0, self.space.trials - len(self.outcomes()))
        if self.space.sampler.name != "grid":
            return left
        with reached():  # candidates that could not be trained are not made up for
            return min(left, sum(not t.state.is_finished() for t in self._study.get_trials(deepcopy=False)))

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """A new trial and its parameters."""
        with reached(), at_once(self._storage), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's notices about its own experimental parts
            trial = self._study.ask()
            return trial, self.space.suggest(trial)

    def report(self, trial: Trial, number: int, score: float, last: bool) -> bool:
        """Record the score of report ``number`` (1, 2, ...); True when the trial should be pruned.

        Published regimes are what the others are compared with, so they run to the end where no final trains them
        again. The last report is never pruned: the whole budget is spent by then. Optuna takes no reports where there
        are several objectives.
        """
        if self.space.several:
            return False
        # A trial that a power cut took its reports from is run again: only its end must be kept.
        with reached(), at_once(self._storage, durable=False):
            trial.report(score, number)
            # Asked of every trial: halving pruners note a trial among the competitors when they are asked about it.
            worse = not last and trial.should_prune()
            return worse and trial.user_attrs.get("published") not in self.space.to_the_end

    def finish(self, trial: Trial, state: str, score: float | None, reason: str, curve: Curve | None) -> None:
        """Record how a trial ended: COMPLETE with its score, PRUNED (with its last score), FAIL, DIVERGED (a FAIL that
        another attempt would end in, too) or INFEASIBLE.
        """
        rows = curve.rows() if curve is not None else None
        with reached(), at_once(self._storage):
            if reason:
                trial.set_user_attr("reason", masked(reason[:1000]))
            if rows is not None:
                trial.set_user_attr("curve", json.dumps(rows))
            self._tell(trial, state, score, curve)

    def _tell(self, trial: Trial | int, state: str, score: float | None, curve: Curve | None) -> None:
        if state in _NOTED:
            number = trial if isinstance(trial, int) else trial.number
            storage_.attribute_of(self._study, number, state.lower(), "yes")
            state = _NOTED[state]
        values = self.space.values(curve) if curve is not None and self.space.several else [score or 0.0]
        if state == "COMPLETE" and not all(map(math.isfinite, [math.nan if score is None else score, *values])):
            state = "FAIL"
        told = values if state == "COMPLETE" else None
        self._study.tell(trial, told, state=TrialState[state], skip_if_finished=True)

    def report_of(self, trial: int, number: int, score: float) -> None:
        """``report`` by the trial's number, too late to prune. Raises PermanentError when the trial has ended."""
        if not self.space.several:
            with reached():
                storage_.report_of(self._study, trial, number, score)

    def finish_of(
        self, trial: int, state: str, score: float | None, reason: str, rows: list[Mapping[str, float]] | None
    ) -> None:
        """``finish`` by the trial's number. Raises PermanentError when it has ended."""
        with reached():
            if reason:
                storage_.attribute_of(self._study, trial, "reason", masked(reason[:1000]))
            if rows is not None:
                storage_.attribute_of(self._study, trial, "curve", json.dumps(rows))
            self._tell(trial, state, score, self._curve(rows) if rows is not None else None)

    def _curve(self, rows: list[Mapping[str, float]]) -> Curve:
        return Curve.from_rows(rows, self.space.task.metrics)

    def outcomes(self) -> list[TrialResult]:
        """All trials that ended by themselves, in order (those that an interruption ended are not among them)."""
        with reached():
            interrupted = self._interrupted()
            trials = self._study.get_trials(deepcopy=False, states=FINISHED)
        at, metrics = self.space.objectives.index("score"), self.space.task.metrics
        return [
            TrialResult.of(t, at, metrics)
            for t in trials
            if t.number not in interrupted and "infeasible" not in t.user_attrs
        ]

    def infeasible(self) -> dict[int, str]:
        """Candidates that could not meet the budget, with the reason: they were not trained and do not count."""
        with reached():
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        return {t.number: t.user_attrs.get("reason", "") for t in trials if "infeasible" in t.user_attrs}

    def pareto(self) -> list[int]:
        """The numbers of the complete trials that no other beats in every objective."""
        with reached():
            return sorted(t.number for t in self._study.best_trials)

    def spread(self) -> list[int]:
        """The same, those first that stand apart: the ends of the front, then the least crowded ones (NSGA-II)."""
        with reached():
            front = sorted(self._study.best_trials, key=lambda t: t.number)
        _crowding_distance_sort(front)
        return [t.number for t in front]

    def hours(self) -> float:
        """How long the trials that ended by themselves took, together."""
        numbers = {o.number for o in self.outcomes()}
        with reached():
            ended = [t for t in self._study.get_trials(deepcopy=False, states=FINISHED) if t.number in numbers]
        return sum(t.duration.total_seconds() for t in ended if t.duration is not None) / 3600

    def best(self) -> TrialResult | None:
        """The complete trial with the highest score; None when there is none."""
        complete = [o for o in self.outcomes() if o.state == "COMPLETE" and o.score is not None]
        return max(complete, key=lambda o: o.score or 0.0, default=None)
