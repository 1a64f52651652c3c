"""What a study, a trial and a repeat are in MLflow: name, tags, parameters, metrics, files and status of a run.

MLflow has no status for a pruned run: it is KILLED there, and the tag ``mixtune.state`` (COMPLETE, PRUNED, FAIL) tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from mlflow.entities import Metric

from mixtune import __version__
from mixtune.config import read_yaml, to_plain
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve
from mixtune.execution.position import POSITION
from mixtune.search.callbacks import Candidate, State
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.secrets import masked
from mixtune.tasks.base import DataIdentity
from mixtune.tracking import parameters, views
from mixtune.tracking.run_content import RunContent, RunKey, curve_metrics, metrics_at, repeat
from mixtune.training.run_folder import RESULT

STATUS: dict[State, str] = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}
_LONGEST_TAG = 5000  # characters


@dataclass(frozen=True)
class Projection:
    """Turns what a study holds into what MLflow holds of it."""

    space: Space
    data: DataIdentity

    @property
    def _digits(self) -> int:
        return views.width([*self.space.search.sizes, *self.space.evaluate.sizes])

    @property
    def common_tags(self) -> dict[str, str]:
        """What every run is tagged with, so that a filter finds trials without their parent."""
        s = self.space
        return {
            "mixtune.study": s.study,
            "mixtune.network": s.task.network,
            "mixtune.dataset": s.task.dataset,
            "mixtune.seed": str(s.seed),
            "mixtune.fold": f"{s.folds} folds" if s.folds > 1 else f"hold-out {100 * s.task.validation:g} %",
        }

    def study_tags(self) -> dict[str, str]:
        """Return the parent run's tags."""
        space = self.space
        return {
            **self.common_tags,
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

    def study_params(self) -> dict[str, str]:
        """Return the parent run's parameters: the space, and the data by counts and digest."""
        sections = to_plain(self.space)
        for key in ("fold", "folds"):  # of one run; the study's are at the top level
            del sections["task"][key]
        params = parameters.settings("", {k: v for k, v in sections.items() if not isinstance(v, dict)})
        for section in ("task", "base", "budget", "recipe", "evaluate", "search", "score"):
            params |= parameters.settings(section, sections[section])
        counts = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        return {**params, **{f"images.{k}": str(n) for k, n in counts.items()}, "data.digest": self.data.digest}

    def started(self, trial: Candidate, at: int) -> RunContent:
        """Return the run of a trial that begins; at: milliseconds since 1970."""
        tags = {
            **self.common_tags,
            "mixtune.kind": "trial",
            "mixtune.trial": str(trial.number),
            "mixtune.family": trial.label,
            "mixtune.regime": str(trial.regime),
            parameters.POINT: parameters.exact(trial.params),
            "mixtune.state": "RUNNING",
            "mlflow.note.content": f"{trial.label}: {trial.regime} (size x batch (x copies), % of steps)",
        }
        params = {**parameters.point(trial.params, self._digits), **_regime_params(trial)}
        name, regime = f"{trial.number:03d} {trial.label}", trial.folder / "regime.yaml"
        return RunContent(RunKey.of(trial.number), name, tags, params, files=[regime], began=at)

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float, at: int) -> RunContent:
        """Return what one report adds to a trial's run; the step is the budget spent in %, of all folds so far."""
        step = round(100 * (report.get("fold", 0) + report["progress"]))
        # Rounded to what can be read in a column; the curve that the trial leaves has every bit.
        values = {
            "train/loss": round(report["loss"], 5),
            "train/lr": float(f"{report['lr']:.4g}"),
            "train/views_per_second": round(report["views_per_second"], 1),
            "seconds": round(report["seconds"], 2),
            "score": round(score, 5),
            **self._by_size(Curve.from_rows(report["curve"], self.space.task.metrics)),
            **{f"images/{kind}": float(n) for kind, n in report.get("findings", ())},
        }
        message = "; ".join(report.get("said", ()))[:_LONGEST_TAG]
        tags = {f"mixtune.notes.{report['number']}": message} if message else {}
        return RunContent(RunKey.of(trial.number), tags=tags, metrics=metrics_at(values, at, step))

    def ended(
        self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None, at: int
    ) -> RunContent:
        """Return what the end of a trial adds to its run."""
        tags = {"mixtune.state": state} | ({"mixtune.reason": masked(reason[:_LONGEST_TAG])} if reason else {})
        metrics = curve_metrics(curve, at) if curve is not None else []
        files = [path for path in _files(trial.folder) if path.name != "regime.yaml"]  # logged at the start
        return RunContent(RunKey.of(trial.number), "", tags, {}, metrics, files, STATUS[state], ended=at)

    def event(self, name: str, trial: Candidate, details: Sequence[Any], at: int, begun: bool) -> RunContent:
        """Return what a callback adds to a run: ``started``, ``reported`` or ``ended``, with what it was told.

        begun: the run is there; else its start comes with it. Of a repeat there is nothing before its end.
        """
        if trial.repeat is not None:
            _, score, _, curve = details
            return self.repeat(trial, score, curve, at, at)
        content: RunContent = getattr(self, name)(trial, *details, at)
        return content if begun or name == "started" else self.started(trial, at).then(content)

    def result(self, trial: Candidate, result: TrialResult) -> RunContent:
        """Return the whole run of a trial, or of a repeat, that has ended, from the study and its folder alone.

        Of the metrics on the way the study holds the scores; training loss, seconds and odd images are known where the
        folder has a result.yaml.
        """
        began, ended = milliseconds(result.began), milliseconds(result.ended)
        if trial.repeat is not None:
            assert result.score is not None
            assert result.curve is not None
            return self.repeat(trial, result.score, result.curve, began, ended)
        scores = self._scores(result)
        metrics = [Metric("score", round(score, 5), ended, step) for step, score in scores.items()]
        metrics += metrics_at(_trained(trial.folder), ended, self._trained_step(result))
        if result.curve is not None:
            metrics += metrics_at(self._by_size(result.curve), ended, max(scores, default=self._last_step))
        on_the_way = RunContent(RunKey.of(trial.number), metrics=metrics)
        end = self.ended(trial, cast(State, result.state), result.score, result.reason, result.curve, ended)
        return self.started(trial, began).then(on_the_way).then(end)

    def repeat(self, trial: Candidate, score: float, curve: Curve, began: int, ended: int) -> RunContent:
        """Return the whole run of a finished repeat of a trial."""
        assert trial.repeat is not None
        how, common = trial.repeat, {k.removeprefix("mixtune."): v for k, v in self.common_tags.items()}
        tags = {**common, "trial": str(how.of), "seed": str(how.seed), "judge": how.judge}
        tags |= {"family": trial.label, "regime": str(trial.regime)}
        if how.judge == "test":
            tags["fold"] = "whole training set"
        name = f"{how.of:03d} {trial.label} {how.judge} seed {how.seed}"
        content = repeat(name, tags, trial.params, curve, score, {}, _files(trial.folder), began, ended)
        return replace(content, params={**content.params, **_regime_params(trial)})

    def _by_size(self, curve: Curve) -> dict[str, float]:
        """Return the primary metric by size and, where there are several, the objectives."""
        name, by_size = curve.primary.name, curve.by_size()
        values = {views.at_size(name, S, self._digits): round(value, 5) for S, value in by_size.items()}
        if self.space.several:
            objectives = zip(self.space.objectives, self.space.values(curve), strict=True)
            values |= {f"objective/{name}": round(value, 5) for name, value in objectives}
        return values

    @property
    def _last_step(self) -> int:
        return 100 * self.space.folds

    def _scores(self, result: TrialResult) -> dict[int, float]:
        """Return the scores that the study holds of a trial, by MLflow's step.

        Where pruners compare folds, or several objectives are sought, that is the last one alone.
        """
        steps = {number: self._step_of(number) for number in sorted(result.reports)}
        last = self._last_step if result.state == "COMPLETE" else max(steps.values(), default=self._last_step)
        alone = self.space.paired or self.space.several
        scores = {} if alone else {step: result.reports[number] for number, step in steps.items()}
        return scores | ({last: result.score} if result.score is not None else {})

    def _step_of(self, number: int) -> int:
        """Return MLflow's step for a report that the pruner knows by this number."""
        stages = self.space.stages
        stage = next((s for s in stages if s.step == number), stages[0])
        share = number / stages[0].step if self.space.reports_on_the_way and stage is stages[0] else stage.share
        return round(100 * (stage.fold + share))

    def _trained_step(self, result: TrialResult) -> int:
        """Return MLflow's step for what result.yaml says, which is of the last finished run of the task's own fold."""
        own, last = self.space.training().task.fold, max(result.reports, default=0)
        stages = [s for s in self.space.stages if s.fold == own and (s.step <= last or result.state == "COMPLETE")]
        return round(100 * (own + stages[-1].share)) if stages else self._last_step


def milliseconds(time: datetime | None) -> int:
    """Return milliseconds since 1970; 0 where the time is not known."""
    return round(1000 * time.timestamp()) if time is not None else 0


def _trained(folder: Path) -> dict[str, float]:
    """Return the training metrics that a trial's result.yaml holds; none where there is no such file."""
    try:
        result = read_yaml(folder / RESULT)
        issues = {f"images/{k}": float(n) for k, n in result["images"].items() if k not in ("trained", "judged")}
        return {"train/loss": round(result["loss"], 5), "seconds": round(60 * result["minutes"], 2), **issues}
    except (InputError, KeyError, TypeError, ValueError, AttributeError):  # it was pruned on the way, or failed
        return {}


def _files(folder: Path) -> list[Path]:
    """Return what a trial leaves; where its worker was is of no use once it has ended."""
    return [path for path in sorted(folder.glob("*")) if not path.name.startswith(POSITION)]


def _regime_params(trial: Candidate) -> dict[str, str]:
    """Return what a trial's regime is, as parameters of its run."""
    params = {"regime": str(trial.regime), "family": trial.label, "phases": str(len(trial.regime.phases))}
    return {**params, "sizes": " ".join(map(str, trial.regime.sizes))}
