"""MLflow: one parent run per study, one child run per trial; ``Courier`` has what the driver says of them written.

MLflow has no state for a pruned run: it is KILLED there, and the tag ``mixtune.state`` (COMPLETE, PRUNED, FAIL) tells.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from mixtune import __version__
from mixtune.config import to_plain, to_yaml
from mixtune.evaluation.curve import Curve
from mixtune.runtime.environment import environment
from mixtune.search.callbacks import Candidate, State
from mixtune.search.outcome import TrialResult
from mixtune.search.space import Space
from mixtune.search.timeouts import POSITION
from mixtune.secrets import masked
from mixtune.tasks.registry import task_class
from mixtune.tracking import parameters, views
from mixtune.tracking.courier import Courier
from mixtune.tracking.opening import Opening, system_metrics
from mixtune.tracking.recorded import curve_metrics, repeat

log = logging.getLogger("mixtune")
_STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}


class MlflowWriter:
    """Writes a study to MLflow as it happens (a ``Listener``), through a courier: no event waits for the store."""

    def __init__(self, uri: str, space: Space, folder: Path, parent: str | None = None) -> None:
        """Open the tracking store and the study's parent run (``parent``: its id when the study is resumed).

        Raises InputError when the store cannot be reached.
        """
        self.uri, self._space, self._folder = uri, space, folder
        self._width = views.width([*space.search.sizes, *space.evaluate.sizes])
        data = vars(task_class(space.task.kind).identity(space.training().task))
        self._opening = Opening(uri, folder, data)
        self.experiment = self._opening.experiment
        texts = {"space.yaml": to_yaml(space), "environment.yaml": to_yaml(environment())}
        self.parent = self._opening.parent(parent, f"study {space.study}", *self._described(), texts)
        self._opening.view(*views.view(space))
        self._system = system_metrics(uri, self.parent)
        kept = folder / f"unsent-{hashlib.sha256(uri.encode()).hexdigest()[:8]}.jsonl"
        self.courier = Courier(kept, uri, self.experiment, data)

    def _described(self) -> tuple[dict[str, str], dict[str, str]]:
        """The parent run's tags and parameters."""
        space = self._space
        tags = {
            **self._common,
            "mixtune.kind": "study",
            "mixtune.version": __version__,
            "mlflow.note.content": (
                f"How should {space.task.network} mix image sizes on {space.task.dataset}, for the compute of "
                f"{space.budget} at {space.base.S} px?\n\nOne child run per trial; the tag "
                "mixtune.state tells COMPLETE, PRUNED and FAIL apart. In charts of curve/..., the step is the image "
                "size in px; in all others it is the share of the budget in %, of all folds so far. This run's "
                "artifacts hold the figures."
            ),
        }
        sections = to_plain(space)
        for key in ("fold", "folds"):  # of one run; the study's are at the top level
            del sections["task"][key]
        params = parameters.settings("", {k: v for k, v in sections.items() if not isinstance(v, dict)})
        for section in ("task", "base", "budget", "recipe", "evaluate", "search", "score"):
            params |= parameters.settings(section, sections[section])
        return tags, params

    @property
    def _common(self) -> dict[str, str]:
        """What every run is tagged with, so that a filter finds trials without their parent."""
        s = self._space
        return {
            "mixtune.study": s.study,
            "mixtune.network": s.task.network,
            "mixtune.dataset": s.task.dataset,
            "mixtune.seed": str(s.seed),
            "mixtune.fold": f"{s.folds} folds" if s.folds > 1 else f"hold-out {100 * s.task.validation:g} %",
        }

    def started(self, trial: Candidate) -> None:
        """Open the trial's child run; that of a repeat is made at its end."""
        if trial.repeat:
            return
        tags = {
            **self._common,
            "mlflow.parentRunId": self.parent,
            "mixtune.kind": "trial",
            "mixtune.trial": str(trial.number),
            "mixtune.family": trial.label,
            "mixtune.regime": str(trial.regime),
            parameters.POINT: parameters.exact(trial.params),
            "mixtune.state": "RUNNING",
            "mlflow.note.content": f"{trial.label}: {trial.regime} (size x batch (x copies), % of steps)",
        }
        params = {**parameters.point(trial.params, self._width), **_regime(trial)}
        name, files = f"{trial.number:03d} {trial.label}", [str(trial.folder / "regime.yaml")]
        self._put("start", trial.number, name=name, tags=tags, params=params, files=files)

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Metrics of one report in one request; the step is the budget spent in per cent, of all folds so far."""
        if trial.repeat:
            return
        step = round(100 * (report.get("fold", 0) + report["progress"]))
        # Rounded to what can be read in a column; the curve that the trial leaves has every bit.
        values = {
            "score": round(score, 5),
            "train/loss": round(report["loss"], 5),
            "train/lr": float(f"{report['lr']:.4g}"),
            "train/views_per_second": round(report["views_per_second"], 1),
            "seconds": round(report["seconds"], 2),
        }
        if self._space.several:
            found = zip(
                self._space.objectives,
                self._space.values(Curve.from_rows(report["curve"], self._space.task.metrics)),
                strict=True,
            )
            values |= {f"objective/{name}": round(value, 5) for name, value in found}
        primary = self._space.task.metrics.primary.name
        for row in report["curve"]:
            values[views.at_size(primary, row["S"], self._width)] = round(row[primary], 5)
        values |= {f"images/{kind}": float(n) for kind, n in report.get("findings", ())}
        said = "; ".join(report.get("said", ()))[:5000]
        notes = {f"mixtune.notes.{report['number']}": said} if said else {}
        self._put("report", trial.number, metrics=[[k, float(v), step] for k, v in values.items()], tags=notes)

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Close the child run; a trial that an interruption ended is taken out, because it will be run again."""
        if trial.repeat:
            if state == "COMPLETE" and score is not None and curve is not None:
                self.repeated(trial, score, curve)
            return
        if state == "INTERRUPTED":
            self._put("discard", trial.number)
            return
        tags = {"mixtune.state": state} | ({"mixtune.reason": masked(reason[:5000])} if reason else {})
        metrics = curve_metrics(curve) if curve is not None else []
        files = [path for path in _files(trial.folder) if Path(path).name != "regime.yaml"]  # logged at the start
        self._put("end", trial.number, tags=tags, metrics=metrics, files=files, status=_STATUS[state])

    def repeated(self, trial: Candidate, score: float, curve: Curve) -> None:
        """Record a finished repeat of a trial; one that is recorded already stays as it is."""
        assert trial.repeat is not None
        how, common = trial.repeat, {k.removeprefix("mixtune."): v for k, v in self._common.items()}
        tags = {**common, "trial": str(how.of), "seed": str(how.seed), "judge": how.judge}
        tags |= {"family": trial.label, "regime": str(trial.regime)}
        if how.judge == "test":
            tags["fold"] = "whole training set"
        name = f"{how.of:03d} {trial.label} {how.judge} seed {how.seed}"
        files = _files(trial.folder)
        record = repeat(self.parent, name, tags, trial.params, curve, score, {}, files)
        self.courier.put({**record, "params": {**record["params"], **_regime(trial)}})

    def discard_unfinished(self) -> None:
        """Bin the child runs that a killed search left open; their trials are run again."""
        self._put("discard unfinished", -1)

    def repair(self, outcomes: Sequence[TrialResult]) -> int:
        """Record what a search that was killed had put into the study, but not into its records for MLflow; how many.

        To be called before ``discard_unfinished``. Left to the next search when the store does not answer.
        """
        if not self.flush():
            return 0
        there, repaired = self._opening.states(self.parent), 0
        for o in outcomes:
            state, score = there.get(o.number, ("", None))
            if state == o.state:
                continue
            folder = self._folder / "trials" / f"{o.number:04d}"
            regime = self._space.regime(o.params, o.published or f"searched {o.number}")
            trial = Candidate(o.number, regime, o.params, folder, o.published)
            self.started(trial)
            if o.score is not None and score != o.score:
                self._put("report", o.number, metrics=[["score", o.score, 100 * self._space.folds]])
            self.ended(trial, cast(State, o.state), o.score, o.reason, o.curve)
            repaired += 1
        return repaired

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until MLflow has everything; False when it took nothing for so long. The next search sends the rest."""
        return self.courier.flush(seconds)

    def close(self) -> None:
        """Stop sending (what waits is on disk) and let go of the store."""
        self.courier.close()
        self._opening.close()

    def summarise(
        self,
        best: Mapping[str, Any],
        more: Mapping[str, str] | None = None,
        measured: Sequence[tuple[str, float, int]] = (),
    ) -> None:
        """The study's winner: its score as a metric of the parent run, all else and ``more`` as tags.

        measured: other metrics, each with its step.
        """
        metrics = [["score", round(float(best["score"]), 5), 100]] if best else []
        metrics += [[name, round(value, 5), step] for name, value, step in measured]
        tags = {f"mixtune.best.{k}": str(v)[:5000] for k, v in best.items() if k != "score"} | dict(more or {})
        self._put("summary", -1, tags=tags, metrics=metrics)

    def finish(self, status: str, artifacts: list[Path]) -> bool:
        """Close the parent run, with figures and files as artifacts.

        Returns whether MLflow has everything; the rest is kept in the study's folder.
        """
        if self._system is not None:
            self._system.finish()
        self._put("finish", -1, files=[str(p) for p in artifacts], status=status)
        everything = self.flush()
        self.courier.close()
        if not everything:
            n, where = self.courier.waiting, self.courier.path
            log.warning("MLflow lacks %d records, kept in %s; running the study again sends them", n, where)
        return everything

    def _put(self, do: str, trial: int, **more: Any) -> None:
        now = int(1000 * time.time())
        self.courier.put({"do": do, "trial": trial, "parent": self.parent, "time": now, **more})


def _files(folder: Path) -> list[str]:
    """What a trial leaves; where its worker was is of no use once it has ended."""
    return [str(p) for p in sorted(folder.glob("*")) if not p.name.startswith(POSITION)]


def _regime(trial: Candidate) -> dict[str, str]:
    """What a trial's regime is, as parameters of its run."""
    found = {"regime": str(trial.regime), "family": trial.label, "phases": str(len(trial.regime.phases))}
    return {**found, "sizes": " ".join(map(str, trial.regime.sizes))}
