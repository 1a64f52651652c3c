"""Delivery of a study's records to MLflow, each in a way that may be repeated. Writes; ``store`` reads.

Imported by the process that delivers (``deliverer``), so nothing here imports torch, Ray or Optuna.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunInfo, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mixtune.search import sqlite
from mixtune.search.spool import PermanentError, Record
from mixtune.tracking.mlflow_reader import cause, states

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


def client_of(uri: str) -> MlflowClient:
    """A client that writes fast to a file: what a power cut takes then, ``Tracker.repair`` writes."""
    client = MlflowClient(uri)
    with contextlib.suppress(AttributeError):  # a server
        sqlite.hastened(client._tracking_client.store.engine)
    return client


def released(client: MlflowClient) -> None:
    """Give the connections to a database back; there are none to a server."""
    with contextlib.suppress(AttributeError):
        client._tracking_client.store.engine.dispose()


def data_input(data: Mapping[str, Any]) -> DatasetInput:
    """The data that a run sees; data: the fields of an ``Identity``."""
    counts = {k: data[k] for k in ("train", "validation", "test", "classes")}
    source, profile = json.dumps({"uri": data["name"]}), json.dumps(counts)
    found = Dataset(data["name"], data["digest"], "local", source, profile=profile)
    return DatasetInput(found, [InputTag("mlflow.data.context", "training")])


class Sender:
    """Sends records of a study to one tracking store, which ``Opening`` has opened."""

    def __init__(self, uri: str, experiment: str, data: Mapping[str, Any]) -> None:
        """data: the fields of an ``Identity``. Raises MlflowException when the store does not answer."""
        self._uri, self._experiment, self._input = uri, experiment, data_input(data)
        self._runs: dict[tuple[str, int], RunInfo] = {}  # by the parent's id and the trial's number
        self._asked: set[str] = set()  # parents of which ``_runs`` holds all that the store has
        self._client = client_of(uri)

    def close(self) -> None:
        """Give the connections to a database back."""
        released(self._client)

    def deliver(self, r: Record) -> None:
        """Send one record. Sending it twice changes nothing: runs are looked up, metrics carry their own time."""
        try:
            self._send(r)
        except Exception as err:
            self._asked.clear()  # a run may have been made although no answer came
            if isinstance(err, MlflowException) and err.error_code in _PERMANENT:
                raise PermanentError(f"{r['do']} of trial {r['trial']}: {cause(err)}") from None
            raise

    def _send(self, r: Record) -> None:
        if r["do"] == "discard unfinished":
            where = f"tags.`mlflow.parentRunId` = '{r['parent']}' and tags.`mixtune.state` = 'RUNNING'"
            for run in self._client.search_runs([self._experiment], where, max_results=1000):
                self._discard(str(run.info.run_id))
            return
        if r["do"] == "repeat":
            deliver_repeat(self._client, self._experiment, r, [self._input])
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

    def _run_of(self, r: Record) -> RunInfo:
        """The trial's child run, made where it is not there yet. Raises PermanentError when it should be there."""
        parent, key = r["parent"], (r["parent"], r["trial"])
        if key not in self._runs and parent not in self._asked:
            there = states(self._client, self._experiment, parent)
            self._runs |= {(parent, trial): info for trial, (info, _, _) in there.items()}
            self._asked.add(parent)
        if key not in self._runs:
            if r["do"] != "start":
                raise PermanentError(f"{r['do']} of trial {r['trial']}: its run is gone")
            self._runs[key] = self._client.create_run(self._experiment, r["time"], r["tags"], r["name"]).info
        if r["do"] == "start":  # also of a run that is there: who made it may have been killed before this
            self._client.log_inputs(str(self._runs[key].run_id), [self._input])
        return self._runs[key]

    def _discard(self, run_id: str) -> None:
        """Move a child run that does not count to MLflow's bin."""
        self._client.set_terminated(run_id, status="KILLED")
        self._client.delete_run(run_id)


def deliver_repeat(client: MlflowClient, experiment: str, r: Record, inputs: Sequence[DatasetInput] = ()) -> None:
    """Send such a record. A run that is there already is left alone, and one that was cut off is completed."""
    keys = [f"mixtune.{k}" for k in ("study", "trial", "judge", "seed", "kind")]
    where = " and ".join(f"tags.`{k}` = '{r['tags'][k]}'" for k in keys)
    found = client.search_runs([experiment], where, max_results=1)
    if found and found[0].info.status == "FINISHED":
        return
    run = found[0] if found else client.create_run(experiment, r["time"], r["tags"], r["name"])
    metrics = [Metric(k, v, r["time"], step) for k, v, step in r["metrics"]]
    client.log_batch(run.info.run_id, metrics=metrics, params=[Param(k, v) for k, v in r["params"].items()])
    if inputs:
        client.log_inputs(run.info.run_id, list(inputs))
    for path in filter(lambda path: Path(path).exists(), r["files"]):
        client.log_artifact(run.info.run_id, path)
    client.set_terminated(run.info.run_id)
