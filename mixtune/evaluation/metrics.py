"""Metrics: what a task measures at every inference size, and how each metric is named, ordered and shown to people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import did_you_mean

Direction = Literal["maximize", "minimize"]
RESERVED = ("S", "gmacs", "latency", "memory", "score")  # what else a row of a curve, or an objective, can be called


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is at one inference size.

    name: in files, MLflow and objectives ("top1"); label: in tables ("top-1"); title: on axes, where that differs
    ("top-1 accuracy"). worst, best: the ends of its range, of which one may be infinite; the greater one says
    whether more or less is better. unit: "%" where it is shown times 100, else "". proportion: whether it is the share
    of images that are right, so that its error from the choice of images is binomial.
    """

    name: str
    label: str
    title: str = ""
    worst: float = 0.0
    best: float = 1.0
    unit: Literal["%", ""] = "%"
    proportion: bool = False

    @property
    def direction(self) -> Direction:
        """Return whether more or less is better."""
        return "maximize" if self.best > self.worst else "minimize"

    @property
    def scale(self) -> float:
        """Return what a value is multiplied by to be shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def axis(self) -> str:
        """Return the label of an axis, with the unit."""
        return f"{self.title or self.label}{f', {self.unit}' if self.unit else ''}"

    def quality(self, value: float) -> float:
        """Return where a value lies in the range, from 0 (worst) to 1 (best); the value itself where that is the range.

        Raise ValueError for a metric without a finite range.
        """
        if not math.isfinite(self.best - self.worst):
            raise ValueError(f"metric {self.name} has no finite range, so it cannot be a task's primary metric")
        return (value - self.worst) / (self.best - self.worst)

    def shown(self, value: float, digits: int = 2) -> str:
        """Return a value in its unit, without the unit; two digits more where it is not a percentage."""
        return f"{self.scale * value:.{digits if self.unit else digits + 2}f}"


@dataclass(frozen=True)
class Metrics:
    """The metrics of a task. primary: what scores, fronts and figures are of; it has a finite range.

    noun: what the primary metric measures, in the middle of a sentence ("accuracy"). Raises ValueError for two metrics
    of one name, and for names that rows of a curve have for something else.
    """

    primary: Metric
    others: tuple[Metric, ...] = ()
    noun: str = "accuracy"

    def __post_init__(self) -> None:
        self.primary.quality(self.primary.best)
        if len(set(self.names)) < len(self.names) or {*self.names} & {*RESERVED}:
            raise ValueError(
                f"metrics need different names, none of {', '.join(RESERVED)}, not {', '.join(self.names)}"
            )

    def __iter__(self) -> Iterator[Metric]:
        yield self.primary
        yield from self.others

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of this name. Raise KeyError, with what is near, where there is none."""
        for metric in self:
            if metric.name == name:
                return metric
        raise KeyError(f"unknown metric {name!r}; {did_you_mean(name, self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names, the primary metric's first: the order of columns in files."""
        return tuple(metric.name for metric in self)
