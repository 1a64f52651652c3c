"""Run a study from start to end: lock its folder, begin or resume it, run what remains, write the best regime."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixtune.config import to_plain
from mixtune.execution import ray_tune
from mixtune.execution.estimate import FORECAST, PROFILE, StudyToRun, find_concurrency
from mixtune.profiling import checks, messages
from mixtune.regime import Regime
from mixtune.regime.files import save_regime
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_factories import check_named
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths, locked, save_text
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study import rank_correlation
from mixtune.study.console import Console, pareto_table, results_table
from mixtune.study.final_evaluation import FinalResult, run_final
from mixtune.study.proxy import proxy_agreement
from mixtune.study.run_trials import TrialRunner
from mixtune.study.stores import OpenStudy, open_stores, study_exists
from mixtune.tracking import mlflow_reader
from mixtune.tracking.resync import note_summary


@dataclass(frozen=True)
class StudyResult:
    """How a search ended.

    remaining: trials that are still to be run; infeasible: the reason by number of the candidates that could not be
    trained; forecast_error: what the trials took against the forecast, empty where trials remain; pareto: with several
    objectives, the trials that no other beats in all of them.
    """

    outcomes: list[TrialResult]
    best: TrialResult | None
    interrupted: bool
    remaining: int
    experiment: str
    best_file: Path | None
    infeasible: Mapping[int, str] = field(default_factory=dict)
    forecast_error: str = ""
    final: FinalResult | None = None
    pareto: tuple[int, ...] = ()


def run_study(
    space: Space,
    source: str,
    paths: StudyPaths,
    draw: Callable[[str, str, Path], list[Path]],
    write: Callable[[str], None],
    resume: bool = False,
    proxy_scores: Mapping[str, float] | None = None,
    remeasure: bool = False,
) -> StudyResult:
    """Run a study to its end, or as far as it gets; the same call on a folder that holds the study continues it.

    ``draw(tracking uri, study, folder)`` makes the figures and returns their files. resume: only continue, and raise
    InputError where there is no study. proxy_scores: what the regimes to be tried scored on a proxy. remeasure: measure
    steps again. Raises InputError, before anything is written, when the space, its data, the resources or the stores
    cannot be used.
    """
    check_named(space)
    stride = checks.check_sizes(space, source)
    space = checks.with_absolute_paths(space)
    n_train = checks.check_data(space, source)
    concurrency = find_concurrency(space, paths)
    mlflow_reader.check(paths.tracking_uri)

    with locked(paths.folder), contextlib.ExitStack() as at_the_end:
        at_the_end.callback(ray_tune.disconnect)
        runner = TrialRunner(StudyToRun(space, paths, n_train), concurrency, write, remeasure)
        # What does not fit is refused before the study is begun, so that it may be begun with another base.
        if not (resume or study_exists(space, paths)):
            runner.prepare(space.trials)
        with open_stores(space, paths, stride, resume, proxy_scores) as study:
            trials, final = study.trials, None
            _write_what_happens(trials, study.stale, paths, write)
            interrupted = False
            try:
                if trials.remaining():
                    runner.prepare(trials.remaining())
                    write(space.aim)
                    console = Console(space.trials, trials.best(), write)
                    console.header()
                    runner.run(study, paths.folder, Callbacks([console, study.tracker]), runner.refuse)
                    if issues := console.file_issues():
                        write(issues)
                if not trials.remaining():
                    final = run_final(space, paths, study, runner, write)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                ray_tune.disconnect()
                study.reconcile()
            return _close(study, paths, space, draw, interrupted, final)


def _close(
    study: OpenStudy,
    paths: StudyPaths,
    space: Space,
    draw: Callable[[str, str, Path], list[Path]],
    interrupted: bool,
    final: FinalResult | None,
) -> StudyResult:
    """Write the best regime, the figures and the study's summary."""
    trials, tracker = study.trials, study.tracker
    best, best_file = final.winner if final else trials.best(), None
    artifacts = [paths.folder / name for name in (PROFILE, FORECAST)]
    pareto = tuple(trials.pareto()) if space.several else ()
    summary: dict[str, Any] = {}
    if best is not None:
        chosen = final.chosen if final else "the best single run of the search"
        best_file = _write_best(best, chosen, paths, space)
        artifacts.append(best_file)
        summary = {"score": best.score, "trial": best.number, "family": best.published or "searched"}
        summary |= {"regime": str(trained_regime(space, best)), "chosen": chosen}
        summary["verdict"] = final.verdict.sentence() if final else ""  # an earlier one does not stay
        summary["failed"] = "; ".join(final.missing) if final else ""
        if pareto:
            summary["pareto"] = " ".join(map(str, pareto))
    outcomes, remaining = trials.outcomes(), trials.remaining()
    agreement = proxy_agreement(outcomes)
    ranks = rank_correlation.agreements(space, outcomes)
    tags = {"mixtune.rank_correlation": rank_correlation.sentence(ranks)} if ranks else {}
    note_summary(trials, summary, tags | (agreement.tags if agreement else {}), rank_correlation.metrics(ranks))
    if tracker.resync():
        if best is not None:  # figures are drawn from what MLflow holds
            artifacts += draw(paths.tracking_uri, space.study, paths.folder / "figures")
        tracker.finish("KILLED" if remaining or interrupted else "FINISHED", artifacts)
    return StudyResult(
        outcomes,
        best,
        interrupted,
        remaining,
        tracker.experiment,
        best_file,
        trials.infeasible(),
        "" if remaining else messages.compare_with_forecast(paths.folder / FORECAST, trials.hours()),
        final,
        pareto,
    )


def _write_best(best: TrialResult, chosen: str, paths: StudyPaths, space: Space) -> Path:
    """Write best.yaml: the winner's regime and how it is trained, under a line that says how it was chosen."""
    path, regime_file = paths.folder / "best.yaml", paths.folder / "trials" / f"{best.number:04d}" / "regime.yaml"
    if not regime_file.exists():  # run by another machine of a cluster without a shared folder
        regime_file.parent.mkdir(parents=True, exist_ok=True)
        training = replace(space.training(), recipe=space.recipe_of(best.params))
        save_regime(regime_file, trained_regime(space, best), to_plain(training))
    save_text(path, f"# Trial {best.number}, {chosen}.\n{regime_file.read_text(encoding='utf-8')}")
    return path


def trained_regime(space: Space, outcome: TrialResult) -> Regime:
    """Return the regime that a finished trial trained."""
    return space.regime(outcome.params, outcome.published)


def table(space: Space, result: StudyResult) -> str:
    """Return the best trials beside the published regimes, and what else there is to say of the study."""
    lines = results_table(result.outcomes, lambda o: trained_regime(space, o))
    if result.infeasible:
        first = next(iter(result.infeasible.values()))
        lines += f"\n{len(result.infeasible)} candidates could not be trained ({first})"
    if correlation := rank_correlation.sentence(rank_correlation.agreements(space, result.outcomes)):
        lines += f"\n{correlation}"
    if agreement := proxy_agreement(result.outcomes):
        lines += f"\n{agreement}"
    lines += f"\n{result.forecast_error}" if result.forecast_error else ""
    if result.pareto:
        lines += "\n\n" + pareto_table([o for o in result.outcomes if o.number in result.pareto], space)
    return f"{lines}\n\n{result.final.table()}" if result.final else lines


def _write_what_happens(trials: OptunaStudy, cut_off: int, paths: StudyPaths, write: Callable[[str], None]) -> None:
    """Write whether the study begins, goes on or has ended."""
    name, total, left = trials.space.study, trials.space.trials, trials.remaining()
    if not trials.resumed:
        write(f"study {name}: {total} trials, in {paths.folder}")
    elif left:
        broken = f"; {cut_off} that were cut off start again" if cut_off else ""
        write(f"study {name} goes on: {total - left} of {total} trials are done{broken}")
    else:
        write(f"study {name} has all its {total} trials already; ask for more with --trials {total + 10}")
