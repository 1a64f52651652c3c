"""MLflow: one parent run per study, one child run per trial, written by the driver. Writes; ``store`` reads.

MLflow has no state for a pruned run: it is KILLED there, and the tag ``mixtune.state`` (COMPLETE, PRUNED, FAIL) tells.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from mixtune.config import plain, to_yaml
from mixtune.errors import InputError
from mixtune.study.events import Candidate, State
from mixtune.study.space import Space
from mixtune.study.store import CURVE, EXPERIMENT, cause, check, children, default_uri, opened
from mixtune.training.curve import METRICS, Curve

_STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}


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
            raise InputError(f"--tracking-uri {uri}: MLflow cannot write there ({cause(err)})") from None
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
                f"of {self._space.budget.epochs:g} epochs at {self._space.base.S} px? One child run per trial; the tag "
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
            self._client.log_batch(run_id, metrics=_curve_metrics(curve, int(1000 * time.time())))
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


def record_repeat(
    uri: str, parent: str, name: str, tags: Mapping[str, str], params: Mapping[str, str], curve: Curve, score: float
) -> None:
    """A finished run with another seed as a child run (kind "repeat"); one that is there already is left alone.

    ``tags``: without their prefix; study, trial, judge and seed tell runs apart. Raises InputError when the store
    does not take it.
    """
    try:
        client, experiment = opened(uri)
        wanted = {k: tags[k] for k in ("study", "trial", "judge", "seed")} | {"kind": "repeat"}
        where = " and ".join(f"tags.`mixtune.{k}` = '{v}'" for k, v in wanted.items())
        if client.search_runs([experiment], where, max_results=1):
            return
        named = {f"mixtune.{k}": v for k, v in tags.items()} | {"mixtune.kind": "repeat", "mixtune.state": "COMPLETE"}
        run = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent, **named})
        now = int(1000 * time.time())
        metrics = [*_curve_metrics(curve, now), Metric("score", score, now, 100)]
        client.log_batch(run.info.run_id, metrics=metrics, params=[Param(k, v) for k, v in params.items()])
        client.set_terminated(run.info.run_id)
    except MlflowException as err:
        raise InputError(f"--tracking-uri {uri}: MLflow cannot write there ({cause(err)})") from None


def _curve_metrics(curve: Curve, now: int) -> list[Metric]:
    """The image size is the step: MLflow's own chart is then accuracy against size."""
    return [Metric(f"{CURVE}{m}", float(row[m]), now, int(row["S"])) for row in curve.rows() for m in METRICS]


__all__ = ["Tracker", "check", "children", "default_uri", "record_repeat"]
