"""The study in Optuna's storage, which is its only truth: what was asked, reported, pruned and finished.

Starting and resuming are the same act.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers.nsgaii._elite_population_selection_strategy import _crowding_distance_sort
from optuna.trial import FrozenTrial, Trial, TrialState

from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve
from mixtune.search import grid
from mixtune.search.final import ROUNDS, Round
from mixtune.search.optuna_factories import make_pruner, make_sampler
from mixtune.search.space import Space
from mixtune.search.storage import Retry, close_storage, open_storage
from mixtune.search.trial_result import TrialResult
from mixtune.secrets import masked

P = ParamSpec("P")
T = TypeVar("T")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# What Optuna has no state for, and the one it gets. An infeasible point was pruned before it had any value.
_OPTUNA_STATES = {"INFEASIBLE": "PRUNED", "DIVERGED": "FAIL"}
KEPT = ("published", "known", "grid", "proxy", "point", "repeat")  # what a trial that starts again takes along


def _retried(method: Callable[Concatenate[OptunaStudy, P], T]) -> Callable[Concatenate[OptunaStudy, P], T]:
    """Repeat a method while the storage does not answer (``Retry``); made twice, it must do what it does once."""

    @functools.wraps(method)
    def call(self: OptunaStudy, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._retry(method, self, *args, **kwargs)

    return call


def round_name(space: Space, round_: Round) -> str:
    """Return the name of the study that holds a round after a search (see ``final``)."""
    return f"{space.study} {round_}"


class OptunaStudy:
    """An open study: hands out candidates, takes reports, decides on pruning and records how trials ended.

    Every method repeats what it does while the storage does not answer. Raises StorageAwayError when that takes longer
    than ``storage.STORAGE_RETRY_SECONDS``, DiskFullError on a full disk.
    """

    def __init__(self, url: str, space: Space, stride: int, proxy: Mapping[str, float] | None = None) -> None:
        """Open or create the study ``space.study`` at an Optuna storage URL and enqueue the published regimes.

        proxy: scores on another task, by the name of a published or the file of a known regime.
        Raises InputError when the storage cannot be opened or holds a study with this name but another space.
        """
        points = {name: space.published_params(name, stride) for name in space.published}
        self._enqueued_first = {"published": points, "known": space.known_points(stride)}
        if space.sampler.name == "grid":
            count = space.trials - len(points) - len(self._enqueued_first["known"])
            self._enqueued_first["grid"] = grid.grid_points(space.search, space.seed, count)
        self._proxy = proxy or {}
        self._open(url, space, space.study)

    def _open(self, url: str, space: Space, name: str) -> None:
        self.space = space
        self._running = set[int]()  # trials that were handed out and have not ended
        self._asking = False  # also after an ask that was cut off, which may have taken a trial
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_default_handler()
        self._retry = Retry(url)
        self._storage = self._retry(open_storage, url)
        self._load(url, name)

    @_retried
    def _load(self, url: str, name: str) -> None:
        self._study = optuna.create_study(
            study_name=name,
            storage=self._storage,
            directions=self.space.directions,
            pruner=make_pruner(self.space),
            load_if_exists=True,
        )
        # The same seed after a restart would suggest the same candidates again.
        seed = self.space.seed + len(self._study.get_trials(deepcopy=False))
        self._study.sampler = make_sampler(self.space, seed)
        self.resumed = "digest" in self._study.user_attrs
        if self.resumed:
            self._check_same(url)
        self._fill()
        if not self.resumed:  # new, or killed while it was being made: the digest is written last
            self._study.set_user_attr("digest", self.space.digest())

    def _fill(self) -> None:
        """Enqueue what is tried first and is not there yet."""
        # Some are there where the study goes on, perhaps with more of them, or was killed while it was being made.
        trials = self._study.get_trials(deepcopy=False)
        for kind, points in self._enqueued_first.items():
            names = {t.user_attrs.get(kind) for t in trials}
            for name, point in points.items():
                if name not in names:
                    proxy = {"proxy": self._proxy[name]} if name in self._proxy else {}
                    self._enqueue(point, {kind: name, **proxy})

    def _enqueue(self, point: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        # The point again, because a kill between taking a trial and suggesting leaves one without.
        self._study.enqueue_trial(dict(point), user_attrs={**attributes, "point": dict(point)})

    def _check_same(self, url: str) -> None:
        if self._study.user_attrs.get("digest") != self.space.digest():
            raise InputError(
                f"study {self.space.study!r} in {masked(url)} was started with another space (task, budget, recipe, "
                "search, score, sampler, pruner or seed differ), so its scores do not compare; give this one another "
                "name with --set study=NAME or another folder with --out"
            )

    def close(self) -> None:
        """Give the storage back."""
        close_storage(self._storage)

    @_retried
    def set_attribute(self, key: str, value: str) -> None:
        """Record an attribute of the study as a whole."""
        self._study.set_user_attr(key, value)

    @_retried
    def attribute(self, key: str) -> str | None:
        """Return an attribute of the study as a whole; None where there is none."""
        return self._study.user_attrs.get(key)

    @_retried
    def reconcile(self) -> int:
        """Close trials that a dead or interrupted search left running, and enqueue their points again.

        They become FAIL and are listed as interrupted, which tells them from trials that failed by themselves. Every
        order of writing here survives being killed half-way. No trial may run now. Returns how many were closed.
        """
        self._running.clear()
        return self._reconcile()

    def _reconcile(self) -> int:
        trials = self._study.get_trials(deepcopy=False)
        waiting = {t.user_attrs.get("retry_of") for t in trials if t.state is TrialState.WAITING}
        stale = [t for t in trials if t.state is TrialState.RUNNING and t.number not in self._running]
        if stale:
            self._add_interrupted({t.number for t in stale})
        for trial in stale:
            point = trial.user_attrs.get("point", trial.params)
            if point and trial.number not in waiting:
                attrs = {k: v for k, v in trial.user_attrs.items() if k in KEPT}
                # The checkpoint is found by the number of the first attempt.
                lineage = {"lineage": trial.user_attrs.get("lineage", trial.number), "retry_of": trial.number}
                self._study.enqueue_trial(point, user_attrs=attrs | lineage)
            self._study.tell(trial.number, state=TrialState.FAIL)
        return len(stale)

    def _add_interrupted(self, numbers: set[int]) -> None:
        self._study.set_user_attr("interrupted", sorted(self._interrupted() | numbers))

    def _interrupted(self) -> set[int]:
        return set(self._study.user_attrs.get("interrupted", ()))

    @_retried
    def remaining(self) -> int:
        """Return how many trials are still to be run: those asked for, less those finished by themselves."""
        left = max(0, self.space.trials - len(self.outcomes()))
        if self.space.sampler.name != "grid":
            return left
        # Candidates that could not be trained are not made up for.
        return min(left, sum(not t.state.is_finished() for t in self._study.get_trials(deepcopy=False)))

    @_retried
    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Return a new trial and its parameters."""
        if self._asking:
            self._reconcile()
        self._asking = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's notices about its own experimental parts
            trial = self._study.ask()
            params = self.space.suggest(trial)
        self._asking = False
        self._running.add(trial.number)
        return trial, params

    @_retried
    def report(self, trial: Trial, number: int, score: float, last: bool) -> bool:
        """Record the score of report ``number`` (1, 2, ...); return whether the trial should be pruned.

        Published regimes are what the others are compared with, so they run to the end where no final trains them
        again. The last report is never pruned: the whole budget is spent by then. Optuna takes no reports where there
        are several objectives.
        """
        if self.space.several:
            return False
        trial.report(score, number)
        # Asked of every trial: halving pruners note a trial among the competitors when they are asked about it.
        worse = not last and trial.should_prune()
        return worse and trial.user_attrs.get("published") not in self.space.to_the_end

    @_retried
    def finish(self, trial: Trial, state: str, score: float | None, reason: str, curve: Curve | None) -> None:
        """Record how a trial ended: COMPLETE with its score, PRUNED (with its last score), FAIL, DIVERGED (a FAIL that
        another attempt would end in, too) or INFEASIBLE. An end that is recorded already stays.
        """
        with contextlib.suppress(UpdateFinishedTrialError):
            if reason:
                trial.set_user_attr("reason", masked(reason[:1000]))
            if curve is not None:
                trial.set_user_attr("curve", json.dumps(curve.rows()))
            if state in _OPTUNA_STATES:
                trial.set_user_attr(state.lower(), "yes")
            self._tell(trial, _OPTUNA_STATES.get(state, state), score, curve)
        self._running.discard(trial.number)

    def _tell(self, trial: Trial, state: str, score: float | None, curve: Curve | None) -> None:
        values = self.space.values(curve) if curve is not None and self.space.several else [score or 0.0]
        if state == "COMPLETE" and not all(map(math.isfinite, [math.nan if score is None else score, *values])):
            state = "FAIL"
        self._study.tell(trial, values if state == "COMPLETE" else None, state=TrialState[state], skip_if_finished=True)

    @_retried
    def discard(self, trial: Trial) -> None:
        """Close a trial that nobody is to run; it does not count."""
        self._add_interrupted({trial.number})
        self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        self._running.discard(trial.number)

    @_retried
    def outcomes(self) -> list[TrialResult]:
        """Return all trials that ended by themselves, in order; not those that an interruption ended."""
        interrupted, at = self._interrupted(), self.space.objectives.index("score")
        ended = [t for t in self._ended() if t.number not in interrupted and "infeasible" not in t.user_attrs]
        return [TrialResult.of(t, at, self.space.task.metrics) for t in ended]

    def _ended(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=FINISHED)

    @_retried
    def running(self) -> frozenset[int]:
        """Return the numbers of the trials that have begun and not ended."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return frozenset(t.number for t in trials)

    @_retried
    def repeats(self) -> list[TrialResult]:
        """Return what the rounds after this search have trained to the end, from their studies in the same storage."""
        results: list[TrialResult] = []
        names = {s.study_name for s in self._storage.get_all_studies()}
        for name in names & {round_name(self.space, round_) for round_ in ROUNDS}:
            study = optuna.load_study(study_name=name, storage=self._storage)
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            results += [TrialResult.of(t, 0, self.space.task.metrics) for t in complete]
        return results

    @_retried
    def infeasible(self) -> dict[int, str]:
        """Return the candidates that could not meet the budget, with the reason: they were not trained and do not
        count.
        """
        return {t.number: t.user_attrs.get("reason", "") for t in self._ended() if "infeasible" in t.user_attrs}

    @_retried
    def pareto(self) -> list[int]:
        """Return the numbers of the complete trials that no other beats in every objective."""
        return sorted(t.number for t in self._study.best_trials)

    @_retried
    def diverse_front(self) -> list[int]:
        """Return the same, the ends of the front first, then the least crowded ones (NSGA-II)."""
        front = sorted(self._study.best_trials, key=lambda t: t.number)
        _crowding_distance_sort(front)
        return [t.number for t in front]

    @_retried
    def hours(self) -> float:
        """Return how long the trials that ended by themselves took, together."""
        numbers = {o.number for o in self.outcomes()}
        durations = [t.duration for t in self._ended() if t.number in numbers and t.duration is not None]
        return sum(duration.total_seconds() for duration in durations) / 3600

    def best(self) -> TrialResult | None:
        """Return the complete trial with the highest score; None when there is none."""
        complete = [o for o in self.outcomes() if o.state == "COMPLETE" and o.score is not None]
        return max(complete, key=lambda o: o.score or 0.0, default=None)
