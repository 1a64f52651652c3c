"""Delivery of a study's records to MLflow, each in a way that may be repeated. Writes; ``store`` reads.

These two are the only modules that know MLflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunInfo, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mixtune.errors import InputError, no_room
from mixtune.secrets import masked
from mixtune.study.durable import sqlite
from mixtune.study.durable.outbox import PermanentError, Record
from mixtune.study.tracking.identity import Identity
from mixtune.study.tracking.recorded import deliver_repeat
from mixtune.study.tracking.store import EXPERIMENT, cause, make

# What the store will never take, however often it is asked.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "INVALID_STATE",
}


def merged(records: Sequence[Record]) -> Iterator[tuple[Record, Sequence[Record]]]:
    """Successive records of each trial as one, which costs the store a fraction; with what each is made from.

    Trials do not depend on one another, so their records need no common order; those of the study itself, and those
    that take a run away, come after whatever is before them.
    """
    waiting: dict[int, list[Record]] = {}
    for r in records:
        if r["do"] in ("start", "report", "end"):
            waiting.setdefault(r["trial"], []).append(r)
            continue
        yield from ((_one(parts), parts) for parts in waiting.values())
        waiting.clear()
        yield r, (r,)
    yield from ((_one(parts), parts) for parts in waiting.values())


def _one(parts: Sequence[Record]) -> Record:
    """A trial's records as one, with the times that they had."""
    if len(parts) == 1:
        return parts[0]
    whole = dict(parts[0])
    whole["metrics"] = [[*row[:3], r["time"]] for r in parts for row in r.get("metrics", ())]
    whole["files"] = [path for r in parts for path in r.get("files", ())]
    for r in parts[1:]:
        key = "later" if whole["do"] == "start" else "tags"
        whole[key] = {**whole.get(key, {}), **r.get("tags", {})}
        whole["params"] = {**whole.get("params", {}), **r.get("params", {})}
        if "status" in r:
            whole |= {"status": r["status"], "ended": r["time"]}
    return whole


class Sender:
    """Sends records of a study to one tracking store."""

    def __init__(self, uri: str, folder: Path, data: Identity) -> None:
        """Open or make the store and the experiment in it. Raises InputError when it cannot be reached."""
        self._uri, self._data = uri, data
        self._runs: dict[int, RunInfo] = {}
        self._asked = False  # whether ``_runs`` holds all that the store has
        try:
            make(uri)
            self._client = MlflowClient(uri)
            with contextlib.suppress(AttributeError):  # a server. What a power cut takes, ``Tracker.repair`` writes.
                sqlite.hastened(self._client._tracking_client.store.engine)
            self.experiment = self._experiment(uri, folder)
        except Exception as err:
            raise self._refused(err) from None

    def close(self) -> None:
        """Give the connections to a database back; there are none to a server."""
        with contextlib.suppress(AttributeError):
            self._client._tracking_client.store.engine.dispose()

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
        counts = {f"images.{k}": str(getattr(self._data, k)) for k in ("train", "validation", "test")}
        every = {**params, **counts, "data.digest": self._data.digest}
        try:
            made = str(self._client.create_run(self.experiment, run_name=name, tags=dict(tags)).info.run_id)
            self._client.log_batch(made, params=[Param(k, v) for k, v in every.items()])
            self._client.log_inputs(made, [self._input()])
            for file, text in texts.items():
                self._client.log_text(made, text, file)
        except Exception as err:
            raise self._refused(err) from None
        return made

    def _input(self) -> DatasetInput:
        d = self._data
        counts = {k: getattr(d, k) for k in ("train", "validation", "test", "classes")}
        found = Dataset(d.name, d.digest, "local", json.dumps({"uri": d.name}), profile=json.dumps(counts))
        return DatasetInput(found, [InputTag("mlflow.data.context", "training")])

    def deliver(self, r: Record) -> None:
        """Send one record. Sending it twice changes nothing: runs are looked up, metrics carry their own time."""
        try:
            self._send(r)
        except Exception as err:
            self._asked = False  # a run may have been made although no answer came
            if isinstance(err, MlflowException) and err.error_code in _PERMANENT:
                raise PermanentError(f"{r['do']} of trial {r['trial']}: {cause(err)}") from None
            raise

    def _send(self, r: Record) -> None:
        if r["do"] == "discard unfinished":
            where = f"tags.`mlflow.parentRunId` = '{r['parent']}' and tags.`mixtune.state` = 'RUNNING'"
            for run in self._client.search_runs([self.experiment], where, max_results=1000):
                self._discard(str(run.info.run_id))
            return
        if r["do"] == "repeat":
            deliver_repeat(self._client, self.experiment, r, [self._input()])
            return
        run = self._client.get_run(r["parent"]).info if r["do"] in ("summary", "finish") else self._run_of(r)
        run_id = str(run.run_id)
        if r["do"] == "discard":
            self._discard(run_id)
            return
        metrics = [Metric(k, v, at[0] if at else r["time"], step) for k, v, step, *at in r.get("metrics", ())]
        params = [Param(k, v) for k, v in r.get("params", {}).items()]
        # A run is made with the tags of its start; a record that holds its end too sets others.
        tags = [RunTag(k, v) for k, v in r.get("tags" if r["do"] != "start" else "later", {}).items()]
        if metrics or params or tags:
            self._client.log_batch(run_id, metrics, params, tags)
        if files := [path for path in map(Path, r.get("files", ())) if path.exists()]:
            # The client's own log_artifact asks for the run once more, and keeps an object for every run.
            artifacts = get_artifact_repository(run.artifact_uri, tracking_uri=self._uri)
            for path in files:
                figure = r["do"] == "finish" and path.suffix != ".yaml"
                artifacts.log_artifact(str(path), "figures" if figure else None)
        if "status" in r:
            self._client.set_terminated(run_id, status=r["status"], end_time=r.get("ended", r["time"]))

    def states(self, parent: str) -> dict[int, tuple[str, float | None]]:
        """State and last score of every trial under a parent run, as the store has them."""
        where = f"tags.`mlflow.parentRunId` = '{parent}' and tags.`mixtune.kind` = 'trial'"
        found: dict[int, tuple[str, float | None]] = {}
        token, self._asked = None, False
        while True:
            page = self._client.search_runs([self.experiment], where, max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                state = tags["mixtune.state"] if run.info.status != "RUNNING" else "RUNNING"
                found[int(tags["mixtune.trial"])] = (state, run.data.metrics.get("score"))
                self._runs[int(tags["mixtune.trial"])] = run.info
            if not (token := page.token):
                self._asked = True
                return found

    def _run_of(self, r: Record) -> RunInfo:
        """The trial's child run, made where it is not there yet. Raises PermanentError when it should be there."""
        if r["trial"] not in self._runs:
            run = None if self._asked and r["do"] == "start" else self._found(r)
            if run is None:
                if r["do"] != "start":
                    raise PermanentError(f"{r['do']} of trial {r['trial']}: its run is gone")
                run = self._client.create_run(self.experiment, r["time"], r["tags"], r["name"])
                self._client.log_inputs(str(run.info.run_id), [self._input()])
            self._runs[r["trial"]] = run.info
        return self._runs[r["trial"]]

    def _found(self, r: Record) -> Run | None:
        where = f"tags.`mlflow.parentRunId` = '{r['parent']}' and tags.`mixtune.trial` = '{r['trial']}'"
        where += " and tags.`mixtune.kind` = 'trial'"
        return next(iter(self._client.search_runs([self.experiment], where, max_results=1)), None)

    def _discard(self, run_id: str) -> None:
        """Move a child run that does not count to MLflow's bin."""
        self._client.set_terminated(run_id, status="KILLED")
        self._client.delete_run(run_id)


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
