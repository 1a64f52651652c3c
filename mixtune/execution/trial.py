"""A trial as the processes that train it run it: train one regime and say how it goes. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mixtune.config import parse
from mixtune.data.reader_pool import ReaderLostError
from mixtune.errors import NO_ROOM
from mixtune.evaluation.curve import Curve, mean_curve
from mixtune.regime import Regime
from mixtune.regime.files import regime_from_dict
from mixtune.runtime import device
from mixtune.runtime.oom import is_out_of_memory
from mixtune.runtime.process_group import PeerLostError, ProcessGroup
from mixtune.search.fidelity import Stage
from mixtune.search.timeouts import Position, position
from mixtune.secrets import masked
from mixtune.training.loop import Report, TrainingDivergedError
from mixtune.training.run import Run, TrainingConfig
from mixtune.training.run_folder import save_result

# The machine's: a device, a file, a reader or a rank was lost, and another attempt may well succeed. Memory that was
# lacking: it would be again, unless the regime was trained before. The regime's: it diverges with this seed.
Cause = Literal["machine", "memory", "regime", "unknown"]


def cause_of(err: Exception) -> Cause:
    """Whose fault an error is that ended a run."""
    if isinstance(err, TrainingDivergedError):
        return "regime"
    if isinstance(err, MemoryError) or is_out_of_memory(err):
        return "memory"
    if isinstance(err, OSError) and err.errno in NO_ROOM:
        return "unknown"
    return "machine" if isinstance(err, OSError | PeerLostError | ReaderLostError) or device.lost(err) else "unknown"


def failure(err: Exception, folder: Path) -> str:
    """What went wrong in a trial and where, in one line."""
    where = position(folder)
    return masked(f"{type(err).__name__}: {err}")[:1000] + (f", at {where}" if where else "")


def metrics_of(report: Report, score: float, last: bool) -> dict[str, Any]:
    """A report as the plain values that Ray carries to the driver: none is a dictionary, which Ray would flatten."""
    return {
        "number": report.number,
        "last": last,
        "score": score,
        "progress": report.progress,
        "loss": report.loss,
        "lr": report.lr,
        "views_per_second": report.views_per_second,
        "seconds": report.seconds,
        "curve": report.curve.rows(),
        "findings": list(report.findings.items()),
    }


@dataclass(frozen=True)
class RunReport:
    """A report of one of a trial's runs; last: of this run; said: what the run has said since the one before."""

    stage: Stage
    report: Report
    last: bool
    said: tuple[str, ...]


def path_of(config: dict[str, Any]) -> list[Stage]:
    """The runs that a trial goes through, in the order in which the pruner sees them."""
    return [Stage(**s) for s in config["stages"]]


def trial_results(
    group: ProcessGroup, config: dict[str, Any], turn: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Train one regime, alone or as one of several ranks, through all its stages; what is reported, on the way.

    turn: called after every step and between batches of an evaluation, where trials share a process.
    """
    return results(config, told(group, config, path_of(config), turn))


def results(config: dict[str, Any], found: Iterable[RunReport]) -> Iterator[dict[str, Any]]:
    """What is reported of a trial, from what its runs tell in the order of its path, wherever they train."""
    training, path = parse(config["training"], TrainingConfig, "training"), path_of(config)
    folds: list[Curve] = []  # of the whole budget
    for one in found:
        report, stage = one.report, one.stage
        folds += [report.curve] * (one.last and stage.share == 1)
        curve = mean_curve(folds) if folds else report.curve
        score = training.score.of(curve)
        result = metrics_of(report, score, one.last and stage == path[-1]) | {"curve": curve.rows()}
        # Pruners that compare folds want this fold's own score, all others the best estimate there is.
        own = training.score.of(report.curve)
        step = report.number if _on_the_way(config, stage) else stage.step
        result |= {"number": step, "own": own, "progress": stage.share * report.progress, "fold": stage.fold}
        yield result | {"said": list(one.said)}


def told(
    group: ProcessGroup, config: dict[str, Any], path: Sequence[Stage], turn: Callable[[], None] = lambda: None
) -> Iterator[RunReport]:
    """Train these of a trial's runs, one after the other."""
    regime, _ = regime_from_dict(config["regime"], "regime")
    training = parse(config["training"], TrainingConfig, "training")
    for stage in path:
        said: list[str] = []
        for report, last in _stage(group, regime, training, config, stage, turn, said.append):
            yield RunReport(stage, report, last, tuple(said))
            said.clear()


def _on_the_way(config: dict[str, Any], stage: Stage) -> bool:
    """A truncated trial reports on the way, on its first fold; all other runs once, at their end."""
    return bool(config["reports"]) and stage == path_of(config)[0]


def _stage(
    group: ProcessGroup,
    regime: Regime,
    training: TrainingConfig,
    config: dict[str, Any],
    stage: Stage,
    turn: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[tuple[Report, bool]]:
    """One training run of a trial: (report, whether it is the run's last)."""
    task = replace(training.task, fold=stage.fold)
    job = Run.prepare(regime, replace(training, task=task, share=stage.share), config["judge"], group)
    folder, checkpoint = Path(config["folder"]), Path(config["checkpoint"])
    folder.mkdir(parents=True, exist_ok=True)  # it is not there yet on another machine of a cluster
    fold = stage.fold if config.get("folds_at_once", 1) > 1 else None
    judged = None if _on_the_way(config, stage) else (training.evaluate.reports,)
    with Position(folder, job.schedule, fold) if group.is_main else contextlib.nullcontext() as at:

        def on_step(step: int, views: int) -> None:
            if at is not None:
                at(step, views)
            turn()

        job.task.pause = turn
        kept = checkpoint.with_name(f"{checkpoint.stem}-{stage.step}{checkpoint.suffix}")
        for report in job.reports(kept, on_step=on_step, say=say, judged=judged):
            last = report.step == len(job.schedule)
            if last and job.task.file_issues.unreadable:
                say(job.task.file_issues.lines()[-1])
            # Of the fold that regime.yaml names: judged on another's images, weights would be judged on what they saw.
            if group.is_main and stage.fold == training.task.fold:
                save_result(folder, job, report) if last else job.task.file_issues.save(folder)
            yield report, last
