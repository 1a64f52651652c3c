"""MLflow: one parent run per study, one child run per trial, written by the driver. The only module that knows MLflow.

MLflow has no state for a pruned run: it is KILLED there, and the tag ``mixtune.state`` (COMPLETE, PRUNED, FAIL) tells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mixtune.config import plain, to_yaml
from mixtune.errors import InputError
from mixtune.study.events import Candidate, State
from mixtune.study.space import Space
from mixtune.training.curve import METRICS, Curve

# A tracking server that has gone away must not hold the search up: by default one call retries for minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

for _name in ("alembic", "mlflow"):  # after the import, which sets levels of its own
    logging.getLogger(_name).setLevel(logging.ERROR)

EXPERIMENT = "mixtune"
_STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}


def default_uri(folder: Path) -> str:
    """The tracking store inside a study's folder."""
    return f"sqlite:///{folder.absolute()}/mlflow.db"


def check(uri: str) -> None:
    """Raise InputError when a tracking server does not answer; a file is made when it is first written."""
    if uri.startswith("sqlite"):
        return
    try:
        MlflowClient(uri).search_experiments(max_results=1)
    except Exception as err:
        raise InputError(
            f"--tracking-uri {uri}: no MLflow tracking server answers there ({_cause(err)}); start it, or leave "
            "the option out to log into the study's folder"
        ) from None


def _cause(err: Exception) -> str:
    return str(err).split("\n")[0][:200]


class Tracker:
    """Writes a study to MLflow as it happens (a ``Listener``)."""

    def __init__(self, uri: str, space: Space, folder: Path, parent: str | None = None) -> None:
        """Open the tracking store and the study's parent run (``parent``: its id when the study is resumed).

        Raises InputError when the store cannot be reached.
        """
        self.uri, self._space, self._folder = uri, space, folder
        try:
            self._client = MlflowClient(uri)
            self.experiment = self._experiment()
            self.parent = self._parent(parent)
        except Exception as err:
            raise InputError(f"--tracking-uri {uri}: MLflow cannot write there ({_cause(err)})") from None
        self._runs: dict[int, str] = {}

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        # A server decides itself where artifacts lie; a file store would put them into the working folder.
        local = self.uri.startswith("sqlite")
        where = f"file://{quote(str(self._folder.absolute()))}/artifacts" if local else None
        return str(self._client.create_experiment(EXPERIMENT, artifact_location=where))

    def _parent(self, run_id: str | None) -> str:
        if run_id is not None:
            with contextlib.suppress(MlflowException):  # another store than last time: begin a new parent there
                self._client.update_run(run_id, status="RUNNING")
                return run_id
        tags = {
            "mixtune.study": self._space.study,
            "mixtune.kind": "study",
            "mlflow.note.content": (
                f"How should {self._space.task.network} mix image sizes on {self._space.task.dataset}, for the compute "
                f"of {self._space.budget} at {self._space.base.S} px? One child run per trial; the tag "
                "mixtune.state tells COMPLETE, PRUNED and FAIL apart; figures are among this run's artifacts."
            ),
        }
        run = self._client.create_run(self.experiment, run_name=f"study {self._space.study}", tags=tags)
        parent = str(run.info.run_id)
        sections = plain(self._space)
        params = [Param(k, str(v)[:6000]) for k, v in sections.items() if not isinstance(v, dict)]
        params += [
            Param(f"{section}.{k}", str(v)[:6000])
            for section in ("task", "base", "budget", "recipe", "evaluate", "search", "score")
            for k, v in sections[section].items()
        ]
        self._client.log_batch(parent, params=params)
        self._client.log_text(parent, to_yaml(self._space), "space.yaml")
        return parent

    def started(self, trial: Candidate) -> None:
        """Open the trial's child run."""
        tags = {
            "mlflow.parentRunId": self.parent,
            "mixtune.kind": "trial",
            "mixtune.study": self._space.study,
            "mixtune.trial": str(trial.number),
            "mixtune.family": trial.label,
            "mixtune.regime": str(trial.regime),
            "mixtune.state": "RUNNING",
            "mixtune.network": self._space.task.network,
            "mixtune.dataset": self._space.task.dataset,
            "mixtune.seed": str(self._space.seed),
            "mlflow.note.content": f"{trial.label}: {trial.regime} (size x batch (x copies), % of steps)",
        }
        name = f"{trial.number:03d} {trial.label}"
        run_id = str(self._client.create_run(self.experiment, run_name=name, tags=tags).info.run_id)
        self._runs[trial.number] = run_id
        params = [Param(k, f"{v:.4g}" if isinstance(v, float) else str(v)) for k, v in trial.params.items()]
        params += [Param("regime", str(trial.regime)), Param("family", trial.label)]
        self._client.log_batch(run_id, params=params)
        self._client.log_artifact(run_id, str(trial.folder / "regime.yaml"))

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Metrics of one report, with the budget spent in per cent as step, in one request."""
        now, step = int(1000 * time.time()), round(100 * report["progress"])
        values = {
            "score": score,
            "train/loss": report["loss"],
            "train/lr": report["lr"],
            "train/views_per_second": report["views_per_second"],
            "seconds": report["seconds"],
        }
        for row in report["curve"]:
            values[f"top1/S{row['S']}"] = row["top1"]
        self._client.log_batch(
            self._runs[trial.number], metrics=[Metric(k, float(v), now, step) for k, v in values.items()]
        )

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Close the child run; a trial that an interruption ended is taken out, because it will be run again."""
        run_id = self._runs[trial.number]
        if state == "INTERRUPTED":
            self.discard(run_id)
            return
        self._client.set_tag(run_id, "mixtune.state", state)
        if reason:
            self._client.set_tag(run_id, "mixtune.reason", reason[:5000])
        if curve is not None:
            # The image size is the step: MLflow's own chart is then accuracy against size.
            now, rows = int(1000 * time.time()), curve.rows()
            metrics = [Metric(f"curve/{m}", float(row[m]), now, int(row["S"])) for row in rows for m in METRICS]
            self._client.log_batch(run_id, metrics=metrics)
        for path in sorted(trial.folder.glob("*")):
            if path.name != "regime.yaml":
                self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id, status=_STATUS[state])

    def discard_unfinished(self) -> None:
        """Bin the child runs that a killed search left open; their trials are run again."""
        where = f"tags.`mlflow.parentRunId` = '{self.parent}' and tags.`mixtune.state` = 'RUNNING'"
        for run in self._client.search_runs([self.experiment], where, max_results=1000):
            self.discard(str(run.info.run_id))

    def discard(self, run_id: str) -> None:
        """Move a child run that does not count to MLflow's bin."""
        with contextlib.suppress(MlflowException):
            self._client.set_terminated(run_id, status="KILLED")
            self._client.delete_run(run_id)

    def finish(self, status: str, best: Mapping[str, Any], artifacts: list[Path]) -> None:
        """Close the parent run: the best score as metric, the best trial as tags, figures and files as artifacts."""
        tags = [RunTag(f"mixtune.best.{k}", str(v)) for k, v in best.items()]
        metrics = [Metric("best/score", float(best["score"]), int(1000 * time.time()), 0)] if best else []
        self._client.log_batch(self.parent, metrics=metrics, tags=tags)
        for path in artifacts:
            self._client.log_artifact(self.parent, str(path), "figures" if path.suffix != ".yaml" else None)
        self._client.set_terminated(self.parent, status=status)


def children(uri: str, study: str) -> Iterator[tuple[dict[str, str], dict[int, dict[str, float]]]]:
    """For every trial of a study that has a curve: its tags, and its curve as {S: {metric: value}}.

    Raises InputError when the store holds no such study.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise InputError(f"--tracking-uri {uri}: there is no such file; it is the mlflow.db in the study's folder")
    client = MlflowClient(uri)
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except Exception as err:
        raise InputError(f"--tracking-uri {uri}: cannot be read ({_cause(err)})") from None
    if experiment is None:
        raise InputError(f"--tracking-uri {uri}: holds no experiment {EXPERIMENT!r}; was a search logged there?")
    where = f"tags.`mixtune.study` = '{study}' and tags.`mixtune.kind` = 'trial'"
    found, token = False, None
    while True:
        page = client.search_runs([experiment.experiment_id], where, max_results=500, page_token=token)
        for run in page:
            found = True
            curve: dict[int, dict[str, float]] = {}
            for metric in METRICS:
                for m in client.get_metric_history(run.info.run_id, f"curve/{metric}"):
                    curve.setdefault(m.step, {})[metric] = m.value
            yield dict(run.data.tags), curve
        token = page.token
        if not token:
            break
    if not found:
        raise InputError(f"--study {study}: {uri} holds no trials of this study")
