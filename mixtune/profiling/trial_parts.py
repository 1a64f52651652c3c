"""Way: what a trial goes through, in parts between two judgements, and what of it a pruner can spare."""

from __future__ import annotations

from mixtune.search.optuna_factories import surviving
from mixtune.search.space import Space


def legs(space: Space) -> list[tuple[int, float, int, int]]:
    """The way of a trial between two judgements: the pruner's step at its end, the share of the budget of the training
    run that it belongs to, of how many equal parts of that run, and which of them (from 0).
    """
    found = []
    for i, stage in enumerate(space.stages):
        parts = space.evaluate.reports if i == 0 and space.reports_on_the_way else 1
        found += [(stage.step - parts + 1 + k, stage.share, parts, k) for k in range(parts)]
    return found


def beside(space: Space) -> set[int]:
    """The pruner's steps of the folds that train at the same time as the one before."""
    return {stage.step for stage in space.stages if stage.fold % space.resources.folds_at_once}


def whole_runs(space: Space) -> tuple[float, float | None]:
    """The search in training runs of the whole budget: if nothing is pruned, and if the pruner keeps the share that it
    is set to keep (None where it is set to keep none). What goes to the end is not pruned.
    """
    way = legs(space)
    parts = [share / n for _, share, n, _ in way]
    first = min(space.trials, len(space.to_the_end))
    goes_on = [1.0, *(surviving(space, step) for step, *_ in way[:-1])]
    for i, (step, *_) in enumerate(way):
        if step in beside(space):  # it is under way by then
            goes_on[i] = goes_on[i - 1]
    shares = [share for share in goes_on if share is not None]
    if len(shares) < len(goes_on):
        return space.trials * sum(parts), None
    searched = sum(share * part for share, part in zip(shares, parts, strict=True))
    return space.trials * sum(parts), first * sum(parts) + (space.trials - first) * searched
