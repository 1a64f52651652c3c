"""Score: one number made from a curve, the thing that a search maximises; and what else may be an objective."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import did_you_mean
from mixtune.evaluation.curve import Curve, cost_range, hypervolume
from mixtune.evaluation.metrics import Direction, Metrics


@dataclass(frozen=True)
class Score:
    """How a curve becomes one number from 0 (worst) to 1 (best): of the task's primary metric, as ``Metric.quality``.

    hypervolume: mean over the logarithm of the inference cost (GMACs), from the cheapest evaluation size to one step
    above the dearest, of the best value to be had for at most that cost; the reference point is that highest cost and
    the worst value (``curve.hypervolume``). mean: mean over the evaluation sizes. at_size: the value at ``S``; "top1"
    is its older name where that is the primary metric. capped: the best value among the evaluation sizes that cost at
    most ``gmacs`` per image.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    measure: Literal["hypervolume", "mean", "at_size", "top1", "capped"] = "hypervolume"
    S: int | None = None
    gmacs: float | None = None

    def __post_init__(self) -> None:
        if (self.measure == "capped") != (self.gmacs is not None):
            raise ValueError("gmacs goes with measure capped, which needs it: {measure: capped, gmacs: 1.8}")
        if self.gmacs is not None and not self.gmacs > 0:
            raise ValueError(f"gmacs must be above 0, not {self.gmacs}")
        if (self.measure in ("at_size", "top1")) != (self.S is not None):
            raise ValueError("S goes with measure at_size, which needs it: {measure: at_size, S: 224}")

    def check(self, sizes: Sequence[int], metrics: Metrics) -> None:
        """Raise ValueError when the score asks for a size that is not evaluated, or for another task's metric."""
        if self.S is not None and self.S not in sizes:
            raise ValueError(f"score.S is {self.S}, which is not among evaluate.sizes {list(sizes)}")
        if self.measure == "top1" and metrics.primary.name != "top1":
            raise ValueError(f"score.measure: this task measures {metrics.primary.name}, not top1; use at_size")

    def check_cost(self, S: int, gmacs: float) -> None:
        """Raise ValueError when the cap lies below ``gmacs``, the cost of the smallest evaluation size ``S``."""
        if self.gmacs is not None and self.gmacs < gmacs:
            raise ValueError(
                f"score.gmacs is {self.gmacs:g}, and the smallest of evaluate.sizes, {S} px, costs {gmacs:.3g}"
            )

    def of(self, curve: Curve) -> float:
        """Return the score of a curve."""
        costs, qualities = [p.gmacs for p in curve.points], curve.qualities
        match self.measure:
            case "hypervolume":
                return hypervolume(costs, qualities, *cost_range(costs))
            case "mean":
                return sum(qualities) / len(qualities)
            case "at_size" | "top1":
                assert self.S is not None
                return curve.primary.quality(curve.by_size()[self.S])
            case "capped":
                cap = self.gmacs
                assert cap is not None
                return max((q for cost, q in zip(costs, qualities, strict=True) if cost <= cap), default=0.0)

    def describe(self, metrics: Metrics) -> str:
        """Return what the score is, for people."""
        label = metrics.primary.label
        match self.measure:
            case "hypervolume":
                return f"hypervolume of {label} over log GMACs"
            case "mean":
                return f"mean {label} over the evaluation sizes"
            case "at_size" | "top1":
                return f"{label} at {self.S} px"
            case "capped":
                return f"best {label} for at most {self.gmacs:g} GMACs"


NEAR_BEST = 0.01  # of the primary metric's range


def direction(name: str, metrics: Metrics) -> Direction:
    """Return which way an objective is better. Raise ValueError where it is none."""
    if name in ("score", "gmacs"):
        return "maximize" if name == "score" else "minimize"
    if name not in metrics:
        raise ValueError(f"unknown objective {name!r}; {did_you_mean(name, ('score', 'gmacs', *metrics.names))}")
    return metrics[name].direction


def objective(name: str, curve: Curve, score: Score) -> float:
    """Return one of several things that a study may want of a curve.

    score: as the study scores. gmacs: inference cost at the cheapest size whose primary metric is within 0.01 of its
    range from the curve's best. Else a metric of the task, mean over the evaluation sizes.
    """
    if name == "score":
        return score.of(curve)
    if name == "gmacs":
        least = max(curve.qualities) - NEAR_BEST
        return min(p.gmacs for p, quality in zip(curve.points, curve.qualities, strict=True) if quality >= least)
    return statistics.fmean(curve.by_size(name).values())
