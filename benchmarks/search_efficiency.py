"""How much training a search needs to reach a value: random search, Optuna alone, Ray's ASHA, and mixtune.

    python -m benchmarks.search_efficiency            minutes; trains nothing
    python -m benchmarks.search_efficiency --sweep    other fidelities, pruners and samplers for mixtune as well

All search the space of the recorded table and are answered by it (``benchmarks.simulated``). Cost is training compute
in whole budgets, every rung and every pruned trial included. A value is the score that the best 5, 1 or 0.2 % of the
points of the space have on the whole budget, fixed before any search; it is reached when a network trained on the whole
budget scores it. mixtune is its own bridge, study, sampler and pruner: all but Ray, whose place this file takes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.simulated import WHOLE
from mixtune.study import bridge, storage
from mixtune.study.bridge import Bridge
from mixtune.study.events import Candidate, Listeners, State
from mixtune.study.knobs import Uniform
from mixtune.study.sampling import Trials
from mixtune.study.space import Space
from mixtune.training.curve import Curve

TOP = (0.05, 0.01, 0.002)  # of the space; the middle one is the headline's
DRAWN, LIMIT = 50_000, 3000.0  # points that say what the top is; budgets after which a search has failed
REPORTS = {1: "1/9", 3: "1/3"}  # of 9: where the table knows a run that is judged on the way
STRIDE = 4  # of the network: image sizes are multiples


class Enough(Exception):
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


Answers = Callable[[Mapping[str, Any]], Mapping[tuple[str, str], float]]


def random_search(space: Space, answers: Answers, meter: Meter, seed: int) -> None:
    """Points drawn evenly, each trained on the whole budget."""
    for i in itertools.count():
        meter.spend(1.0, answers(space.suggest(Uniform((seed, i))))[WHOLE])


def _judged(scores: Mapping[tuple[str, str], float]) -> list[tuple[int, float, float, float | None]]:
    """One run, judged on the way: (report, score, share since the last report, score of the whole)."""
    on_the_way = [(n, scores["truncate", share], None) for n, share in REPORTS.items()]
    found, before = [], 0
    for n, score, whole in [*on_the_way, (9, scores[WHOLE], scores[WHOLE])]:
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
    """The parameters of the candidate begun last (a ``Listener``)."""

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
        trials, told = Trials("", space, STRIDE), _Params()
        driver = Bridge(trials, space.training(1), Path(folder), Listeners([told]))
        ends: list[tuple[float, str, list[tuple[int, float, float, float | None]]]] = []
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

    before = storage.open_storage, bridge.save_regime
    storage.open_storage = lambda url: InMemoryStorage()  # type: ignore[assignment, return-value]
    bridge.save_regime = lambda *args: None
    try:
        yield
    finally:
        storage.open_storage, bridge.save_regime = before


def _pieces(
    configuration: Mapping[str, Any], scores: Mapping[tuple[str, str], float]
) -> list[tuple[int, float, float, float | None]]:
    """A trial's reports: (number, score, share of the budget it costs, score of the whole)."""
    if configuration["reports"]:
        return _judged(scores)
    found = []
    for stage in configuration["stages"]:
        score = scores["compress", f"1/{round(1 / stage['share'])}"]
        found.append((stage["step"], score, stage["share"], score if stage["share"] == 1 else None))
    return found
