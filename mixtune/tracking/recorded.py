"""Recorded: what is added to a study's MLflow runs after the search: repeats with other seeds, and measurements."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve
from mixtune.search.domains import Value
from mixtune.search.spool import Record
from mixtune.secrets import masked
from mixtune.tracking import parameters
from mixtune.tracking.delivery import deliver_repeat
from mixtune.tracking.mlflow_reader import CURVE, cause, opened
from mixtune.tracking.views import at_size, width


def curve_metrics(curve: Curve) -> list[list[Any]]:
    """[name, value, step]: the image size is the step, so that MLflow's own chart is of a metric against size."""
    return [[f"{CURVE}{m}", float(v), int(row["S"])] for row in curve.rows() for m, v in row.items() if m != "S"]


def repeat(
    parent: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Value],
    curve: Curve,
    score: float,
    more: Mapping[str, Mapping[int, float]],
    files: Sequence[str] = (),
) -> Record:
    """A finished run with another seed as the record of a child run (kind "repeat").

    ``tags``: without their prefix; study, trial, judge and seed tell runs apart. ``more``: other metrics by size.
    """
    digits = width([*curve.sizes, *(int(k[2:]) for k in params if k.startswith("w_"))])
    every = [*curve_metrics(curve), ["score", round(score, 5), 100]]
    every += [[at_size(curve.primary.name, S, digits), round(v, 5), 100] for S, v in curve.by_size().items()]
    every += [[f"{CURVE}{k}", v, S] for k, values in more.items() for S, v in values.items()]
    named = {f"mixtune.{k}": v for k, v in tags.items()} | {"mixtune.kind": "repeat", "mixtune.state": "COMPLETE"}
    named[parameters.POINT] = parameters.exact(params)
    return {
        "do": "repeat",
        "trial": int(tags["trial"]),
        "parent": parent,
        "time": int(1000 * time.time()),
        "name": name,
        "tags": {"mlflow.parentRunId": parent, **named},
        "params": parameters.point(params, digits),
        "metrics": every,
        "files": list(files),
    }


def record_repeat(uri: str, record: Record) -> None:
    """Send a record that ``repeat`` made to a store. Raises InputError when it does not take it."""
    try:
        deliver_repeat(*opened(uri), record)
    except MlflowException as err:
        raise InputError(f"--tracking-uri {masked(uri)}: MLflow cannot write there ({cause(err)})") from None


def record_measured(
    uri: str, run_id: str, values: Mapping[str, Mapping[int, float]], tags: Mapping[str, str] | None = None
) -> None:
    """Add metrics by image size to a finished run; measured again, they replace. Raises InputError when refused."""
    now = int(1000 * time.time())
    metrics = [Metric(f"{CURVE}{k}", float(v), now, S) for k, by_size in values.items() for S, v in by_size.items()]
    try:
        MlflowClient(uri).log_batch(run_id, metrics, tags=[RunTag(k, v) for k, v in (tags or {}).items()])
    except MlflowException as err:
        raise InputError(f"--tracking-uri {uri}: MLflow cannot write there ({cause(err)})") from None
