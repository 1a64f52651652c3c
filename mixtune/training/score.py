"""Score: one number made from a curve, the thing that a search maximises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.training.curve import Curve, cost_range, hypervolume


@dataclass(frozen=True)
class Score:
    """How a curve becomes one number from 0 to 1; higher is better.

    hypervolume: mean over the logarithm of the inference cost (GMACs), from the cheapest evaluation size to one step
    above the dearest, of the best top-1 to be had for at most that cost (``curve.hypervolume``). mean: mean top-1 over
    the evaluation sizes. top1: top-1 at ``S``.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    measure: Literal["hypervolume", "mean", "top1"] = "hypervolume"
    S: int | None = None

    def __post_init__(self) -> None:
        if (self.measure == "top1") != (self.S is not None):
            raise ValueError("S goes with measure top1, which needs it: {measure: top1, S: 224}")

    def check(self, sizes: Sequence[int]) -> None:
        """Raise ValueError when the score asks for a size that is not evaluated."""
        if self.S is not None and self.S not in sizes:
            raise ValueError(f"score.S is {self.S}, which is not among evaluate.sizes {list(sizes)}")

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

    def __str__(self) -> str:
        match self.measure:
            case "hypervolume":
                return "hypervolume of top-1 over log GMACs"
            case "mean":
                return "mean top-1 over the evaluation sizes"
            case "top1":
                return f"top-1 at {self.S} px"
