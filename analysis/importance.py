"""Which sizes, split, growth or settings of the recipe decide the score: python -m analysis.importance --study NAME

Optuna's fANOVA (Hutter et al. 2014): the share of the score's variance over the space that each parameter explains by
itself or together with others. The study is rebuilt from MLflow; trials left out one at a time show how far it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from analysis import style
from analysis.command import parser, perform
from analysis.finished import FinishedTrial
from analysis.runs import StudyRuns
from mixtune.cli import run
from mixtune.errors import InputError
from mixtune.search.domains import Domains, Range, Value, ends, said

LEAST = 6  # complete trials; below that a forest of trees has nothing to divide
ENOUGH = 30  # below that, the order of the bars changes with the trials
REFITS = 20
CLEAR = 0.3  # rank correlations nearer to 0 are not called a trend


def rebuilt(study: StudyRuns, trials: Sequence[FinishedTrial]) -> optuna.Study:
    """The study's complete trials as an Optuna study in memory, over the knobs that can be turned.

    A range in the logarithm becomes one of the logarithm: variance is over the space as the search drew from it.
    """
    knobs = turned(study)
    space = {name: _distribution(knob) for name, knob in knobs.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = optuna.create_study(direction="maximize")
    for t in trials:
        params = {k: _scaled(knob, t.params[k]) for k, knob in knobs.items()}
        value = study.score.of(t.curve)
        made.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=value))
    return made


def turned(study: StudyRuns) -> dict[str, Domains]:
    """The knobs of a study that have more than one value."""
    return {name: knob for name, knob in study.search.knobs.items() if len(set(ends(knob))) > 1}


def _distribution(knob: Domains) -> BaseDistribution:
    if isinstance(knob, Range):
        return FloatDistribution(_scaled(knob, knob.low), _scaled(knob, knob.high))
    return CategoricalDistribution(knob)


def _scaled(knob: Domains, value: Any) -> Any:
    return math.log(value) if isinstance(knob, Range) and knob.log else value


def importances(study: StudyRuns, trials: Sequence[FinishedTrial]) -> dict[str, float]:
    """Share of the score's variance by parameter, largest first; they sum to 1."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    found = optuna.importance.get_param_importances(rebuilt(study, trials), evaluator=evaluator)
    return {name: float(value) for name, value in found.items()}


def tendency(study: StudyRuns, name: str) -> str:
    """Which way the score goes: Spearman's rank correlation with a range, the best value on average of a choice."""
    scores = [study.score.of(t.curve) for t in study.trials]
    values: list[Any] = [t.params[name] for t in study.trials]
    if len(set(values)) < 2 or len(set(scores)) < 2:
        return "did not vary"
    if not isinstance(study.search.knobs[name], Range):
        by_value: dict[Value, list[float]] = {}
        for value, score in zip(values, scores, strict=True):
            by_value.setdefault(value, []).append(score)
        return f"best: {said((max(by_value, key=lambda v: fmean(by_value[v])),))}"
    from scipy import stats

    rho = float(stats.spearmanr(values, scores).statistic)
    if abs(rho) < CLEAR:
        return "no clear trend"
    return f"{'more' if rho > 0 else 'less'} is better (ρ {rho:+.2f})".replace("-", "−")


def said_of(name: str) -> str:
    """A parameter's name for people."""
    if name.startswith("w_"):
        return f"weight of {name.removeprefix('w_')} px"
    if name.startswith("recipe."):
        return name.removeprefix("recipe.").replace("_", " ")
    return {"split": "split (B+ or D+)"}.get(name, name)


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Figure and table. Raises InputError where there are too few complete trials, or all have the same score."""
    trials, scores = study.trials, {study.score.of(t.curve) for t in study.trials}
    if len(trials) < LEAST or len(scores) < 2:
        why = f"{len(trials)} complete trials" if len(trials) < LEAST else "one and the same score in all trials"
        raise InputError(
            f"--study {study.name}: {why}; importances need at least {LEAST} with different scores, so give the study "
            "more with --trials"
        )
    if not turned(study):
        raise InputError(f"--study {study.name}: everything in its search is fixed, so nothing can be important")
    found = importances(study, trials)
    step = max(1, len(trials) // REFITS)
    refits = [importances(study, [t for j, t in enumerate(trials) if j != i]) for i in range(0, len(trials), step)]
    rows = [
        {
            "parameter": name,
            "importance": value,
            "low": min(value, *(r.get(name, 0.0) for r in refits)),
            "high": max(value, *(r.get(name, 0.0) for r in refits)),
            "tendency": tendency(study, name),
        }
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ]
    with style.figure(0.85 + 0.24 * len(rows)) as figure:
        _figure(figure, study, rows)
        paths = style.write(figure, folder, "importance", rows)
    note = f"from {len(trials)} complete trials"
    few = f": fewer than {ENOUGH}, so take the order as a hint" if len(trials) < ENOUGH else ""
    return paths, [note + few]


def _figure(figure: Any, study: StudyRuns, rows: Sequence[dict[str, Any]]) -> None:
    axes = figure.subplots()
    places = range(len(rows))
    values = [100 * r["importance"] for r in rows]
    errors = [[100 * (r["importance"] - r["low"]) for r in rows], [100 * (r["high"] - r["importance"]) for r in rows]]
    axes.barh(places, values, 0.62, color="#0072B2")
    style.whiskers(axes, values, places, errors, "0.25", horizontal=True)
    for i, r in enumerate(rows):
        axes.annotate(
            r["tendency"], (100 * r["high"], i), (4, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axes.set_yticks(places, [said_of(r["parameter"]) for r in rows])
    axes.invert_yaxis()
    end = max(100 * r["high"] for r in rows)
    axes.set_xlim(0, 1.8 * end)
    axes.set_xticks(range(0, int(end) + 1, 10 if end < 60 else 20))
    axes.set_xlabel("share of the score's variance, % (fANOVA)\nwhiskers: range with a trial left out")
    style.title(figure, f"{study.name}: what decides the score ({len(study.trials)} trials)")
    axes.tick_params(axis="y", length=0)
    style.grid(axes, "x")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return perform(parser("analysis.importance", __doc__), argv, lambda study, folder, _: draw_study(study, folder))


if __name__ == "__main__":
    run(main)
