"""Estimate which parameters of the search decide the score: python -m analysis.importance --study NAME

The measure is Optuna's fANOVA (Hutter et al. 2014): the share of the score's variance over the space that a parameter
explains, alone or together with others. Its range over estimates with one trial left out shows how stable it is.
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
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns
from mixtune.cli import run_command
from mixtune.errors import InputError
from mixtune.search.domains import Domains, Range, Value, extreme_values, shown

MIN_TRIALS = 6  # complete trials: with fewer, fANOVA's trees have nothing to split
RELIABLE_TRIALS = 30  # with fewer, the order of the parameters changes from trial to trial
REFITS = 20  # estimates with a trial left out, about
CLEAR_CORRELATION = 0.3  # a smaller rank correlation is not called a trend


def optuna_study(study: StudyRuns, trials: Sequence[FinishedTrial]) -> optuna.Study:
    """Return complete trials as an Optuna study in memory, over the parameters that were varied.

    A logarithmic range becomes a range of the logarithm, so that the variance is over the space as it was sampled.
    """
    domains = varied_parameters(study)
    distributions = {name: _distribution(domain) for name, domain in domains.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rebuilt = optuna.create_study(direction="maximize")
    for t in trials:
        params = {name: _scaled(domain, t.params[name]) for name, domain in domains.items()}
        value = study.score.of(t.curve)
        rebuilt.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
    return rebuilt


def varied_parameters(study: StudyRuns) -> dict[str, Domains]:
    """Return the parameters of a study whose domain holds more than one value: {name: domain}."""
    return {name: domain for name, domain in study.search.domains.items() if len(set(extreme_values(domain))) > 1}


def _distribution(domain: Domains) -> BaseDistribution:
    if isinstance(domain, Range):
        return FloatDistribution(_scaled(domain, domain.low), _scaled(domain, domain.high))
    return CategoricalDistribution(domain)


def _scaled(domain: Domains, value: Any) -> Any:
    return math.log(value) if isinstance(domain, Range) and domain.log else value


def importances(study: StudyRuns, trials: Sequence[FinishedTrial]) -> dict[str, float]:
    """Return the share of the score's variance by parameter, largest first; the shares sum to 1."""
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0)
    shares = optuna.importance.get_param_importances(optuna_study(study, trials), evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def trend(study: StudyRuns, name: str) -> str:
    """Return in words how the score depends on a parameter.

    For a range: the sign of Spearman's rank correlation. For a choice: the value with the best mean score.
    """
    scores = [study.score.of(t.curve) for t in study.trials]
    values: list[Any] = [t.params[name] for t in study.trials]
    if len(set(values)) < 2 or len(set(scores)) < 2:
        return "did not vary"
    if not isinstance(study.search.domains[name], Range):
        by_value: dict[Value, list[float]] = {}
        for value, score in zip(values, scores, strict=True):
            by_value.setdefault(value, []).append(score)
        return f"best: {shown((max(by_value, key=lambda v: fmean(by_value[v])),))}"
    from scipy import stats

    rho = float(stats.spearmanr(values, scores).statistic)
    if abs(rho) < CLEAR_CORRELATION:
        return "no clear trend"
    return f"{'more' if rho > 0 else 'less'} is better (ρ {rho:+.2f})".replace("-", "−")


def parameter_label(name: str) -> str:
    """Return the name of a parameter as figures write it."""
    if name.startswith("w_"):
        return f"weight of {name.removeprefix('w_')} px"
    if name.startswith("recipe."):
        return name.removeprefix("recipe.").replace("_", " ")
    return {"split": "split (B+ or D+)"}.get(name, name)


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write figure and table; return the files and the lines to print.

    Raises InputError where there are too few complete trials, or all have the same score.
    """
    trials, scores = study.trials, {study.score.of(t.curve) for t in study.trials}
    if len(trials) < MIN_TRIALS or len(scores) < 2:
        why = f"{len(trials)} complete trials" if len(trials) < MIN_TRIALS else "one and the same score in all trials"
        raise InputError(
            f"--study {study.name}: {why}; importances need at least {MIN_TRIALS} with different scores, so give the "
            "study more with --trials"
        )
    if not varied_parameters(study):
        raise InputError(f"--study {study.name}: everything in its search is fixed, so nothing can be important")
    shares = importances(study, trials)
    step = max(1, len(trials) // REFITS)
    refits = [importances(study, [t for j, t in enumerate(trials) if j != i]) for i in range(0, len(trials), step)]
    rows = [
        {
            "parameter": name,
            "importance": value,
            "low": min(value, *(r.get(name, 0.0) for r in refits)),
            "high": max(value, *(r.get(name, 0.0) for r in refits)),
            "tendency": trend(study, name),
        }
        for name, value in sorted(shares.items(), key=lambda item: -item[1])
    ]
    with style.figure(0.85 + 0.24 * len(rows)) as figure:
        _figure(figure, study, rows)
        paths = style.save_figure(figure, folder, "importance", rows)
    few = f": fewer than {RELIABLE_TRIALS}, so take the order as a hint" if len(trials) < RELIABLE_TRIALS else ""
    return paths, [f"from {len(trials)} complete trials{few}"]


def _figure(figure: Any, study: StudyRuns, rows: Sequence[dict[str, Any]]) -> None:
    axes = figure.subplots()
    places = range(len(rows))
    values = [100 * r["importance"] for r in rows]
    errors = [[100 * (r["importance"] - r["low"]) for r in rows], [100 * (r["high"] - r["importance"]) for r in rows]]
    axes.barh(places, values, 0.62, color="#0072B2")
    style.error_bars(axes, values, places, errors, "0.25", horizontal=True)
    for i, r in enumerate(rows):
        axes.annotate(
            r["tendency"], (100 * r["high"], i), (4, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axes.set_yticks(places, [parameter_label(r["parameter"]) for r in rows])
    axes.invert_yaxis()
    end = max(100 * r["high"] for r in rows)
    axes.set_xlim(0, 1.8 * end)
    axes.set_xticks(range(0, int(end) + 1, 10 if end < 60 else 20))
    axes.set_xlabel("share of the score's variance, % (fANOVA)\nwhiskers: range with a trial left out")
    style.figure_title(figure, f"{study.name}: what decides the score ({len(study.trials)} trials)")
    axes.tick_params(axis="y", length=0)
    style.grid(axes, "x")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return run_on_study(
        study_parser("analysis.importance", __doc__), argv, lambda study, folder, _: draw_study(study, folder)
    )


if __name__ == "__main__":
    run_command(main)
