"""Leaders: who of a search is trained again, and who of those is judged on the test set."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mixtune.study.outcome import Outcome

Scores = Mapping[int, Mapping[int, float]]  # by number of the trial, then by seed


def leaders(outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The published regimes, and the ``count`` best searched ones, of what was trained to the end; the best first."""
    complete = sorted((o for o in outcomes if o.state == "COMPLETE"), key=lambda o: (-(o.score or 0.0), o.number))
    searched = [o for o in complete if not o.published][:count]
    return [o for o in complete if o.published or o in searched]


def worth(outcome: Outcome, replicated: Scores) -> float:
    """A regime's mean score over its fresh seeds; over the run of the search where it has none."""
    fresh = replicated.get(outcome.number)
    return statistics.fmean(fresh.values()) if fresh else (outcome.score or 0.0)


def finalists(led: Sequence[Outcome], replicated: Scores) -> list[Outcome]:
    """The best searched leader and the published ones, the winner first; those whose fresh runs failed come last."""
    order = sorted(led, key=lambda o: (bool(replicated) and not replicated.get(o.number), -worth(o, replicated)))
    best = next((o for o in order if not o.published), None)
    return [o for o in order if o.published or o is best]
