"""Curve: one trained network's results at every inference size, and the front over many curves."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtune.evaluation.metrics import Metric, Metrics


@dataclass(frozen=True)
class Point:
    """One network at one inference size.

    S: image side in pixels; gmacs: 10^9 multiply-accumulates per image; metrics: values by name. Where they were
    measured: latency in seconds per image and memory, the peak in bytes, both at the batch that the measurement states.
    """

    S: int
    gmacs: float
    metrics: Mapping[str, float]
    latency: float | None = None
    memory: float | None = None


MEASURED = ("latency", "memory")  # what a machine decides; a curve may be without


@dataclass(frozen=True)
class Curve:
    """A network's points, smallest size first, and what their metrics mean."""

    points: tuple[Point, ...]
    metrics: Metrics

    def __post_init__(self) -> None:
        if not self.points or any(a.S >= b.S for a, b in zip(self.points, self.points[1:], strict=False)):
            raise ValueError("a curve needs at least one point, and its sizes must rise")

    @property
    def primary(self) -> Metric:
        """Return the metric that scores, fronts and figures are of."""
        return self.metrics.primary

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return the inference sizes, smallest first."""
        return tuple(p.S for p in self.points)

    def at(self, S: int) -> Point:
        """Return the point at this size. Raise KeyError when it was not evaluated there."""
        for point in self.points:
            if point.S == S:
                return point
        raise KeyError(f"not evaluated at {S} px; sizes: {', '.join(map(str, self.sizes))}")

    def by_size(self, name: str | None = None) -> dict[int, float]:
        """Return a metric's value at every size; the primary metric's where no name is given."""
        return {p.S: p.metrics[name or self.primary.name] for p in self.points}

    @property
    def qualities(self) -> list[float]:
        """Return the primary metric at every size, from 0 (worst) to 1 (best)."""
        return [self.primary.quality(value) for value in self.by_size().values()]

    @property
    def best(self) -> Point:
        """Return the point with the best primary metric."""
        return max(zip(self.qualities, self.points, strict=True), key=lambda pair: pair[0])[1]

    def rows(self) -> list[dict[str, Any]]:
        """Return one flat dict per size, for CSV and JSON, without what was not measured."""
        measured = [{m: value for m in MEASURED if (value := getattr(p, m)) is not None} for p in self.points]
        return [
            {"S": p.S, "gmacs": p.gmacs, **{name: p.metrics[name] for name in self.metrics.names}, **more}
            for p, more in zip(self.points, measured, strict=True)
        ]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], metrics: Metrics) -> Curve:
        """Return the curve that ``rows`` made these of; values may be text. Raise KeyError for a missing metric."""
        points = []
        for row in rows:
            measured = {m: float(row[m]) for m in MEASURED if row.get(m) not in (None, "")}
            values = {name: float(row[name]) for name in metrics.names}
            points.append(Point(int(row["S"]), float(row["gmacs"]), values, **measured))
        return cls(tuple(points), metrics)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Return the mean of several curves of a task at the same sizes, for every value that all of them have."""
    rows = []
    for group in zip(*(curve.rows() for curve in curves), strict=True):
        shared = [name for name in group[0] if name != "S" and all(name in row for row in group)]
        rows.append({"S": group[0]["S"], **{name: sum(row[name] for row in group) / len(group) for name in shared}})
    return Curve.from_rows(rows, curves[0].metrics)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows of a curve as CSV, one per size; every bit of a number is kept."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def hypervolume(costs: Sequence[float], qualities: Sequence[float], low: float, high: float) -> float:
    """Return the share of the rectangle [low, high] x [0, 1] that is dominated, the cost axis being logarithmic.

    Equivalently the mean, over log cost from ``low`` to ``high``, of the best quality to be had for at most that cost:
    the two-dimensional hypervolume with reference point (high, 0), divided by log(high/low). Points dearer than
    ``high`` count nothing, cheaper than ``low`` count from ``low`` on. Raise ValueError unless 0 < low < high.
    """
    if not 0 < low < high:
        raise ValueError(f"the cost axis must run from a positive cost to a higher one, not {low:g} to {high:g}")
    area, best, at = 0.0, 0.0, math.log(low)
    for cost, quality in sorted(zip(costs, qualities, strict=True)):
        if cost >= high:
            break
        x = math.log(max(cost, low))
        area += best * (x - at)
        at, best = x, max(best, quality)
    area += best * (math.log(high) - at)
    return area / math.log(high / low)


def cost_range(costs: Sequence[float]) -> tuple[float, float]:
    """Return the hypervolume's default axis for evaluation sizes of these costs: from the least to one mean step above
    the greatest, so that the dearest size counts about as much as the others.
    """
    low, top = min(costs), max(costs)
    step = (top / low) ** (1 / (len(costs) - 1)) if len(costs) > 1 and top > low else 2.0
    return low, top * step


def front(costs: Sequence[float], qualities: Sequence[float]) -> list[int]:
    """Return the indices of the non-dominated points (no other is at most as dear and at least as good), cheapest
    first.
    """
    best, indices = -math.inf, []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -qualities[i])):
        if qualities[i] > best:
            best = qualities[i]
            indices.append(i)
    return indices
