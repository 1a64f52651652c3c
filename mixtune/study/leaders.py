"""Leaders: who of a search is trained again, and who of those is judged on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mixtune.search.trial_result import TrialResult

Scores = Mapping[int, Mapping[int, float]]  # by number of the trial, then by seed


def leaders(outcomes: Sequence[TrialResult], count: int, front: Sequence[int] = ()) -> tuple[list[TrialResult], str]:
    """``count`` searched regimes of what was trained to the end, and the published ones; and how those were chosen.

    The best by score. With several objectives no more than are on the Pareto ``front`` (numbers, those first that stand
    apart): the best score there, which the winner is chosen by, then in the order of the front. The best comes first; a
    published regime that was pruned is at the end: fresh seeds will tell what it is worth.
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


def worth(outcome: TrialResult, replicated: Scores) -> float:
    """A regime's mean score over its fresh seeds; over the run of the search where it has none."""
    fresh = replicated.get(outcome.number)
    return statistics.fmean(fresh.values()) if fresh else (outcome.score or 0.0)


def finalists(led: Sequence[TrialResult], replicated: Scores) -> list[TrialResult]:
    """The best searched leader and the published ones, the winner first; those whose fresh runs failed come last."""
    order = sorted(led, key=lambda o: (bool(replicated) and not replicated.get(o.number), -worth(o, replicated)))
    best = next((o for o in order if not o.published), None)
    return [o for o in order if o.published or o is best]
