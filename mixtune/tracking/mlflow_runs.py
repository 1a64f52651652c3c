"""The child runs of a study in one MLflow store: looked up, made, written and closed, all in ways that may be repeated.

A run is closed last, so that one that is closed holds everything: whatever was cut off is known by being open.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, RunInfo, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mixtune.search import sqlite
from mixtune.tracking.mlflow_reader import cause, children_of
from mixtune.tracking.run_content import RunContent, RunKey

log = logging.getLogger("mixtune")
# What the store will never take, however often it is asked.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "INVALID_STATE",
}


class RunGoneError(Exception):
    """A run was deleted while it was written."""


def make_client(uri: str) -> MlflowClient:
    """Return a client that writes fast to a file: what a power cut takes then, ``resync`` writes again."""
    client = MlflowClient(uri)
    with contextlib.suppress(AttributeError):  # a server
        sqlite.hasten_commits(client._tracking_client.store.engine)
    return client


def release(client: MlflowClient) -> None:
    """Give the connections to a database back; there are none to a server."""
    with contextlib.suppress(AttributeError):
        client._tracking_client.store.engine.dispose()


class Refusals:
    """Counts what a store refuses for good; the first is a warning, the rest goes on without it."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Leave out what is refused in this block. Raises what may succeed at another time."""
        try:
            yield
        except Exception as err:
            if not is_permanent(err):
                raise
            self.count += 1
            if self.count == 1:
                log.warning("MLflow does not take %s (%s), which is left out", what, cause(err))


def is_permanent(err: Exception) -> bool:
    """Return whether a store refuses this for good."""
    if isinstance(err, MlflowException):
        return err.error_code in _PERMANENT
    status = getattr(getattr(err, "response", None), "status_code", 0)  # of an artifact store
    return isinstance(err, PermissionError) or (400 <= status < 500 and status not in (408, 429))


class ChildRuns:
    """The child runs of one parent run. Every method raises what MLflow raises when the store does not answer."""

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        experiment: str,
        parent: str,
        refusals: Refusals,
        data: DatasetInput | None = None,
    ) -> None:
        """data: what every run is said to see, where it is known."""
        self.experiment, self.parent = experiment, parent
        self._client, self._uri, self._data, self._refusals = client, uri, data, refusals
        self._open: dict[RunKey, RunInfo] = {}
        self._closed: dict[RunKey, tuple[RunInfo, str]] = {}  # with the state
        self._doubles: list[str] = []
        self._loaded = False  # all that the store has is known
        self.answered = time.monotonic()  # when the store last did what it was asked

    def load(self) -> None:
        """Look up all runs that the store has."""
        runs = list(children_of(self._client, self.experiment, self.parent))
        self._open, self._closed, self._doubles = {}, {}, []
        for run in sorted(runs, key=lambda run: run.info.status == "RUNNING"):
            key = RunKey.from_tags(run.data.tags)
            if key in self._closed or key in self._open:
                self._doubles.append(run.info.run_id)
            elif run.info.status == "RUNNING":
                self._open[key] = run.info
            else:
                self._closed[key] = run.info, run.data.tags["mixtune.state"]
        self._loaded = True
        self._has_answered()

    def state(self, key: RunKey) -> str | None:
        """Return the state that a run was closed with; None while it is not."""
        return self._closed[key][1] if key in self._closed else None

    def keys(self) -> set[RunKey]:
        """Return the runs that are known to be there."""
        return {*self._open, *self._closed}

    def write(self, content: RunContent, completed: bool = False) -> None:
        """Write of a run what ``content`` holds, and close it where that has a status. A missing run is made.

        A closed run is left alone. completed: ``content`` is the whole run; of a run that is there the points that it
        lacks are added, also where it was closed with another state.
        """
        try:
            self._write(content, completed)
        except Exception:
            self._open.pop(content.key, None)
            self._loaded = False  # it may have been made although no answer came
            raise

    def _write(self, content: RunContent, completed: bool) -> None:
        key = content.key
        if key not in self._open and key not in self._closed and not self._loaded:
            self.load()
        if key in self._closed:
            if not completed:
                return
            self._open[key] = self._closed.pop(key)[0]
        added = content.metrics
        if run := self._open.get(key):
            added = list(self._lacking(run.run_id, content.metrics)) if completed else content.metrics
        else:
            tags = {**content.tags, "mlflow.parentRunId": self.parent}
            begun = tags if content.status is None else {**tags, "mixtune.state": "RUNNING"}
            run = self._client.create_run(self.experiment, content.began, begun, content.name).info
            self._open[key] = run
        if self._data is not None and content.name:
            with self._refusals.counted("the name of the data"):
                self._client.log_inputs(run.run_id, [self._data])
        self._log_batch(run.run_id, replace(content, metrics=added))
        self._log_files(run, content)
        if content.status is not None:
            self._client.set_terminated(run.run_id, content.status, content.ended or None)
            self._closed[key] = self._open.pop(key), content.tags["mixtune.state"]
        self._has_answered()

    def _lacking(self, run_id: str, metrics: Sequence[Metric]) -> Iterator[Metric]:
        """Yield the points that a run does not hold.

        A point is there where the run has one at its step, or before the next step that is wanted of the metric: the
        share of the budget at which a report was due is known, and that at which it was made is a little later.
        """
        for name in {m.key: None for m in metrics}:
            wanted = sorted((m for m in metrics if m.key == name), key=lambda m: m.step)
            steps = {m.step for m in self._client.get_metric_history(run_id, name)}
            ends = [*(m.step for m in wanted[1:]), float("inf")]
            yield from (
                m for m, end in zip(wanted, ends, strict=True) if not any(m.step <= step < end for step in steps)
            )

    def _log_batch(self, run_id: str, content: RunContent) -> None:
        params = [Param(k, v) for k, v in content.params.items()]
        tags = [RunTag(k, v) for k, v in content.tags.items()]
        try:
            self._client.log_batch(run_id, content.metrics, params, tags)
        except MlflowException as err:
            if not is_permanent(err):
                raise
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                raise RunGoneError(cause(err)) from None
            one_by_one = [
                *((m.key, ([m], [], [])) for m in content.metrics),
                *((p.key, ([], [p], [])) for p in params),
                *((t.key, ([], [], [t])) for t in tags),
            ]
            for name, batch in one_by_one:
                with self._refusals.counted(f"{name} of trial {content.key.trial}"):
                    self._client.log_batch(run_id, *batch)

    def _log_files(self, run: RunInfo, content: RunContent) -> None:
        if files := [path for path in content.files if path.exists()]:
            # The client's own log_artifact asks for the run once more, and keeps an object for every run.
            artifacts = get_artifact_repository(run.artifact_uri, tracking_uri=self._uri)
            for path in files:
                with self._refusals.counted(f"file {path.name}"):
                    artifacts.log_artifact(str(path))
                self._has_answered()

    def discard(self, key: RunKey) -> None:
        """Move a run that does not count to MLflow's bin, where it is there."""
        if not self._loaded:
            self.load()
        if key in self.keys():
            run = self._open.get(key) or self._closed[key][0]
            self._delete(run.run_id)
            self._open.pop(key, None)
            self._closed.pop(key, None)

    def discard_doubles(self) -> None:
        """Discard the second runs of the same trial, which a store made that answered too late."""
        while self._doubles:
            self._delete(self._doubles[-1])
            self._doubles.pop()

    def _delete(self, run_id: str) -> None:
        try:
            self._client.set_terminated(run_id, "KILLED")
            self._client.delete_run(run_id)
        except MlflowException as err:  # somebody else deleted it
            if not is_permanent(err):
                raise
        self._has_answered()

    def _has_answered(self) -> None:
        self.answered = time.monotonic()
