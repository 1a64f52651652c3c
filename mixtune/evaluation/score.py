"""Score: one number made from a curve, the thing that a search maximises; and what else may be an objective."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.evaluation.curve import Curve, cost_range, hypervolume


@dataclass(frozen=True)
class Score:
    """How a curve becomes one number from 0 to 1; higher is better.

    hypervolume: mean over the logarithm of the inference cost (GMACs), from the cheapest evaluation size to one step
    above the dearest, of the best top-1 to be had for at most that cost; the reference point is that highest cost and
    top-1 0 (``curve.hypervolume``). mean: mean top-1 over the evaluation sizes. top1: top-1 at ``S``. capped: the best
    top-1 among the evaluation sizes that cost at most ``gmacs`` per image.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    measure: Literal["hypervolume", "mean", "top1", "capped"] = "hypervolume"
    S: int | None = None
    gmacs: float | None = None

    def __post_init__(self) -> None:
        if (self.measure == "capped") != (self.gmacs is not None):
            raise ValueError("gmacs goes with measure capped, which needs it: {measure: capped, gmacs: 1.8}")
        if self.gmacs is not None and not self.gmacs > 0:
            raise ValueError(f"gmacs must be above 0, not {self.gmacs}")
        if (self.measure == "top1") != (self.S is not None):
            raise ValueError("S goes with measure top1, which needs it: {measure: top1, S: 224}")

    def check(self, sizes: Sequence[int]) -> None:
        """Raise ValueError when the score asks for a size that is not evaluated."""
        if self.S is not None and self.S not in sizes:
            raise ValueError(f"score.S is {self.S}, which is not among evaluate.sizes {list(sizes)}")

    def check_cost(self, S: int, gmacs: float) -> None:
        """Raise ValueError when the cap lies below ``gmacs``, the cost of the smallest evaluation size ``S``."""
        if self.gmacs is not None and self.gmacs < gmacs:
            raise ValueError(
                f"score.gmacs is {self.gmacs:g}, and the smallest of evaluate.sizes, {S} px, costs {gmacs:.3g}"
            )

    def of(self, curve: Curve) -> float:
        """The score of a curve."""
        match self.measure:
            case "hypervolume":
                costs = [p.gmacs for p in curve.points]
                return hypervolume(costs, [p.top1 for p in curve.points], *cost_range(costs))
            case "mean":
                return sum(p.top1 for p in curve.points) / len(curve.points)
            case "top1":
                assert self.S is not None
                return curve.at(self.S).top1
            case "capped":
                assert self.gmacs is not None
                return max((p.top1 for p in curve.points if p.gmacs <= self.gmacs), default=0.0)

    def __str__(self) -> str:
        match self.measure:
            case "hypervolume":
                return "hypervolume of top-1 over log GMACs"
            case "mean":
                return "mean top-1 over the evaluation sizes"
            case "top1":
                return f"top-1 at {self.S} px"
            case "capped":
                return f"best top-1 for at most {self.gmacs:g} GMACs"


Objective = Literal["score", "gmacs", "ece", "loss"]
DIRECTIONS: dict[Objective, Literal["maximize", "minimize"]] = {
    "score": "maximize",
    "gmacs": "minimize",
    "ece": "minimize",
    "loss": "minimize",
}
CLOSE = 0.01  # top-1


def objective(name: Objective, curve: Curve, score: Score) -> float:
    """One of several things that a study may want of a curve.

    score: as the study scores. gmacs: inference cost at the cheapest size whose top-1 is within 0.01 of the curve's
    best. ece, loss: expected calibration error and cross-entropy, mean over the evaluation sizes.
    """
    if name == "score":
        return score.of(curve)
    if name == "gmacs":
        best = max(p.top1 for p in curve.points)
        return min(p.gmacs for p in curve.points if p.top1 >= best - CLOSE)
    return statistics.fmean(getattr(p, name) for p in curve.points)
