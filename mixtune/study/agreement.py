"""Agreement: how far a study's early scores ranked its trials as the scores on the whole budget did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mixtune.study.space import Space

if TYPE_CHECKING:
    from mixtune.study.outcome import Outcome

ENOUGH = 8  # trials: even then chance alone gives 0.64 or more one time in twenty


def early_steps(space: Space) -> dict[int, float]:
    """The share of the budget at every step where a trial is judged before it has cost all of it."""
    if space.paired:
        return {}
    if space.reports_on_the_way:
        reports = space.evaluate.reports
        return {number: number / reports for number in range(1, reports)}
    return {stage.step: stage.share for stage in space.stages if stage.share < 1}


def agreements(space: Space, outcomes: Sequence[Outcome]) -> dict[float, tuple[float, int]]:
    """Spearman's correlation with the final scores, and of how many trials, by share of the budget.

    Of complete trials only: those that were pruned have no final score. A share is left out where fewer than ``ENOUGH``
    trials have both scores, or where all scores are the same.
    """
    from scipy import stats

    found = {}
    complete = [o for o in outcomes if o.state == "COMPLETE" and o.score is not None]
    for step, share in early_steps(space).items():
        judged = [o for o in complete if step in o.reports]
        early, final = [o.reports[step] for o in judged], [o.score for o in judged]
        if len(judged) >= ENOUGH and len(set(early)) > 1 and len(set(final)) > 1:
            found[share] = float(stats.spearmanr(early, final).statistic), len(judged)
    return {share: pair for share, pair in found.items() if math.isfinite(pair[0])}


def sentence(found: dict[float, tuple[float, int]]) -> str:
    """The agreements in one line for people; empty when there are none."""
    if not found:
        return ""
    parts = ", ".join(f"{rho:.2f} at {100 * share:.0f} % (n = {n})" for share, (rho, n) in sorted(found.items()))
    return (
        "rank correlation of scores on a part of the budget with those on all of it (Spearman, among trials that were "
        f"not pruned): {parts}"
    )
