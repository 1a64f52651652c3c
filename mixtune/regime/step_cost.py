"""The cost of a training step: pixels by rule, or GMACs or seconds from a measured table.

S, B, D as in ``shapes``. Measuring needs a network and happens in ``profiling``; this module reads the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from mixtune.config import parse, read_yaml
from mixtune.errors import InputError
from mixtune.regime.regime import StepCost
from mixtune.regime.shapes import BatchShape

Unit = Literal["pixels", "gmacs", "seconds"]
_FORBID = {"extra": "forbid"}


def pixel_cost(shape: BatchShape) -> float:
    """Return S^2*B*D: the cost of a step when nothing was measured."""
    return float(shape.pixels)


def sample_cost(shape: BatchShape) -> float:
    """Return B: what a step takes from a budget of epochs."""
    return float(shape.B)


@dataclass(frozen=True)
class CostTable:
    """Measured cost of one training step by batch shape; call it with a shape.

    ``unit``: "gmacs" (of the whole step, all its views) or "seconds" (of the whole step on one machine).
    ``measured_on``: the network and, for seconds, the device, so that a table is not used for another one.
    """

    unit: Unit
    costs: Mapping[BatchShape, float]
    measured_on: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        for shape, cost in self.costs.items():
            if not math.isfinite(cost) or cost <= 0:
                raise ValueError(f"a step of {shape} must cost more than 0 {self.unit}, not {cost!r}")

    def __call__(self, shape: BatchShape) -> float:
        """Return the cost of a step. Raise ValueError for a shape that was not measured; there is no interpolation."""
        if shape not in self.costs:
            known = ", ".join(map(str, sorted(self.costs))) or "none"
            raise ValueError(f"the cost of a step of {shape} was not measured in {self.unit}; measured: {known}")
        return self.costs[shape]

    @classmethod
    def from_gmacs(cls, gmacs: Mapping[int, float], shapes: Iterable[BatchShape], measured_on: str = "") -> CostTable:
        """Return the GMACs of steps, from the network's GMACs for one image at each size S.

        Raise ValueError for a size that was not measured.
        """
        missing = sorted({s.S for s in shapes} - set(gmacs))
        if missing:
            raise ValueError(f"the network's GMACs were not measured at S = {', '.join(map(str, missing))}")
        return cls("gmacs", {s: gmacs[s.S] * s.views for s in shapes}, measured_on)

    def text(self) -> str:
        """Return the table as readable YAML; ``load`` makes an equal one of it, to the bit."""
        rows = [{"S": s.S, "B": s.B, "D": s.D, "cost": float(self.costs[s])} for s in sorted(self.costs)]
        data = {"unit": self.unit, "measured_on": self.measured_on, "steps": rows}
        return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)

    def save(self, path: str | Path) -> None:
        """Write the table to a file."""
        Path(path).write_text(self.text(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, measured_on: str | None = None) -> CostTable:
        """Read a table. Raise InputError when it is malformed, or measured on something else than ``measured_on``."""
        file = parse(read_yaml(path), _CostFile, path)
        if measured_on is not None and file.measured_on != measured_on:
            raise InputError(f"{path}: measured on {file.measured_on!r}, not on {measured_on!r}; measure again")
        try:
            return cls(file.unit, {BatchShape(r.S, r.B, r.D): r.cost for r in file.steps}, file.measured_on)
        except ValueError as err:
            raise InputError(f"{path}: steps: {err}") from None


@dataclass(frozen=True)
class _Row:
    __pydantic_config__ = _FORBID  # read by pydantic

    S: int
    B: int
    D: int
    cost: float

    def __post_init__(self) -> None:
        BatchShape(self.S, self.B, self.D)  # so that a bad shape is reported with this row's key


@dataclass(frozen=True)
class _CostFile:
    __pydantic_config__ = _FORBID

    unit: Unit
    steps: tuple[_Row, ...]
    measured_on: str = ""


def step_cost(cost: StepCost | Mapping[BatchShape, float] | None, unit: Unit) -> StepCost:
    """Return the function that gives a step's cost in ``unit``: the given table, mapping or function, else pixels.

    Raise ValueError when the unit has to be measured and nothing was, or when a table is in another unit.
    """
    if cost is None:
        if unit != "pixels":
            raise ValueError(f"a budget in {unit} needs the measured cost of every batch shape; none was given")
        return pixel_cost
    if isinstance(cost, CostTable):
        if cost.unit != unit:
            raise ValueError(f"the budget counts {unit}, the cost table {cost.unit}")
        return cost
    return CostTable(unit, cost) if isinstance(cost, Mapping) else cost
