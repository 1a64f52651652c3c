"""What is written of one child run in MLflow, as a whole or in parts that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mlflow.entities import Metric

from mixtune.evaluation.curve import Curve
from mixtune.search.domains import Value
from mixtune.search.final import Repeat
from mixtune.tracking import parameters, views
from mixtune.tracking.mlflow_reader import CURVE


class RunKey(NamedTuple):
    """Which child run of a study: that of a trial, or of a repeat of one on some images with some seed."""

    kind: str
    trial: int
    judge: str = ""
    seed: int = 0

    @classmethod
    def of(cls, number: int, repeat: Repeat | None = None) -> RunKey:
        """Return the key of the trial with this number, or of a repeat."""
        return cls("repeat", repeat.of, repeat.judge, repeat.seed) if repeat else cls("trial", number)

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> RunKey:
        """Return the key of a run with these tags, of kind "trial" or "repeat"."""
        kind, trial = tags["mixtune.kind"], int(tags["mixtune.trial"])
        return cls(kind, trial, *((tags["mixtune.judge"], int(tags["mixtune.seed"])) if kind == "repeat" else ()))


@dataclass(frozen=True)
class RunContent:
    """What is written of one child run, as a whole or a part of it.

    ``status``: as MLflow has it once the run is over, else None. ``began``, ``ended``: milliseconds since 1970.
    """

    key: RunKey
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    files: Sequence[Path] = ()
    status: str | None = None
    began: int = 0
    ended: int = 0

    def then(self, later: RunContent) -> RunContent:
        """Return this part and a later one of the same run as one."""
        return replace(
            self,
            tags={**self.tags, **later.tags},
            params={**self.params, **later.params},
            metrics=[*self.metrics, *later.metrics],
            files=[*self.files, *later.files],
            status=later.status or self.status,
            ended=later.ended or self.ended,
        )


def repeat(
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Value],
    curve: Curve,
    score: float,
    more: Mapping[str, Mapping[int, float]],
    files: Sequence[Path],
    began: int,
    ended: int,
) -> RunContent:
    """Return the run of a finished training with another seed.

    ``tags``: without their prefix; study, trial, judge and seed tell runs apart. ``more``: other metrics by size.
    """
    digits = views.width([*curve.sizes, *(int(k[2:]) for k in params if k.startswith("w_"))])
    by_size = {views.at_size(curve.primary.name, S, digits): round(v, 5) for S, v in curve.by_size().items()}
    judged = {"score": round(score, 5), **by_size}
    measured = [Metric(f"{CURVE}{k}", float(v), ended, S) for k, values in more.items() for S, v in values.items()]
    prefixed = {f"mixtune.{k}": v for k, v in tags.items()} | {"mixtune.kind": "repeat", "mixtune.state": "COMPLETE"}
    return RunContent(
        RunKey.from_tags(prefixed),
        name,
        prefixed | {parameters.POINT: parameters.exact(params)},
        parameters.point(params, digits),
        [*curve_metrics(curve, ended), *metrics_at(judged, ended, 100), *measured],
        files,
        "FINISHED",
        began,
        ended,
    )


def curve_metrics(curve: Curve, at: int) -> list[Metric]:
    """Return a curve's metrics: the image size is the step, so that MLflow's own chart is accuracy against size."""
    return [
        Metric(f"{CURVE}{k}", float(v), at, int(row["S"])) for row in curve.rows() for k, v in row.items() if k != "S"
    ]


def metrics_at(values: Mapping[str, float], at: int, step: int) -> list[Metric]:
    """Return values by name as metrics at one step; at: milliseconds since 1970."""
    return [Metric(k, float(v), at, step) for k, v in values.items()]
