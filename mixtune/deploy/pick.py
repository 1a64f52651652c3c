"""Pick: which trained network, at which size, meets a need such as "at most 1.5 GMACs".

S as in ``regime.shapes``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import InputError, did_you_mean
from mixtune.evaluation.curve import Curve, Point, front
from mixtune.evaluation.metrics import Metrics
from mixtune.training.run_folder import FinishedRun

# Units of costs, in small letters: the field of a point, and how much of what that holds one of them is.
_UNITS = {"gmacs": ("gmacs", 1.0), "mmacs": ("gmacs", 1e-3), "ms": ("latency", 1e-3), "mib": ("memory", 2.0**20)}


@dataclass(frozen=True)
class Need:
    """What a deployment asks for: at most a cost, or a metric of the task of at most or at least so much.

    quantity: the field of a point, or the name of a metric; text: as it was asked for.
    """

    kind: Literal["at most", "at least"]
    quantity: str
    value: float
    text: str

    @classmethod
    def parse(cls, kind: Literal["at most", "at least"], text: str, metrics: Metrics) -> Need:
        """Read ``1.5 GMACs``, ``200 MMACs``, ``3 ms`` or ``512 MiB`` at most; ``76 %`` at least of the primary metric;
        or another metric by name, as ``top5 93 %`` and ``loss 1.2``. Raise InputError.
        """
        flag = "--" + kind.replace(" ", "-")
        match = re.fullmatch(r"\s*(?:([a-zA-Z_]\w*)\s+)?([0-9.]+(?:e-?\d+)?)\s*(%|[a-zA-Z]+)?\s*", text)
        name, number, unit = match.groups() if match else (None, None, None)
        costs = kind == "at most" and name is None and str(unit).lower() in _UNITS
        if number is None or not (costs or (unit in ("%", None) and (name or kind == "at least"))):
            example = "'76 %' or 'NAME 76 %'" if kind == "at least" else "'1.5 GMACs', '200 MMACs', '3 ms' or '512 MiB'"
            raise InputError(f"{flag} {text}: expected a number and its unit, {example}")
        if costs:
            quantity, factor = _UNITS[str(unit).lower()]
        else:
            quantity, factor = name or metrics.primary.name, 0.01 if unit else 1.0
            if quantity not in metrics:
                raise InputError(f"{flag} {text}: unknown metric {quantity}; {did_you_mean(quantity, metrics.names)}")
            if bool(unit) != bool(metrics[quantity].unit):
                as_shown = "in %" if metrics[quantity].unit else "without a unit"
                raise InputError(f"{flag} {text}: {quantity} is given {as_shown}")
        try:
            return cls(kind, quantity, float(number) * factor, " ".join(part for part in (name, number, unit) if part))
        except ValueError:
            raise InputError(f"{flag} {text}: {number} is not a number") from None

    def of(self, point: Point) -> float | None:
        """Return what a point has of it; None where that was not measured."""
        value: float | None = point.metrics.get(self.quantity, getattr(point, self.quantity, None))
        return value

    def __str__(self) -> str:
        return f"{self.kind} {self.text}"


def pick(runs: Sequence[FinishedRun], needs: Sequence[Need]) -> tuple[FinishedRun, Point]:
    """Return the network and size that meet every need: the best in the primary metric, or where no need is of a cost
    the cheapest.

    Raise InputError for networks of different tasks, and when a cost was not measured, or nothing meets the needs (it
    says what comes nearest).
    """
    primary = runs[0].curve.primary
    if other := next((run for run in runs if run.curve.metrics != runs[0].curve.metrics), None):
        raise InputError(f"--run {other.folder}: is of another task than {runs[0].folder}")

    def quality(pair: tuple[FinishedRun, Point]) -> float:
        return primary.quality(pair[1].metrics[primary.name])

    pairs = [(run, point) for run in runs for point in run.curve.points]
    for need in needs:
        if run := next((run for run, point in pairs if need.of(point) is None), None):
            test = " --test" if run.judge == "test" else ""
            raise InputError(
                f"--at-most {need.text}: {need.quantity} was not measured for these runs; ask for GMACs, or measure "
                f"it: python -m mixtune.evaluate --weights {run.folder}{test} --latency BATCH --out {run.folder}"
            )
        sign = 1 if need.kind == "at most" else -1

        def excess(pair: tuple[FinishedRun, Point], need: Need = need, sign: int = sign) -> float:
            value = need.of(pair[1])
            assert value is not None
            return sign * (value - need.value)

        meeting = [pair for pair in pairs if excess(pair) <= 1e-12]
        if not meeting:
            point = min(pairs, key=excess)[1]
            value = f"{primary.shown(point.metrics[primary.name])} {primary.unit}".strip()
            raise InputError(
                f"--{need.kind.replace(' ', '-')} {need.text}: no network meets that; the nearest is {point.S} px with "
                f"{value} at {point.gmacs:.3g} GMACs"
            )
        pairs = meeting
    if needs and all(need.quantity in runs[0].curve.metrics for need in needs):
        return min(pairs, key=lambda pair: (pair[1].gmacs, -quality(pair)))
    return max(pairs, key=lambda pair: (quality(pair), -pair[1].gmacs))


def useful_sizes(curve: Curve) -> list[int]:
    """Return the sizes worth deploying one network at: none cheaper is as good."""
    return [curve.points[i].S for i in front([p.gmacs for p in curve.points], curve.qualities)]
