"""Reads an MLflow store: whether it answers, and what it holds of a study. ``mlflow_runs`` writes."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from mixtune.errors import InputError
from mixtune.search import sqlite
from mixtune.secrets import masked

for _name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
    logging.getLogger(_name).setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs what it raises, with the traceback

EXPERIMENT = "mixtune"
CURVE = "curve/"  # metrics by image size; the size is the step


def check(uri: str) -> None:
    """Raise InputError when a tracking server does not answer, or a file is something else than MLflow's.

    A file that is not there yet is made when it is first written.
    """
    _check_address(uri)
    if uri.startswith("sqlite"):
        path = Path(uri.removeprefix("sqlite:///"))
        if path.exists() and path.stat().st_size:
            _check_file(uri)
        return
    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as err:
        raise InputError(
            f"--tracking-uri {masked(uri)}: no MLflow tracking server answers there ({cause(err)}); start it, or leave "
            "the option out to log into the study's folder"
        ) from None


def make(uri: str) -> None:
    """Make the database of a store that is a file and is not there yet, whole or not at all.

    A database whose making was cut off, by a kill or a full disk, can never be opened again.
    """
    path = sqlite.sqlite_path(uri)
    if path is None or path.exists():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        MlflowClient(f"{sqlite.PREFIX}{partial}").search_experiments(max_results=1)
        for left in path.parent.glob(f"{path.name}-*"):  # the log of a database that was deleted
            left.unlink()
        partial.replace(path)
    finally:
        for left in path.parent.glob(f"{partial.name}*"):  # with what SQLite keeps beside it
            left.unlink()


def cause(err: Exception) -> str:
    """Return the first line of what went wrong, without passwords."""
    return masked(str(err).split("\n")[0])[:200]


@dataclass(frozen=True)
class Stored:
    """A run of a study as MLflow holds it; ``curve`` is {S: {metric: value}}, of whatever was logged by size."""

    id: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curve: Mapping[int, Mapping[str, float]]


def stored(uri: str, study: str) -> Iterator[Stored]:
    """Yield every trial and repeated run of a study. Raises InputError when the store holds no such study."""
    client, experiment = open_tracking(uri)
    kinds = "tags.`mixtune.kind` != 'study'"
    empty, token = True, None
    while True:
        where = f"tags.`mixtune.study` = '{_quoted(study)}' and {kinds}"
        page = client.search_runs([experiment], where, max_results=500, page_token=token)
        for run in page:
            empty = False
            curve: dict[int, dict[str, float]] = {}
            for key in run.data.metrics:
                if key.startswith(CURVE):
                    history = client.get_metric_history(run.info.run_id, key)
                    for m in sorted(history, key=lambda m: m.timestamp):  # what was measured again replaces
                        curve.setdefault(m.step, {})[key.removeprefix(CURVE)] = m.value
            data = run.data
            yield Stored(str(run.info.run_id), dict(data.tags), dict(data.params), dict(data.metrics), curve)
        token = page.token
        if not token:
            break
    if empty:
        raise InputError(f"--study {study}: {masked(uri)} holds no trials of this study")


def children_of(client: MlflowClient, experiment: str, parent: str) -> Iterator[Run]:
    """Yield the runs of trials and of repeats under a parent run."""
    token = None
    while True:
        where = f"tags.`mlflow.parentRunId` = '{parent}'"
        page = client.search_runs([experiment], where, max_results=1000, page_token=token)
        yield from (run for run in page if run.data.tags.get("mixtune.kind") in ("trial", "repeat"))
        if not (token := page.token):
            return


def parent_of(uri: str, study: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return a study's parent run: (id, parameters, tags). Raises InputError when there is none."""
    client, experiment = open_tracking(uri)
    where = f"tags.`mixtune.study` = '{_quoted(study)}' and tags.`mixtune.kind` = 'study'"
    runs = client.search_runs([experiment], where, max_results=1)
    if not runs:
        raise InputError(f"--study {study}: {masked(uri)} holds no parent run of this study")
    return str(runs[0].info.run_id), dict(runs[0].data.params), dict(runs[0].data.tags)


def log_figures(uri: str, run_id: str, paths: Sequence[Path]) -> None:
    """Add files to a run's figures. Raises InputError when the store does not take them."""
    try:
        for path in paths:
            MlflowClient(uri).log_artifact(run_id, str(path), "figures")
    except Exception as err:
        raise InputError(f"--log: {masked(uri)} does not take the figures ({cause(err)})") from None


def fetched(uri: str, run_id: str, name: str, folder: Path) -> Path:
    """Copy a file of a run into ``folder``; return it. Raises InputError when the run has none of this name."""
    try:
        return Path(MlflowClient(uri).download_artifacts(run_id, name, str(folder)))
    except Exception as err:
        raise InputError(f"{uri}: run {run_id} holds no file {name} that can be read ({cause(err)})") from None


def open_tracking(uri: str) -> tuple[MlflowClient, str]:
    """Return a client of a store, and the id of the experiment there. Raises InputError when there is none."""
    _check_address(uri)
    path = sqlite.sqlite_path(uri)
    if path is not None:
        if not path.exists():
            raise InputError(
                f"--tracking-uri {masked(uri)}: there is no such file; it is the mlflow.db in the study's folder"
            )
        _check_file(uri)
    try:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as err:
        if "out-of-date database schema" in str(err):
            raise InputError(
                f"--tracking-uri {masked(uri)}: another version of MLflow wrote this; take a copy of it, then bring it "
                f"up to date with: python -m mlflow db upgrade {masked(uri)}"
            ) from None
        raise InputError(f"--tracking-uri {masked(uri)}: cannot be read ({cause(err)})") from None
    if experiment is None:
        raise InputError(
            f"--tracking-uri {masked(uri)}: holds no experiment {EXPERIMENT!r}; was a search logged there?"
        )
    return client, str(experiment.experiment_id)


def _check_address(uri: str) -> None:
    """Refuse a path, which MLflow would take for one of its old folders of files. Raises InputError."""
    if uri.startswith("databricks") or ("://" in uri and not uri.startswith("file:")):
        return
    path = Path(uri.removeprefix("file:"))
    meant = f"sqlite:///{path.absolute()}" if path.is_file() else "sqlite:////FOLDER/mlflow.db or http://HOST:PORT"
    raise InputError(f"--tracking-uri {uri}: is no address of a database or a server; give {meant}")


def _check_file(uri: str) -> None:
    """Look at a database without changing it: MLflow would make its tables in any file. Raises InputError."""
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.exists():
        raise InputError(f"--tracking-uri {uri}: there is no such file; it is the mlflow.db in the study's folder")
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            tables = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error as err:
        raise InputError(f"--tracking-uri {uri}: cannot be read ({err})") from None
    if "experiments" not in tables:
        raise InputError(f"--tracking-uri {uri}: MLflow did not write this; it is the mlflow.db in the study's folder")


def _quoted(name: str) -> str:
    return name.replace("'", "")
