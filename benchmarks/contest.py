"""Searches that are asked for the same on the recorded table: Optuna alone, Ray's ASHA, mixtune, and random search.

Each is answered by ``simulated``, and a meter counts what it spends: training compute in whole budgets, every rung and
every pruned trial included. Optuna and Ray are their own classes; mixtune is its own bridge, study, sampler and pruner:
all but Ray, whose place ``mixtune_search`` takes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.recorded import space_of
from benchmarks.simulated import FULL_BUDGET, FidelityKey, Floats, Simulated
from mixtune.evaluation.curve import Curve
from mixtune.execution.coordinator import Coordinator
from mixtune.search import optuna_study
from mixtune.search.callbacks import Callbacks, Candidate, State
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space

TOP = (0.05, 0.02, 0.01)  # parts of the space
DRAWN, LIMIT = 20_000, 100.0  # points that say what the top is; budgets after which a search has failed
REPORTS = {1: "1/9", 3: "1/3"}  # of 9: where the table knows a run that is judged on the way
STRIDE = 4  # of the network: image sizes are multiples


class Enough(Exception):  # noqa: N818 - no error
    """A search may end: every value is reached, or the limit."""


class Meter:
    """Counts what a search spends, and notes what it had spent when it reached each value."""

    def __init__(self, values: Sequence[float], limit: float) -> None:
        self.spent, self.values, self.limit = 0.0, values, limit
        self.reached = [math.inf] * len(values)

    def spend(self, share: float, whole: float | None = None) -> None:
        """Add a share of a budget, and the score if the whole budget is spent now. Raises Enough."""
        self.spent += share
        if whole is not None:
            now = [self.spent if whole >= value else math.inf for value in self.values]
            self.reached = [min(pair) for pair in zip(self.reached, now, strict=True)]
        if self.spent >= self.limit or max(self.reached) < math.inf:
            raise Enough


Answers = Callable[[Mapping[str, Any]], Mapping[FidelityKey, float]]
SearchMethod = Callable[[Space, Answers, Meter, int], None]
# (report, score, share of the budget since the last one, the score again where that was the whole budget)
Piece = tuple[int, float, float, float | None]


def _judged(scores: Mapping[FidelityKey, float]) -> list[Piece]:
    """One run, judged on the way."""
    on_the_way = [(n, scores["truncate", share], None) for n, share in REPORTS.items()]
    found, before = [], 0
    for n, score, whole in [*on_the_way, (9, scores[FULL_BUDGET], scores[FULL_BUDGET])]:
        found.append((n, score, (n - before) / 9, whole))
        before = n
    return found


def optuna_alone(space: Space, answers: Answers, meter: Meter, seed: int) -> None:
    """Optuna's TPE and successive halving as they come, its rungs where the table has been judged."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        for step, score, share, whole in _judged(answers(space.suggest(trial))):
            meter.spend(share, whole)
            trial.report(score, step)
            if whole is None and trial.should_prune():
                raise optuna.TrialPruned
        return score

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    sampler = optuna.samplers.TPESampler(seed=seed)
    optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner).optimize(objective)


def ray_asha(space: Space, answers: Answers, meter: Meter, seed: int) -> None:
    """Ray's OptunaSearch and its ASHA scheduler, driven as its controller drives them, one trial at a time."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(space.suggest, metric="score", mode="max", seed=seed)
    asha = AsyncHyperBandScheduler(metric="score", mode="max", max_t=9, grace_period=1, reduction_factor=3)
    for i in itertools.count():
        trial = SimpleNamespace(trial_id=str(i))
        asha.on_trial_add(None, trial)
        for step, score, share, whole in _judged(answers(search.suggest(trial.trial_id))):
            meter.spend(share, whole)
            result = {"score": score, "training_iteration": step}
            if asha.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                search.on_trial_complete(trial.trial_id, result)
                break
            search.on_trial_result(trial.trial_id, result)


class _Params:
    """The parameters of the candidate begun last (a ``Callback``)."""

    def started(self, trial: Candidate) -> None:
        """Note them."""
        self.params = dict(trial.params)

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Not of interest."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Not of interest."""


def mixtune_search(space: Space, answers: Answers, meter: Meter, seed: int, at_once: int = 1) -> None:
    """mixtune's driver, told by this loop what Ray would tell it of ``at_once`` workers in simulated time."""
    with tempfile.TemporaryDirectory(prefix="mixtune-efficiency-") as folder, _in_memory():
        trials, told = OptunaStudy("", space, STRIDE), _Params()
        driver = Coordinator(trials, space.training(1), Path(folder), Callbacks([told]))
        ends: list[tuple[float, str, list[Piece]]] = []
        now = 0.0
        for i in itertools.count():
            while len(ends) < at_once:
                name = f"{i}-{len(ends)}"
                configuration = driver.suggest(name)
                assert configuration is not None, driver.halted
                pieces = _pieces(configuration, answers(told.params))
                heapq.heappush(ends, (now + pieces[0][2], name, pieces))
            then, name, pieces = heapq.heappop(ends)
            (number, score, _, whole), *left = pieces
            meter.spend(at_once * (then - now), whole)
            now = then
            rows = [{"S": space.base.S, "gmacs": 1.0, "top1": score, "top5": 1.0, "loss": 1.0, "ece": 0.0}]
            report = {"number": number, "score": score, "own": score, "last": not left, "curve": rows}
            if driver.report(name, report | {"progress": 1.0}) or not left:
                driver.end(name, False)
            else:
                heapq.heappush(ends, (now + left[0][2], name, left))


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    """Optuna's own storage without a database, and no files: they cost time and decide nothing."""
    from optuna.storages import InMemoryStorage

    with (
        mock.patch.object(optuna_study, "open_storage", return_value=InMemoryStorage()),
        mock.patch("mixtune.execution.trial_config.save_regime"),
    ):
        yield


def _pieces(configuration: Mapping[str, Any], scores: Mapping[FidelityKey, float]) -> list[Piece]:
    """What a trial reports if it is not pruned."""
    if configuration["reports"]:
        return _judged(scores)
    found = []
    for stage in configuration["stages"]:
        score = scores["compress", f"1/{round(1 / stage['share'])}"]
        found.append((stage["step"], score, stage["share"], score if stage["share"] == 1 else None))
    return found


@dataclass(frozen=True)
class Contest:
    """What every search is asked for: the table's space, its answers, and the scores to reach."""

    space: Space
    simulated: Simulated
    drawn: Floats  # scores on the whole budget of points drawn evenly
    values: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Contest:
        """Values are the scores that the best parts of the space, ``TOP``, have on the whole budget."""
        space = replace(space_of(), trials=10**6)
        simulated = Simulated(space, rows)
        drawn = simulated.drawn(DRAWN, 0)[:, simulated.fidelities.index(FULL_BUDGET)]
        return cls(space, simulated, drawn, tuple(float(np.quantile(drawn, 1 - top)) for top in TOP))

    def random_search(self, repeats: int) -> list[list[float]]:
        """Budgets that points drawn evenly, each trained on the whole budget, take to reach each value."""
        draw = np.random.default_rng(0)
        runs = [draw.choice(self.drawn, int(20 / min(TOP))) for _ in range(repeats)]
        return [[1.0 + int((run >= value).argmax()) for run in runs] for value in self.values]

    def search(self, search: SearchMethod, repeats: int, **changes: Any) -> list[list[float]]:
        """Budgets that a search takes to reach each value; infinite beyond ``LIMIT``."""
        found = []
        for world in range(repeats):
            meter = Meter(self.values, LIMIT)
            with contextlib.suppress(Enough):
                search(replace(self.space, seed=world, **changes), self._answers(world), meter, world)
            found.append(meter.reached)
        return [list(each) for each in zip(*found, strict=True)]

    def _answers(self, world: int) -> Answers:
        return lambda params: self.simulated.of(params, world)
