"""Recorded: what is added to a study's MLflow runs after the search: repeats with other seeds, and measurements."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mixtune.errors import InputError
from mixtune.secrets import masked
from mixtune.study import parameters
from mixtune.study.browsing import top1_at, width
from mixtune.study.delivery import curve_metrics
from mixtune.study.knobs import Value
from mixtune.study.store import CURVE, cause, opened
from mixtune.training.curve import Curve


def record_repeat(
    uri: str,
    parent: str,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, Value],
    curve: Curve,
    score: float,
    more: Mapping[str, Mapping[int, float]],
) -> None:
    """A finished run with another seed as a child run (kind "repeat"); one that is there already is left alone.

    ``tags``: without their prefix; study, trial, judge and seed tell runs apart. ``more``: other metrics by size.
    Raises InputError when the store does not take it.
    """
    try:
        client, experiment = opened(uri)
        wanted = {k: tags[k] for k in ("study", "trial", "judge", "seed")} | {"kind": "repeat"}
        where = " and ".join(f"tags.`mixtune.{k}` = '{v}'" for k, v in wanted.items())
        if client.search_runs([experiment], where, max_results=1):
            return
        named = {f"mixtune.{k}": v for k, v in tags.items()} | {"mixtune.kind": "repeat", "mixtune.state": "COMPLETE"}
        named[parameters.POINT] = parameters.exact(params)
        run = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent, **named})
        now = int(1000 * time.time())
        digits = width([*curve.sizes, *(int(k[2:]) for k in params if k.startswith("w_"))])
        every = [*curve_metrics(curve), ["score", round(score, 5), 100]]
        every += [[top1_at(p.S, digits), round(p.top1, 5), 100] for p in curve.points]
        every += [[f"{CURVE}{k}", v, S] for k, values in more.items() for S, v in values.items()]
        metrics = [Metric(k, v, now, step) for k, v, step in every]
        named_params = [Param(k, v) for k, v in parameters.point(params, digits).items()]
        client.log_batch(run.info.run_id, metrics=metrics, params=named_params)
        client.set_terminated(run.info.run_id)
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
