"""Opening of a study's tracking: its store, experiment and parent run, before the first trial and in the search's own
process, so that what is wrong with them is said in one sentence. ``delivery`` writes all else.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow.entities import Param
from mlflow.exceptions import MlflowException

from mixtune.errors import InputError, no_room
from mixtune.secrets import masked
from mixtune.tracking.delivery import client_of, data_input, released
from mixtune.tracking.mlflow_reader import EXPERIMENT, cause, make, states


class Opening:
    """A tracking store that is there, with the experiment in it."""

    def __init__(self, uri: str, folder: Path, data: Mapping[str, Any]) -> None:
        """Open or make the store; data: the fields of an ``Identity``. Raises InputError when it cannot be reached."""
        self._uri, self._data = uri, data
        try:
            make(uri)
            self._client = client_of(uri)
            self.experiment = self._experiment(uri, folder)
        except Exception as err:
            raise self._refused(err) from None

    def close(self) -> None:
        """Give the connections to a database back."""
        released(self._client)

    def states(self, parent: str) -> dict[int, tuple[str, float | None]]:
        """State and last score of every trial under a parent run, as the store has them."""
        found = states(self._client, self.experiment, parent)
        return {trial: (state, score) for trial, (_, state, score) in found.items()}

    def _refused(self, err: Exception) -> InputError:
        if "disk is full" in str(err):
            return no_room(masked(self._uri))
        return InputError(f"--tracking-uri {masked(self._uri)}: MLflow cannot write there ({cause(err)})")

    def _experiment(self, uri: str, folder: Path) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts lie; a file store would put them into the working folder.
        local = uri.startswith("sqlite")
        where = f"file://{quote(str(folder.absolute()))}/artifacts" if local else None
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=where))

    def view(self, name: str, value: str) -> None:
        """Keep how the study is shown as a tag of the experiment. Raises InputError."""
        try:
            self._client.set_experiment_tag(self.experiment, name, value)
        except Exception as err:
            raise self._refused(err) from None

    def parent(
        self,
        run_id: str | None,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        texts: Mapping[str, str],
    ) -> str:
        """The study's parent run: ``run_id`` where it is there still, else a new one, with ``texts`` as artifacts.

        Raises InputError.
        """
        if run_id is not None:
            with contextlib.suppress(MlflowException):  # another store than last time: begin a new parent there
                self._client.update_run(run_id, status="RUNNING")
                return run_id
        counts = {f"images.{k}": str(self._data[k]) for k in ("train", "validation", "test")}
        every = {**params, **counts, "data.digest": str(self._data["digest"])}
        try:
            made = str(self._client.create_run(self.experiment, run_name=name, tags=dict(tags)).info.run_id)
            self._client.log_batch(made, params=[Param(k, v) for k, v in every.items()])
            self._client.log_inputs(made, [data_input(self._data)])
            for file, text in texts.items():
                self._client.log_text(made, text, file)
        except Exception as err:
            raise self._refused(err) from None
        return made


def system_metrics(uri: str, run_id: str) -> Any:
    """MLflow's own watch of this machine (CPU, memory, disk, network, GPU), begun for a run; None unless asked for.

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
