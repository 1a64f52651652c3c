"""Leaders: which regimes of a search are trained again, and which of those are evaluated on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mixtune.search.trial_result import TrialResult

Scores = Mapping[int, Mapping[int, float]]  # by number of the trial, then by seed


def leaders(outcomes: Sequence[TrialResult], count: int, front: Sequence[int] = ()) -> tuple[list[TrialResult], str]:
    """Return the best ``count`` searched regimes that were trained to the end, the published ones, and how they were
    chosen.

    The best have the highest scores. With several objectives they are taken from the Pareto front: the highest score
    first, by which the winner is chosen, then in the order of ``front`` (trial numbers, largest crowding distance
    first). A published regime that was pruned comes last: it is trained again with fresh seeds too.
    """
    complete = sorted((o for o in outcomes if o.state == "COMPLETE"), key=lambda o: (-(o.score or 0.0), o.number))
    searched = [o for o in complete if not o.published]
    how = ""
    if on_front := [o for o in searched if o.number in front]:
        best, *others = on_front
        searched = [best, *sorted(others, key=lambda o: front.index(o.number))]
        how = f"{min(count, len(searched))} of {len(searched)} searched regimes on the Pareto front"
        if count < len(searched):
            how += ", the best score and then those that stand apart (NSGA-II's crowding distance)"
    elif front:
        how = "no searched regime is on the Pareto front, so those with the best scores"
    pruned = [o for o in outcomes if o.state == "PRUNED" and o.published]
    return [o for o in complete if o.published or o in searched[:count]] + pruned, how


def mean_score(outcome: TrialResult, replicated: Scores) -> float:
    """A regime's mean score over its fresh seeds; over the run of the search where it has none."""
    fresh = replicated.get(outcome.number)
    return statistics.fmean(fresh.values()) if fresh else (outcome.score or 0.0)


def finalists(led: Sequence[TrialResult], replicated: Scores) -> list[TrialResult]:
    """The best searched leader and the published ones, the winner first; those whose fresh runs failed come last."""
    order = sorted(led, key=lambda o: (bool(replicated) and not replicated.get(o.number), -mean_score(o, replicated)))
    best = next((o for o in order if not o.published), None)
    return [o for o in order if o.published or o is best]
