"""A study as MLflow holds it: its settings, its finished trials with their curves, and repeated runs with other seeds.

S, B, D as in ``regime.shapes``. This is the only module of the analysis that asks MLflow anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from analysis.finished import FinishedTrial, by_final
from mixtune.errors import InputError
from mixtune.evaluation.curve import MEASURED, METRICS, Curve, mean_curve
from mixtune.evaluation.score import Score
from mixtune.regime import BatchShape, Regime
from mixtune.search.candidates import Search, regime_of
from mixtune.search.paths import default_uri
from mixtune.secrets import masked
from mixtune.study.statistics import mean_sd
from mixtune.tracking.mlflow_reader import CURVE, Stored, parent_of, stored
from mixtune.tracking.parameters import point_of, section

_NEEDED = ("task.dataset", "task.network", "base.S", "base.B", "budget.epochs", "search.sizes")


@dataclass(frozen=True)
class StudyRuns:
    """A study: ``settings`` are its parent run's parameters, ``repeats`` the runs of its regimes with more seeds."""

    uri: str
    name: str
    parent: str
    settings: Mapping[str, str]
    tags: Mapping[str, str]
    trials: tuple[FinishedTrial, ...]
    states: Mapping[str, int]
    repeats: tuple[FinishedTrial, ...] = ()

    @cached_property
    def score(self) -> Score:
        """How a curve of this study becomes one number."""
        return section(self.settings, "score", Score, self.source)

    @cached_property
    def search(self) -> Search:
        """What was searched."""
        return section(self.settings, "search", Search, self.source)

    @property
    def source(self) -> str:
        """Where the study lies, for messages."""
        return f"--study {self.name}: its parent run in {masked(self.uri)}"

    @property
    def best(self) -> FinishedTrial:
        """The complete trial with the highest score, published ones included."""
        return max(self.trials, key=lambda t: self.score.of(t.curve))

    @property
    def winner(self) -> FinishedTrial | None:
        """The trial that fresh seeds chose before the test set was read; None where the study has no final."""
        if not self.tags.get("mixtune.best.verdict"):
            return None
        return next((t for t in self.trials if str(t.number) == self.tags["mixtune.best.trial"]), None)

    def tested(self) -> StudyRuns:
        """The study as its final shows it: the finalists alone, with their mean curves on the test set.

        The study itself where it has no final.
        """
        if self.winner is None:
            return self
        again = {t.number: [r.curve for r in self.repeats_of(t)] for t in self.shown}
        finalists = [replace(t, curve=mean_curve(again[t.number]), judge="test") for t in self.shown if again[t.number]]
        return replace(self, trials=tuple(finalists))

    @property
    def best_searched(self) -> FinishedTrial | None:
        """The best complete trial that the sampler made up; of those run with several seeds, where there are any."""

        def worth(t: FinishedTrial) -> tuple[bool, bool, float]:
            return t is self.winner, len(self.repeats_of(t)) > 1, self.score.of(t.curve)

        return max((t for t in self.trials if t.searched), key=worth, default=None)

    @property
    def shown(self) -> list[FinishedTrial]:
        """What figures name: the published regimes, and the best searched one."""
        best = self.best_searched
        return [*(t for t in self.trials if not t.searched), *([best] if best else [])]

    @cached_property
    def base(self) -> BatchShape:
        """The batch shape that sets the budget."""
        return section(self.settings, "base", BatchShape, self.source)

    def images(self, judge: str = "validation") -> int | None:
        """How many images curves are judged on; None where the study did not record it."""
        said = self.settings.get(f"images.{judge}")
        return int(said) if said else None

    def repeats_of(self, trial: FinishedTrial) -> list[FinishedTrial]:
        """Runs of the same trial with several seeds, by seed; on the test set where the study has any such runs."""
        mine = [r for r in self.repeats if r.number == trial.number]
        judge = "test" if "test" in {r.judge for r in self.repeats} else "validation"
        return sorted((r for r in mine if r.judge == judge), key=lambda r: r.seed)

    def over_seeds(self, trial: FinishedTrial, metric: str = "top1") -> dict[int, tuple[float, float | None]]:
        """Mean and deviation of a curve's metric by size over the repeated runs of a trial's regime; {} without any."""
        curves = [r.curve for r in self.repeats_of(trial)]
        shared = set.intersection(*(set(c.sizes) for c in curves)) if curves else set()
        return {S: mean_sd([getattr(c.at(S), metric) for c in curves]) for S in sorted(shared)}

    def regime(self, trial: FinishedTrial) -> Regime:
        """The regime that a trial trained, made from its point as the search made it."""
        return regime_of(self.search, self.base, trial.params, names([trial])[0])

    def shares(self, trial: FinishedTrial) -> dict[int, float]:
        """Share of the training compute at each size that a trial trained on: its regime's training support."""
        regime, found = self.regime(trial), dict[int, float]()
        for phase, share in zip(regime.phases, regime.shares_of(lambda s: s.pixels), strict=True):
            for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
                found[shape.S] = found.get(shape.S, 0.0) + share * p * shape.pixels / phase.mixture.pixels
        return dict(sorted(found.items()))

    def named(self, word: str) -> FinishedTrial:
        """A complete trial by its number, published name or "searched" (the best searched one).

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


def store(uri: str | None, study: str) -> str:
    """``uri`` as given, else the store that a search without --tracking-uri writes: studies/NAME/mlflow.db."""
    return uri or default_uri(Path("studies") / study)


def read_study(uri: str, study: str) -> StudyRuns:
    """A study with its complete trials and repeated runs, by number. Pruned trials are left out, as their curves are of
    half-trained networks, but for those that a final has trained to the end: they stand with the mean over its runs.

    Raises InputError for a missing or foreign store, an unknown study and a study without complete trials.
    """
    trials: list[Stored] = []
    repeats: list[Stored] = []
    states: dict[str, int] = {}
    lacking: set[str] = set()
    for run in stored(uri, study):
        kind = run.tags.get("mixtune.kind")
        if kind == "trial":
            state = run.tags.get("mixtune.state", "FAIL")
            states[state] = states.get(state, 0) + 1
            if state != "COMPLETE":
                continue
        if _whole(run):
            (repeats if kind == "repeat" else trials).append(run)
        else:
            lacking |= {m for m in METRICS if not any(m in values for values in run.curve.values())}
    if lacking and not trials:
        raise InputError(
            f"--study {study}: the complete trials in {uri} lack the metric {CURVE}{min(lacking)} by image size; when "
            "the search could not reach MLflow, the same search again sends what is missing"
        )
    if not trials:
        had = ", ".join(f"{n} {state}" for state, n in sorted(states.items())) or "none at all"
        raise InputError(f"--study {study}: {uri} holds no complete trial of this study yet (trials: {had})")
    parent, settings, tags = parent_of(uri, study)
    for key in _NEEDED:
        if key not in settings:
            raise InputError(
                f"--study {study}: its parent run in {uri} lacks the parameter {key}; mixtune did not write it"
            )
    read = StudyRuns(uri, study, parent, settings, tags, (), states)
    complete, again = ([_finished(run, read) for run in runs] for runs in (trials, repeats))
    order = sorted([*complete, *by_final(complete, again)], key=lambda t: t.number)
    return replace(read, trials=tuple(order), repeats=tuple(again))


def _rows(run: Stored) -> list[dict[str, float]]:
    return [{"S": S, **values} for S, values in sorted(run.curve.items()) if not set(METRICS) - set(values)]


def _whole(run: Stored) -> bool:
    """Whether mixtune wrote the run, and to its end."""
    return bool(_rows(run)) and {"mixtune.family", "mixtune.regime"} <= set(run.tags)


def _finished(run: Stored, study: StudyRuns) -> FinishedTrial:
    more: dict[str, dict[int, float]] = {}
    for S, values in run.curve.items():
        for metric in set(values) - set(METRICS) - set(MEASURED):
            more.setdefault(metric, {})[S] = values[metric]
    tags = run.tags
    return FinishedTrial(
        int(tags.get("mixtune.trial", -1)),
        tags["mixtune.family"],
        tags["mixtune.regime"],
        Curve.from_rows(_rows(run)),
        point_of(tags, run.params, study.search, f"--study {study.name}: run {run.id} in {masked(study.uri)}"),
        {metric: dict(sorted(values.items())) for metric, values in sorted(more.items())},
        run.metrics.get("seconds"),
        int(tags.get("mixtune.seed", 0)),
        tags.get("mixtune.judge", "validation"),
        run.id,
    )


def names(trials: Sequence[FinishedTrial]) -> list[str]:
    """What trials are called in tables."""
    return [t.family if not t.searched else f"searched #{t.number}" for t in trials]
