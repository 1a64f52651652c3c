"""Executor: choose the processes that train a trial: its worker, a worker group, or one group for each of its folds."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from mixtune.execution import worker_group
from mixtune.execution.trial import RunReport, path_of, results, told, trial_results
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.fidelity import Stage


def train_trial(
    config: dict[str, Any], turn: Callable[[], None] = lambda: None
) -> Generator[dict[str, Any], None, None]:
    """Yield a trial's reports. turn: see ``trial_results``.

    Raise what ``worker_group.parallel_results`` raises, and what a run raises.
    """
    workers, folds_at_once = config["training"].get("ranks", 1), config.get("folds_at_once", 1)
    if folds_at_once > 1:
        with contextlib.closing(_train_folds_at_once(config, workers, folds_at_once)) as reports:
            yield from results(config, reports)
    elif workers > 1:
        yield from worker_group.group_results(trial_results, worker_group.current_group(), config)
    else:
        yield from trial_results(SINGLE_PROCESS, config, turn)


def _train_folds_at_once(config: dict[str, Any], workers: int, count: int) -> Generator[RunReport, None, None]:
    """Train the rungs in one team of processes, because they decide whether the folds are trained; these in ``count``
    teams, each of which trains every ``count``-th fold. No fold waits for another's report.
    """
    group, path = worker_group.current_group(), path_of(config)
    rungs = [stage for stage in path if stage.share < 1]
    folds = path[len(rungs) :]
    for stages, teams in ((rungs, [rungs]), (folds, [folds[i::count] for i in range(count)])):
        if stages:
            arguments = [(config, team) for team in teams]
            with contextlib.closing(worker_group.parallel_results(told, group, arguments, workers)) as reports:
                yield from in_stage_order((report for _, report in reports), stages)


def in_stage_order(reports: Iterable[RunReport], stages: Sequence[Stage]) -> Iterator[RunReport]:
    """Yield reports in the order in which one process would make them, from the order in which several do."""
    waiting: dict[Stage, deque[RunReport]] = {stage: deque() for stage in stages}
    remaining = deque(stages)
    for report in reports:
        waiting[report.stage].append(report)
        while remaining and waiting[remaining[0]]:
            first = waiting[remaining[0]].popleft()
            if first.last:
                remaining.popleft()
            yield first
