"""What is added to a study's MLflow runs after the search, by hand: repeats with other seeds, and measurements."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from mixtune.errors import InputError
from mixtune.secrets import masked
from mixtune.tracking.mlflow_reader import CURVE, cause, open_tracking
from mixtune.tracking.mlflow_runs import ChildRuns, Refusals
from mixtune.tracking.run_content import RunContent


def record_repeat(uri: str, parent: str, content: RunContent) -> None:
    """Write a repeat (see ``run_content.repeat``) under a parent run. One that is there already is left alone.

    Raises InputError when the store does not take it.
    """
    client, experiment = open_tracking(uri)
    try:
        runs = ChildRuns(client, uri, experiment, parent, Refusals())
        runs.load()
        if runs.state(content.key) is None:
            runs.write(content, completed=True)
    except MlflowException as err:
        raise _refused(uri, err) from None


def record_measured(
    uri: str, run_id: str, values: Mapping[str, Mapping[int, float]], tags: Mapping[str, str] | None = None
) -> None:
    """Add metrics by image size to a finished run; measured again, they replace. Raises InputError when refused."""
    now = int(1000 * time.time())
    metrics = [Metric(f"{CURVE}{k}", float(v), now, S) for k, by_size in values.items() for S, v in by_size.items()]
    try:
        MlflowClient(uri).log_batch(run_id, metrics, tags=[RunTag(k, v) for k, v in (tags or {}).items()])
    except MlflowException as err:
        raise _refused(uri, err) from None


def _refused(uri: str, err: MlflowException) -> InputError:
    return InputError(f"--tracking-uri {masked(uri)}: MLflow cannot write there ({cause(err)})")
