"""Opens a study in an MLflow store: the database, the experiment, the parent run, and how MLflow's pages show them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run
from mlflow.exceptions import MlflowException

from mixtune.config import to_yaml
from mixtune.errors import DISK_FULL, InputError, disk_full_error
from mixtune.runtime.environment import describe_environment
from mixtune.search import sqlite
from mixtune.search.space import Space
from mixtune.secrets import masked
from mixtune.tasks.base import DataIdentity
from mixtune.tasks.registry import task_class
from mixtune.tracking import views
from mixtune.tracking.mlflow_reader import EXPERIMENT, cause, make
from mixtune.tracking.mlflow_runs import ChildRuns, Refusals, is_permanent, make_client, release
from mixtune.tracking.projection import Projection

STUDY_ID = "mixtune.id"  # tag of the parent run: the study's id, which no other study has


class MlflowStudy:
    """A study in one MLflow store, which may be away, emptied or deleted between any two calls."""

    def __init__(self, uri: str, space: Space, folder: Path, study_id: str, earlier: str | None = None) -> None:
        """study_id: tells the study from others; earlier: its parent run's id, of a study without one."""
        self.uri, self.folder = uri, folder
        self.projection = Projection(space, task_class(space.task.kind).identity(space.training().task))
        self._id, self._earlier = study_id, earlier
        self.refusals = Refusals()
        try:
            make(uri)
            self.client = make_client(uri)
        except Exception as err:
            raise refused(uri, err) from None

    def open(self) -> ChildRuns:
        """Return the study's runs; what is missing of database, experiment and parent run is made.

        Raises what MLflow raises when the store does not answer.
        """
        path = sqlite.sqlite_path(self.uri)
        if path is not None and not path.exists():
            release(self.client)  # the connections are to a file that was deleted
            make(self.uri)
        experiment = self._experiment()
        self.client.set_experiment_tag(experiment, *views.view(self.projection.space))
        parent = self._parent(experiment)
        return ChildRuns(self.client, self.uri, experiment, parent, self.refusals, data_input(self.projection.data))

    def close(self) -> None:
        """Give the connections to a database back."""
        release(self.client)

    def _experiment(self) -> str:
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return str(experiment.experiment_id)
        # A server decides itself where artifacts lie; a file store would put them into the working folder.
        local = self.uri.startswith("sqlite")
        artifacts = f"file://{quote(str(self.folder.absolute()))}/artifacts" if local else None
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=artifacts))

    def _parent(self, experiment: str) -> str:
        """Return the study's parent run, made where there is none."""
        parent = self._found(experiment) or self._adopted()
        if parent is None:
            name, tags = f"study {self.projection.space.study}", {**self.projection.study_tags(), STUDY_ID: self._id}
            parent = self.client.create_run(experiment, run_name=name, tags=tags)
        run_id = str(parent.info.run_id)
        if "data.digest" not in parent.data.params:  # new, or whoever made it was killed
            self._describe(run_id)
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _found(self, experiment: str) -> Run | None:
        runs = self.client.search_runs([experiment], f"tags.`{STUDY_ID}` = '{self._id}'", max_results=1)
        return runs[0] if runs else None

    def _adopted(self) -> Run | None:
        """Return the parent run of a study that was begun before parent runs had the study's id."""
        if self._earlier is None:
            return None
        try:
            self.client.set_tag(self._earlier, STUDY_ID, self._id)
            return self.client.get_run(self._earlier)
        except MlflowException as err:
            if is_permanent(err):  # another store than last time, or it was deleted
                return None
            raise

    def _describe(self, parent: str) -> None:
        projection = self.projection
        self.client.log_inputs(parent, [data_input(projection.data)])
        self.client.log_text(parent, to_yaml(projection.space), "space.yaml")
        self.client.log_text(parent, to_yaml(describe_environment()), "environment.yaml")
        # Last, so that a parent run with parameters has everything.
        self.client.log_batch(parent, params=[Param(k, v) for k, v in projection.study_params().items()])


def refused(uri: str, err: Exception) -> InputError:
    """Return the error for a store that cannot be written."""
    if isinstance(err, InputError):
        return err
    full = "disk is full" in str(err) or "disk I/O error" in str(err)  # of SQLite
    if full or (isinstance(err, OSError) and err.errno in DISK_FULL):
        return disk_full_error(masked(uri))
    return InputError(f"--tracking-uri {masked(uri)}: MLflow cannot write there ({cause(err)})")


def data_input(data: DataIdentity) -> DatasetInput:
    """Return the data that a run sees, as MLflow has it."""
    counts = {"train": data.train, "validation": data.validation, "test": data.test, "classes": data.classes}
    source, profile = json.dumps({"uri": data.name}), json.dumps(counts)
    dataset = Dataset(data.name, data.digest, "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def system_metrics(uri: str, run_id: str) -> Any:
    """Return MLflow's own watch of this machine (CPU, memory, disk, network, GPU) for a run; None unless asked for.

    It is asked for as everywhere in MLflow, by MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true. ``finish()`` ends it. Raises
    InputError without the library that it reads the machine with.
    """
    from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as ASKED

    if not ASKED.get():
        return None
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
    except ImportError as err:
        raise InputError(
            f"{ASKED.name}: needs psutil, and nvidia-ml-py to see GPUs ({err}); pip install them"
        ) from None
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    watch = SystemMetricsMonitor(run_id, tracking_uri=uri, resume_logging=True)
    watch.start()
    return watch
