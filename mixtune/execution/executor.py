"""Folds: which processes train a trial: its worker, or ranks, or those of several folds that train at the same time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from mixtune.execution import worker_group
from mixtune.execution.trial import RunReport, path_of, results, told, trial_results
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.fidelity import Stage


def trained(config: dict[str, Any], turn: Callable[[], None] = lambda: None) -> Generator[dict[str, Any], None, None]:
    """What a trial reports, trained by the processes that it is to have. turn: see ``trial_results``.

    Raises what ``ranks.together`` raises, and what a run raises.
    """
    workers, at_once = config["training"].get("ranks", 1), config.get("folds_at_once", 1)
    if at_once > 1:
        with contextlib.closing(_at_once(config, workers, at_once)) as found:
            yield from results(config, found)
    elif workers > 1:
        yield from worker_group.results(trial_results, worker_group.own_group(), config)
    else:
        yield from trial_results(SINGLE_PROCESS, config, turn)


def _at_once(config: dict[str, Any], workers: int, count: int) -> Generator[RunReport, None, None]:
    """The rungs by one team of ranks, because they decide whether the folds are trained; these by ``count`` teams.

    Each team trains every ``count``-th fold, and no fold waits for another's report.
    """
    group, path = worker_group.own_group(), path_of(config)
    rungs = [stage for stage in path if stage.share < 1]
    folds = path[len(rungs) :]
    for part, teams in ((rungs, [rungs]), (folds, [folds[i::count] for i in range(count)])):
        if part:
            arguments = [(config, stages) for stages in teams]
            with contextlib.closing(worker_group.together(told, group, arguments, workers)) as found:
                yield from in_order((one for _, one in found), part)


def in_order(found: Iterable[RunReport], path: Sequence[Stage]) -> Iterator[RunReport]:
    """What runs tell, as it comes, in the order in which they would tell it one after the other."""
    waiting: dict[Stage, deque[RunReport]] = {stage: deque() for stage in path}
    left = deque(path)
    for one in found:
        waiting[one.stage].append(one)
        while left and waiting[left[0]]:
            now = waiting[left[0]].popleft()
            if now.last:
                left.popleft()
            yield now
