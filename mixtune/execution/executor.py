"""Executor: choose the processes that train a trial: its worker, ranks, or those of several folds at the same time."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from mixtune.execution import worker_group
from mixtune.execution.trial import RunReport, TrialSpec, combined_reports, run_reports, trial_reports
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.search.fidelity import Stage


def train_trial(spec: TrialSpec, pause: Callable[[], None] = lambda: None) -> Generator[dict[str, Any], None, None]:
    """Yield what a trial reports, trained by the processes that it is to have. pause: see ``trial_reports``.

    Raises what ``worker_group.parallel_results`` raises, and what a run raises.
    """
    if spec.folds_at_once > 1:
        with contextlib.closing(_folds_at_once(spec)) as reports:
            yield from combined_reports(spec, reports)
    elif spec.training.ranks > 1:
        yield from worker_group.group_results(trial_reports, worker_group.current_group(), spec)
    else:
        yield from trial_reports(SINGLE_PROCESS, spec, pause)


def _folds_at_once(spec: TrialSpec) -> Generator[RunReport, None, None]:
    """Train the rungs on one team of ranks, because they decide whether the folds are trained; these on several teams.

    Each team trains every ``folds_at_once``-th fold, and no fold waits for another's report.
    """
    group, count = worker_group.current_group(), spec.folds_at_once
    rungs = [stage for stage in spec.stages if stage.share < 1]
    folds = spec.stages[len(rungs) :]
    for part, teams in ((rungs, [rungs]), (folds, [folds[i::count] for i in range(count)])):
        if part:
            arguments = [(spec, stages) for stages in teams]
            workers = worker_group.parallel_results(run_reports, group, arguments, spec.training.ranks)
            with contextlib.closing(workers) as results:
                yield from in_stage_order((report for _, report in results), part)


def in_stage_order(reports: Iterable[RunReport], stages: Sequence[Stage]) -> Iterator[RunReport]:
    """Yield reports of stages that train at the same time as if they trained one after the other."""
    waiting: dict[Stage, deque[RunReport]] = {stage: deque() for stage in stages}
    left = deque(stages)
    for report in reports:
        waiting[report.stage].append(report)
        while left and waiting[left[0]]:
            first = waiting[left[0]].popleft()
            if first.last:
                left.popleft()
            yield first
