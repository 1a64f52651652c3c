"""Read a study from MLflow: its settings, finished trials with their curves, and repeated runs with other seeds.

S, B, D as in ``regime.shapes``. No other module of the analysis reads MLflow's runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from analysis.finished_trial import FinishedTrial, trials_of_final
from mixtune.errors import InputError
from mixtune.evaluation.curve import MEASURED, Curve, mean_curve
from mixtune.evaluation.metrics import Metrics
from mixtune.evaluation.score import Score
from mixtune.regime import BatchShape, Regime
from mixtune.search.candidates import Search, regime_of
from mixtune.search.paths import default_uri
from mixtune.secrets import masked
from mixtune.study.statistics import mean_sd
from mixtune.tasks.registry import DEFAULT, task_class
from mixtune.tracking.mlflow_reader import CURVE, Stored, parent_of, stored
from mixtune.tracking.parameters import read_point, section

_NEEDED = ("task.dataset", "task.network", "base.S", "base.B", "budget.epochs", "search.sizes")


@dataclass(frozen=True)
class StudyRuns:
    """A study as MLflow holds it.

    ``parent``: id of the parent run; ``settings`` and ``tags``: its parameters and tags; ``trials``: those that were
    trained to the end; ``states``: how many trials are in each state; ``repeats``: runs of a regime with other seeds.
    """

    uri: str
    name: str
    parent: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]
    trials: tuple[FinishedTrial, ...]
    states: Mapping[str, int]
    repeats: tuple[FinishedTrial, ...] = ()

    @cached_property
    def metrics(self) -> Metrics:
        """Return what the study's task measures at every size. Raises InputError for a task that is not known here."""
        try:
            return task_class(self.settings.get("task.kind", DEFAULT)).metrics
        except ValueError as err:
            raise InputError(f"{self.source}: task.{err}") from None

    @property
    def score_text(self) -> str:
        """Return what the score is, for people."""
        return self.score.describe(self.metrics)

    @cached_property
    def score(self) -> Score:
        """Return the score, which makes one number of a curve."""
        return section(self.settings, "score", Score, self.source)

    @cached_property
    def search(self) -> Search:
        """Return the search section of the space."""
        return section(self.settings, "search", Search, self.source)

    @property
    def source(self) -> str:
        """Return where the study lies, for error messages."""
        return f"--study {self.name}: its parent run in {masked(self.uri)}"

    @property
    def best(self) -> FinishedTrial:
        """Return the trial with the highest score, published regimes included."""
        return max(self.trials, key=lambda t: self.score.of(t.curve))

    @property
    def winner(self) -> FinishedTrial | None:
        """Return the trial that the final evaluation chose; None without a final evaluation."""
        if not self.tags.get("mixtune.best.verdict"):
            return None
        return next((t for t in self.trials if str(t.number) == self.tags["mixtune.best.trial"]), None)

    def tested(self) -> StudyRuns:
        """Return the study with the regimes of its final evaluation alone, with their mean curves on the test set.

        Return the study itself where it has none.
        """
        if self.winner is None:
            return self
        curves = {t.number: [r.curve for r in self.repeats_of(t)] for t in self.shown}
        finalists = [t for t in self.shown if curves[t.number]]
        return replace(
            self, trials=tuple(replace(t, curve=mean_curve(curves[t.number]), judge="test") for t in finalists)
        )

    @property
    def best_searched(self) -> FinishedTrial | None:
        """Return the winner if it was searched, else the best searched trial; those with several seeds come first."""

        def rank(t: FinishedTrial) -> tuple[bool, bool, float]:
            return t is self.winner, len(self.repeats_of(t)) > 1, self.score.of(t.curve)

        return max((t for t in self.trials if t.searched), key=rank, default=None)

    @property
    def shown(self) -> list[FinishedTrial]:
        """Return the trials that figures draw by name: the published regimes and the best searched one."""
        best = self.best_searched
        return [*(t for t in self.trials if not t.searched), *([best] if best else [])]

    @cached_property
    def base(self) -> BatchShape:
        """Return the base batch shape, which sets the budget."""
        return section(self.settings, "base", BatchShape, self.source)

    def image_count(self, judge: str = "validation") -> int | None:
        """Return the number of validation or test images; None where the study did not record it."""
        count = self.settings.get(f"images.{judge}")
        return int(count) if count else None

    def repeats_of(self, trial: FinishedTrial) -> list[FinishedTrial]:
        """Return the repeated runs of a trial, by seed: on the test set where the study has any such runs."""
        judge = "test" if "test" in {r.judge for r in self.repeats} else "validation"
        own = [r for r in self.repeats if r.number == trial.number and r.judge == judge]
        return sorted(own, key=lambda r: r.seed)

    def over_seeds(self, trial: FinishedTrial, metric: str | None = None) -> dict[int, tuple[float, float | None]]:
        """Return mean and deviation of a metric by size over the repeated runs of a trial; {} without repeated runs.

        Without a name, of the primary metric.
        """
        values = [r.curve.by_size(metric) for r in self.repeats_of(trial)]
        shared = set.intersection(*map(set, values)) if values else set()
        return {S: mean_sd([by_size[S] for by_size in values]) for S in sorted(shared)}

    def regime(self, trial: FinishedTrial) -> Regime:
        """Return the regime that a trial trained, made from its point as the search makes it."""
        return regime_of(self.search, self.base, trial.params, trial_names([trial])[0])

    def compute_shares(self, trial: FinishedTrial) -> dict[int, float]:
        """Return the share of the training compute by image size: the regime's training support."""
        regime, shares = self.regime(trial), dict[int, float]()
        for phase, share in zip(regime.phases, regime.shares_of(lambda s: s.pixels), strict=True):
            for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
                shares[shape.S] = shares.get(shape.S, 0.0) + share * p * shape.pixels / phase.mixture.pixels
        return dict(sorted(shares.items()))

    def find_trial(self, word: str) -> FinishedTrial:
        """Return the trial of this number or published name, or for "searched" the best searched one.

        Raises InputError for another word.
        """
        if word == "searched" and self.best_searched:
            return self.best_searched
        for t in self.trials:
            if word in (t.family if not t.searched else "", str(t.number), f"#{t.number}"):
                return t
        known = [t.family for t in self.trials if not t.searched] + ["searched"] * (self.best_searched is not None)
        numbers = ", ".join(str(t.number) for t in self.trials)
        raise InputError(
            f"{word}: study {self.name} has no complete trial of this name; known: {', '.join(known)}, or a number "
            f"({numbers})"
        )


def tracking_uri(uri: str | None, study: str) -> str:
    """Return ``uri`` if given, else that of a search without --tracking-uri: studies/NAME/mlflow.db."""
    return uri or default_uri(Path("studies") / study)


def read_study(uri: str, study: str) -> StudyRuns:
    """Return a study with its complete trials, by number, and its repeated runs.

    A pruned trial is left out, because its curve is that of a half-trained network, unless the final evaluation trained
    it to the end: then it has the mean curve over the final's runs. Raises InputError for a missing or foreign store,
    an unknown study and a study without complete trials.
    """
    runs = list(stored(uri, study))
    parent, settings, tags = parent_of(uri, study)
    read = StudyRuns(uri, study, parent, settings, tags, (), {})
    names = read.metrics.names
    trials: list[Stored] = []
    repeats: list[Stored] = []
    states: dict[str, int] = {}
    missing: set[str] = set()
    for run in runs:
        kind = run.tags.get("mixtune.kind")
        if kind == "trial":
            state = run.tags.get("mixtune.state", "FAIL")
            states[state] = states.get(state, 0) + 1
            if state != "COMPLETE":
                continue
        if _is_complete(run, names):
            (repeats if kind == "repeat" else trials).append(run)
        else:
            missing |= {m for m in ("gmacs", *names) if not any(m in values for values in run.curve.values())}
    if missing and not trials:
        raise InputError(
            f"--study {study}: the complete trials in {uri} lack the metric {CURVE}{min(missing)} by image size; when "
            "the search could not reach MLflow, the same search again sends what is missing"
        )
    if not trials:
        counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none at all"
        raise InputError(f"--study {study}: {uri} holds no complete trial of this study yet (trials: {counts})")
    for key in _NEEDED:
        if key not in settings:
            raise InputError(
                f"--study {study}: its parent run in {uri} lacks the parameter {key}; mixtune did not write it"
            )
    read = replace(read, states=states)
    complete, repeated = ([_finished(run, read) for run in runs] for runs in (trials, repeats))
    by_number = sorted([*complete, *trials_of_final(complete, repeated)], key=lambda t: t.number)
    return replace(read, trials=tuple(by_number), repeats=tuple(repeated))


def _rows(run: Stored, names: Sequence[str]) -> list[dict[str, float]]:
    needed = {"gmacs", *names}
    return [{"S": S, **values} for S, values in sorted(run.curve.items()) if needed <= set(values)]


def _is_complete(run: Stored, names: Sequence[str]) -> bool:
    """Return whether mixtune wrote the run, and to its end; ``names``: of the task's metrics."""
    return bool(_rows(run, names)) and {"mixtune.family", "mixtune.regime"} <= set(run.tags)


def _finished(run: Stored, study: StudyRuns) -> FinishedTrial:
    more: dict[str, dict[int, float]] = {}
    for S, values in run.curve.items():
        for metric in set(values) - {"gmacs", *study.metrics.names, *MEASURED}:
            more.setdefault(metric, {})[S] = values[metric]
    tags = run.tags
    return FinishedTrial(
        int(tags.get("mixtune.trial", -1)),
        tags["mixtune.family"],
        tags["mixtune.regime"],
        Curve.from_rows(_rows(run, study.metrics.names), study.metrics),
        read_point(tags, run.params, study.search, f"--study {study.name}: run {run.id} in {masked(study.uri)}"),
        {metric: dict(sorted(values.items())) for metric, values in sorted(more.items())},
        run.metrics.get("seconds"),
        int(tags.get("mixtune.seed", 0)),
        tags.get("mixtune.judge", "validation"),
        run.id,
    )


def trial_names(trials: Sequence[FinishedTrial]) -> list[str]:
    """Return the names of trials in tables."""
    return [t.family if not t.searched else f"searched #{t.number}" for t in trials]
