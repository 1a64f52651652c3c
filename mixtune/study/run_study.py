"""A study from start to end: lock its folder, open or resume it, run what remains, prove and leave the best regime."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixtune.config import to_plain
from mixtune.execution import estimate, ray_tune
from mixtune.profiling import preflight
from mixtune.regime import Regime
from mixtune.regime.files import save_regime
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_factories import check_named
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths, locked, save
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study import proxy as carry
from mixtune.study import rank_correlation
from mixtune.study.console import Console, pareto_table, results_table
from mixtune.study.final_evaluation import FinalResult, run_final
from mixtune.study.run_trials import TrialRunner
from mixtune.study.stores import OpenStudy, begun, opened
from mixtune.tracking import mlflow_reader
from mixtune.tracking.resync import note_summary

log = logging.getLogger("mixtune")


@dataclass(frozen=True)
class StudyResult:
    """How a search ended."""

    outcomes: list[TrialResult]
    best: TrialResult | None
    interrupted: bool
    remaining: int
    experiment: str
    best_file: Path | None
    infeasible: Mapping[int, str] = field(default_factory=dict)  # candidates that could not be trained, with the reason
    took: str = ""  # beside what was planned; empty where trials remain
    proof: FinalResult | None = None
    pareto: tuple[int, ...] = ()  # with several objectives: the trials that no other beats in all of them


def run_study(
    space: Space,
    source: str,
    places: StudyPaths,
    draw: Callable[[str, str, Path], list[Path]],
    write: Callable[[str], None],
    resume: bool = False,
    proxy: Mapping[str, float] | None = None,
    again: bool = False,
) -> StudyResult:
    """Run a study to its end, or as far as it gets.

    ``draw(tracking uri, study, folder)`` makes the figures. Raises InputError before anything is written when the
    space, its data, the resources or the stores are not usable. The same call on a folder that holds the study
    continues it; with ``resume`` nothing else is done: a folder without the study is an InputError. proxy: scores of
    the regimes to be tried on the task that they were found on, see ``carry``; again: measure steps anew.
    """
    check_named(space)
    stride = preflight.check_sizes(space, source)
    space = preflight.in_full(space)
    n_train = preflight.check_data(space, source)
    slots = estimate.slots_of(space, places)
    mlflow_reader.check(places.tracking_uri)

    with locked(places.folder), contextlib.ExitStack() as at_the_end:
        at_the_end.callback(ray_tune.disconnect)
        machine = TrialRunner(space, slots, places, n_train, write, again)
        # What does not fit is refused before the study is begun, so that it may be begun with another base.
        if not (resume or begun(space, places)):
            machine.ready(space.trials)
        with opened(space, places, stride, resume, proxy) as study:
            trials, proof = study.trials, None
            _say_what_happens(trials, study.stale, places, write)
            interrupted = False
            try:
                if trials.remaining():
                    machine.ready(trials.remaining())
                    write(space.aim)
                    console = Console(space.trials, trials.best(), write)
                    console.header()
                    machine.run(study, places.folder, Callbacks([console, study.tracker]), machine.refuse)
                    if said := console.findings():
                        write(said)
                if not trials.remaining():
                    proof = run_final(space, places, study, machine, write)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                ray_tune.disconnect()
                study.reconcile()
            return _close(study, places, space, draw, interrupted, proof)


def _close(
    study: OpenStudy,
    places: StudyPaths,
    space: Space,
    draw: Callable[[str, str, Path], list[Path]],
    interrupted: bool,
    proof: FinalResult | None,
) -> StudyResult:
    trials, tracker = study.trials, study.tracker
    best, best_file = proof.winner if proof else trials.best(), None
    artifacts = [places.folder / name for name in (estimate.MEASURED, estimate.PLANNED)]
    if best is not None:
        chosen = proof.chosen if proof else "the best single run of the search"
        best_file = _keep(best, chosen, places, space)
        artifacts.append(best_file)
    remaining = trials.remaining()
    pareto = tuple(trials.pareto()) if space.several else ()
    summary: dict[str, Any] = {}
    if best is not None:
        summary = {"score": best.score, "trial": best.number, "family": best.published or "searched"}
        summary |= {"regime": str(regime_of(space, best)), "chosen": chosen}
        summary["verdict"] = proof.verdict.sentence() if proof else ""  # an earlier one does not stay
        summary["failed"] = "; ".join(proof.missing) if proof else ""
        if pareto:
            summary["pareto"] = " ".join(map(str, pareto))
    outcomes = trials.outcomes()
    agreed = carry.agreement(outcomes)
    ranks = rank_correlation.agreements(space, outcomes)
    told = {"mixtune.rank_correlation": rank_correlation.sentence(ranks)} if ranks else {}
    note_summary(trials, summary, told | (agreed.tags if agreed else {}), rank_correlation.metrics(ranks))
    if tracker.resync():
        if best is not None:  # figures are drawn from what MLflow holds
            artifacts += draw(places.tracking_uri, space.study, places.folder / "figures")
        tracker.finish("KILLED" if remaining or interrupted else "FINISHED", artifacts)
    took = estimate.compared(places.folder, trials.hours()) if not remaining else ""
    here, refused = tracker.experiment, trials.infeasible()
    return StudyResult(outcomes, best, interrupted, remaining, here, best_file, refused, took, proof, pareto)


def _keep(best: TrialResult, chosen: str, places: StudyPaths, space: Space) -> Path:
    """Write best.yaml: the winner's regime and how it is trained, under a line that says how it was chosen."""
    path, kept = places.folder / "best.yaml", places.folder / "trials" / f"{best.number:04d}" / "regime.yaml"
    if not kept.exists():  # run by another machine of a cluster without a shared folder
        kept.parent.mkdir(parents=True, exist_ok=True)
        training = replace(space.training(), recipe=space.recipe_of(best.params))
        save_regime(kept, regime_of(space, best), to_plain(training))
    save(path, f"# Trial {best.number}, {chosen}.\n{kept.read_text(encoding='utf-8')}")
    return path


def regime_of(space: Space, outcome: TrialResult) -> Regime:
    """The regime that a finished trial trained."""
    return space.regime(outcome.params, outcome.published)


def table(space: Space, result: StudyResult) -> str:
    """The best trials beside the published regimes."""
    lines = results_table(result.outcomes, lambda o: regime_of(space, o))
    if result.infeasible:
        first = next(iter(result.infeasible.values()))
        lines += f"\n{len(result.infeasible)} candidates could not be trained ({first})"
    if early := rank_correlation.sentence(rank_correlation.agreements(space, result.outcomes)):
        lines += f"\n{early}"
    if agreed := carry.agreement(result.outcomes):
        lines += f"\n{agreed}"
    lines += f"\n{result.took}" if result.took else ""
    if result.pareto:
        lines += "\n\n" + pareto_table([o for o in result.outcomes if o.number in result.pareto], space)
    return f"{lines}\n\n{result.proof.table()}" if result.proof else lines


def _say_what_happens(trials: OptunaStudy, stale: int, places: StudyPaths, write: Callable[[str], None]) -> None:
    name, total, left = trials.space.study, trials.space.trials, trials.remaining()
    if not trials.resumed:
        write(f"study {name}: {total} trials, in {places.folder}")
    elif left:
        broken = f"; {stale} that were cut off start again" if stale else ""
        write(f"study {name} goes on: {total - left} of {total} trials are done{broken}")
    else:
        write(f"study {name} has all its {total} trials already; ask for more with --trials {total + 10}")
