"""Pick: which trained network, at which size, meets a need such as "at most 1.5 GMACs".

S as in ``regime.shapes``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve, Point, front
from mixtune.training.run_folder import FinishedRun

_UNITS = {"gmacs": ("gmacs", 1.0), "mmacs": ("gmacs", 1e-3), "ms": ("latency", 1e-3), "mib": ("memory", 2.0**20)}


@dataclass(frozen=True)
class Need:
    """``at_most`` a cost, or ``at_least`` an accuracy: what a deployment asks for."""

    kind: Literal["at most", "at least"]
    metric: str
    value: float
    said: str

    @classmethod
    def parse(cls, kind: Literal["at most", "at least"], text: str) -> Need:
        """``1.5 GMACs``, ``200 MMACs``, ``3 ms`` or ``512 MiB`` at most; ``76 %`` at least. Raises InputError."""
        flag = "--" + kind.replace(" ", "-")
        found = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*(%|[a-zA-Z]+)\s*", text)
        units = ("%",) if kind == "at least" else tuple(_UNITS)
        if not found or found[2].lower() not in units:
            example = "'76 %'" if kind == "at least" else "'1.5 GMACs', '200 MMACs', '3 ms' or '512 MiB'"
            raise InputError(f"{flag} {text}: expected a number and its unit, {example}")
        metric, factor = ("top1", 0.01) if found[2] == "%" else _UNITS[found[2].lower()]
        try:
            return cls(kind, metric, float(found[1]) * factor, f"{found[1]} {found[2]}")
        except ValueError:
            raise InputError(f"{flag} {text}: {found[1]} is not a number") from None


def pick(runs: Sequence[FinishedRun], needs: Sequence[Need]) -> tuple[FinishedRun, Point]:
    """The network and size that meet every need: the most accurate one, or with only an accuracy asked the cheapest.

    Raises InputError when a cost was not measured, or nothing meets the needs (it says what comes nearest).
    """
    pairs = [(r, p) for r in runs for p in r.curve.points]
    for need in needs:
        if run := next((r for r, p in pairs if getattr(p, need.metric) is None), None):
            test = " --test" if run.judge == "test" else ""
            raise InputError(
                f"--at-most {need.said}: {need.metric} was not measured for these runs; ask for GMACs, or measure it: "
                f"python -m mixtune.evaluate --weights {run.folder}{test} --latency BATCH --out {run.folder}"
            )
        sign = 1 if need.kind == "at most" else -1
        kept = [(r, p) for r, p in pairs if sign * getattr(p, need.metric) <= sign * need.value + 1e-12]
        if not kept:
            near = min(pairs, key=lambda pair: sign * getattr(pair[1], need.metric))[1]
            raise InputError(
                f"--{need.kind.replace(' ', '-')} {need.said}: no network meets that; the nearest is {near.S} px with "
                f"{100 * near.top1:.2f} % at {near.gmacs:.3g} GMACs"
            )
        pairs = kept
    wants_accuracy_only = bool(needs) and all(n.kind == "at least" for n in needs)
    if wants_accuracy_only:
        return min(pairs, key=lambda pair: (pair[1].gmacs, -pair[1].top1))
    return max(pairs, key=lambda pair: (pair[1].top1, -pair[1].gmacs))


def useful_sizes(curve: Curve) -> list[int]:
    """The sizes worth deploying one network at: none cheaper is as accurate."""
    kept = front([p.gmacs for p in curve.points], [p.top1 for p in curve.points])
    return [curve.points[i].S for i in kept]
