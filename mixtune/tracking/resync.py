"""Makes MLflow equal to the study: from Optuna's storage and the trials' folders alone, as often as one likes.

So nothing that MLflow missed, by a kill, an outage, a full disk or because its database was deleted, needs to be kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from mixtune.execution.trial_config import make_candidate
from mixtune.search.callbacks import Candidate
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.secrets import masked
from mixtune.tracking.mlflow_runs import ChildRuns
from mixtune.tracking.opening import MlflowStudy, refused
from mixtune.tracking.projection import milliseconds
from mixtune.tracking.run_content import RunKey

GIVE_UP = 3  # runs in a row that a store does not take: it is away
_ID, _SUMMARY = "mlflow_id", "mlflow_summary"  # what the study remembers


def open_study(trials: OptunaStudy, space: Space, folder: Path, uri: str) -> MlflowStudy:
    """Return the study in a store, with an id that it keeps. Raises InputError when the store cannot be reached."""
    study_id = trials.attribute(_ID)
    if study_id is None:
        study_id = uuid.uuid4().hex
        trials.set_attribute(_ID, study_id)
    return MlflowStudy(uri, space, folder, study_id, trials.attribute(f"mlflow_parent {masked(uri)}"))


def note_summary(
    trials: OptunaStudy,
    best: Mapping[str, Any],
    more: Mapping[str, str] | None = None,
    measured: Sequence[tuple[str, float, int]] = (),
) -> None:
    """Remember what the study's parent run says of its winner: its score as a metric, all else and ``more`` as tags.

    measured: other metrics, each with its step.
    """
    metrics = [("score", round(float(best["score"]), 5), 100)] if best else []
    metrics += [(name, round(value, 5), step) for name, value, step in measured]
    tags = {f"mixtune.best.{k}": str(v)[:5000] for k, v in best.items() if k != "score"} | dict(more or {})
    trials.set_attribute(_SUMMARY, json.dumps({"tags": tags, "metrics": metrics}))


@dataclass(frozen=True)
class StudyState:
    """What a study holds at one moment: its trials and repeats that have ended, those that run, and its summary."""

    ended: Mapping[RunKey, TrialResult]
    running: frozenset[RunKey] = frozenset()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, trials: OptunaStudy) -> StudyState:
        """Read a study. Raises StorageAwayError when its storage does not answer."""
        results = [*trials.outcomes(), *(r for r in trials.repeats() if r.curve is not None)]
        ended = {RunKey.of(result.number, result.repeat): result for result in results}
        running = frozenset(RunKey.of(number) for number in trials.running())
        return cls(ended, running, json.loads(trials.attribute(_SUMMARY) or "{}"))

    def missing_in(self, runs: ChildRuns) -> list[RunKey]:
        """Return which runs a store lacks, or holds in another state, as far as is known."""
        return [key for key, result in self.ended.items() if runs.state(key) != result.state]


def project(state: StudyState, runs: ChildRuns, study: MlflowStudy, cut_off: Callable[[], bool] = lambda: False) -> int:
    """Make a study's runs in a store equal to ``state``; return how many were written or discarded.

    Runs that are closed with the study's state are left alone. Those of trials that the study does not have are
    discarded; repeats that it does not have are not, because they may have been recorded by hand. cut_off: end early
    once this is true. A run that cannot be written does not keep the others from it. Raises the first error after that.
    """
    runs.load()
    runs.discard_doubles()
    changes = 0
    failures: list[Exception] = []  # of one run after the other
    first: Exception | None = None
    for key in state.missing_in(runs):
        if cut_off():
            return changes
        result = state.ended[key]
        try:
            candidate = _make_candidate(study.projection.space, result, study.folder)
            with study.refusals.counted(f"trial {key.trial}"):
                runs.write(study.projection.result(candidate, result), completed=True)
        except Exception as err:
            first, failures = first or err, [*failures, err]
            if len(failures) == GIVE_UP:
                break
        else:
            changes, failures = changes + 1, []
    if first is not None:
        raise first
    for key in runs.keys() - set(state.ended) - state.running:
        if key.kind == "trial":
            runs.discard(key)
            changes += 1
    write_summary(state, runs, study)
    return changes


def write_summary(state: StudyState, runs: ChildRuns, study: MlflowStudy) -> None:
    """Write what the parent run says of the study's winner."""
    if not state.summary:
        return
    at = max((milliseconds(result.ended) for result in state.ended.values()), default=0)
    metrics = [Metric(name, value, at, step) for name, value, step in state.summary["metrics"]]
    tags = [RunTag(k, v) for k, v in state.summary["tags"].items()]
    with study.refusals.counted("the study's summary"):
        study.client.log_batch(runs.parent, metrics, tags=tags)


def _make_candidate(space: Space, result: TrialResult, folder: Path) -> Candidate:
    known = {"published": result.published} | ({"repeat": vars(result.repeat)} if result.repeat else {})
    place = folder / result.repeat.round if result.repeat else folder
    return make_candidate(space, result.number, result.params, known, place)


def forget_unsent(folder: Path, uri: str) -> None:
    """Delete what earlier versions of mixtune kept in files for MLflow until it answered."""
    records = f"unsent-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.jsonl"
    for name in (records, f"{records}.sent", "delivery.lock"):
        with contextlib.suppress(OSError):
            (folder / name).unlink(missing_ok=True)


def artifacts_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a study's folder that its parent run holds when it is over."""
    yield from (path for name in ("preflight.yaml", "plan.yaml", "best.yaml") if (path := folder / name).exists())
    yield from sorted((folder / "figures").glob("*"))


def close_parent(client: MlflowClient, parent: str, status: str, files: Sequence[Path]) -> None:
    """Close a study's parent run, with files as artifacts, figures in a folder of their own."""
    for path in files:
        if path.exists():
            client.log_artifact(parent, str(path), None if path.suffix == ".yaml" else "figures")
    client.set_terminated(parent, status)


def resync(trials: OptunaStudy, space: Space, folder: Path, uri: str) -> int:
    """Make MLflow at ``uri`` equal to a study; return how many child runs were changed.

    ``folder``: the study's. Raises InputError when the store cannot be reached or written.
    """
    state, study = StudyState.read(trials), open_study(trials, space, folder, uri)
    try:
        runs = study.open()
        changes = project(state, runs, study)
        if not state.running:
            status = "KILLED" if trials.remaining() else "FINISHED"
            close_parent(study.client, runs.parent, status, list(artifacts_of(folder)))
    except Exception as err:
        raise refused(uri, err) from None
    finally:
        study.close()
    forget_unsent(folder, uri)
    return changes
