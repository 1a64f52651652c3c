"""Agreement: how far a study's early scores ranked its trials as the scores on the whole budget did."""

from __future__ import annotations

from collections.abc import Sequence

from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study.statistics import rank_correlation

ENOUGH = 8  # trials: even then chance alone gives 0.64 or more one time in twenty


def early_steps(space: Space) -> dict[int, float]:
    """The share of the budget at every step where a trial is judged before it has cost all of it."""
    if space.paired:
        return {}
    if space.reports_on_the_way:
        reports = space.evaluate.reports
        return {number: number / reports for number in range(1, reports)}
    return {stage.step: stage.share for stage in space.stages if stage.share < 1}


def agreements(space: Space, outcomes: Sequence[TrialResult]) -> dict[float, tuple[float, int]]:
    """Spearman's correlation with the final scores, and of how many trials, by share of the budget.

    Of complete trials only: those that were pruned have no final score. A share is left out where fewer than ``ENOUGH``
    trials have both scores, or where all scores are the same.
    """
    found = {}
    complete = [(o.reports, o.score) for o in outcomes if o.state == "COMPLETE" and o.score is not None]
    for step, share in early_steps(space).items():
        pairs = [(reports[step], score) for reports, score in complete if step in reports]
        rho = rank_correlation(*zip(*pairs, strict=True)) if len(pairs) >= ENOUGH else None
        if rho is not None:
            found[share] = rho, len(pairs)
    return found


def metrics(found: dict[float, tuple[float, int]]) -> list[tuple[str, float, int]]:
    """The agreements as metrics of the study: (name, value, share of the budget in per cent)."""
    steps = {round(100 * share): pair for share, pair in sorted(found.items())}
    return [
        (f"fidelity/{name}", float(pair[i]), step)
        for step, pair in steps.items()
        for i, name in enumerate(("rank_correlation", "rank_correlation_n"))
    ]


def sentence(found: dict[float, tuple[float, int]]) -> str:
    """The agreements in one line for people; empty when there are none."""
    if not found:
        return ""
    parts = ", ".join(f"{rho:.2f} at {100 * share:.0f} % (n = {n})" for share, (rho, n) in sorted(found.items()))
    return (
        "rank correlation of scores on a part of the budget with those on all of it (Spearman, among trials that were "
        f"not pruned): {parts}"
    )
