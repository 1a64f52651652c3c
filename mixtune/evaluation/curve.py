"""Curve: one trained network's results at every inference size, and the front over many curves."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """One network at one inference size.

    S: image side in pixels; gmacs: 10^9 multiply-accumulates per image; top1, top5: accuracy from 0 to 1; loss:
    cross-entropy in nats; ece: expected calibration error from 0 to 1 (15 equal bins of confidence). Where they were
    measured: latency in seconds per image and memory, the peak in bytes, both at the batch that the measurement states.
    """

    S: int
    gmacs: float
    top1: float
    top5: float
    loss: float
    ece: float
    latency: float | None = None
    memory: float | None = None


MEASURED = ("latency", "memory")  # what a machine decides; a curve may be without
METRICS = tuple(f.name for f in dataclasses.fields(Point) if f.name != "S" and f.name not in MEASURED)


@dataclass(frozen=True)
class Curve:
    """A network's points, smallest size first."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if not self.points or any(a.S >= b.S for a, b in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("a curve needs at least one point, and its sizes must rise")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The inference sizes, smallest first."""
        return tuple(p.S for p in self.points)

    def at(self, S: int) -> Point:
        """The point at this size. Raises KeyError when it was not evaluated there."""
        for point in self.points:
            if point.S == S:
                return point
        raise KeyError(f"not evaluated at {S} px; sizes: {', '.join(map(str, self.sizes))}")

    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per size, for CSV and JSON, without what was not measured."""
        return [{k: v for k, v in dataclasses.asdict(p).items() if v is not None} for p in self.points]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Curve:
        """The inverse of ``rows``; values may be text."""
        points = []
        for row in rows:
            there = [*METRICS, *(m for m in MEASURED if row.get(m) not in (None, ""))]
            points.append(Point(int(row["S"]), **{m: float(row[m]) for m in there}))
        return cls(tuple(points))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves at the same sizes, for every value that all of them have."""
    points = []
    for group in zip(*(c.points for c in curves), strict=True):
        values = {}
        for f in dataclasses.fields(Point):
            found = [getattr(p, f.name) for p in group]
            if f.name != "S" and None not in found:
                values[f.name] = sum(found) / len(found)
        points.append(Point(group[0].S, **values))
    return Curve(tuple(points))


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of a curve as CSV, one per size; every bit of a number is kept."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def hypervolume(costs: Sequence[float], accuracies: Sequence[float], low: float, high: float) -> float:
    """Share of the rectangle [low, high] x [0, 1] that is dominated, the cost axis being logarithmic.

    Equivalently the mean, over log cost from ``low`` to ``high``, of the best accuracy to be had for at most that cost:
    the two-dimensional hypervolume with reference point (high, 0), divided by log(high/low). Points dearer than
    ``high`` count nothing, cheaper than ``low`` count from ``low`` on. Raises ValueError unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"the cost axis must run from a positive cost to a higher one, not {low:g} to {high:g}")
    area, best, at = 0.0, 0.0, math.log(low)
    for cost, accuracy in sorted(zip(costs, accuracies, strict=True)):
        if cost >= high:
            break
        x = math.log(max(cost, low))
        area += best * (x - at)
        at, best = x, max(best, accuracy)
    area += best * (math.log(high) - at)
    return area / math.log(high / low)


def cost_range(costs: Sequence[float]) -> tuple[float, float]:
    """The hypervolume's default axis for evaluation sizes of these costs: from the least to one mean step above the
    greatest, so that the dearest size counts about as much as the others.
    """
    low, top = min(costs), max(costs)
    step = (top / low) ** (1 / (len(costs) - 1)) if len(costs) > 1 and top > low else 2.0
    return low, top * step


def front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices of the non-dominated points (no other is at most as dear and at least as accurate), cheapest first."""
    best, kept = -math.inf, []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -accuracies[i])):
        if accuracies[i] > best:
            best = accuracies[i]
            kept.append(i)
    return kept
