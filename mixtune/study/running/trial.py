"""A trial as its worker, or each of its ranks, runs it: train one regime and say how it goes. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixtune.config import parse
from mixtune.regime import Regime
from mixtune.regime.files import regime_from_dict
from mixtune.secrets import masked
from mixtune.study.space.fidelity import Stage
from mixtune.study.space.limits import Position, position
from mixtune.training.curve import Curve, mean_curve
from mixtune.training.loop import Report
from mixtune.training.ranks import Ranks
from mixtune.training.run import Run, TrainingConfig
from mixtune.training.trained import save_result


def failure(err: Exception, folder: Path) -> str:
    """What went wrong in a trial and where, in one line."""
    where = position(folder)
    return masked(f"{type(err).__name__}: {err}")[:1000] + (f", at {where}" if where else "")


def metrics_of(report: Report, score: float, last: bool) -> dict[str, Any]:
    """A report as the plain values that Ray carries to the driver."""
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
        "findings": report.findings,
    }


def trial_results(
    here: Ranks, config: dict[str, Any], turn: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Train one regime, alone or as one of several ranks, through all its stages; what is reported, on the way.

    turn: called after every step and between batches of an evaluation, where trials share a process.
    """
    regime, _ = regime_from_dict(config["regime"], "regime")
    training = parse(config["training"], TrainingConfig, "training")
    path, whole = [Stage(**s) for s in config["stages"]], bool(config["reports"])
    folds: list[Curve] = []  # of the whole budget
    for i, stage in enumerate(path):
        # A truncated run reports on the way, on its first fold; all others once, at their end.
        judged = None if whole and i == 0 else (training.evaluate.reports,)
        said: list[str] = []
        for report, last in _stage(here, regime, training, config, stage, judged, turn, said.append):
            folds += [report.curve] * (last and stage.share == 1)
            curve = mean_curve(folds) if folds else report.curve
            score = training.score.of(curve)
            result = metrics_of(report, score, last and i + 1 == len(path)) | {"curve": curve.rows()}
            # Pruners that compare folds want this fold's own score, all others the best estimate there is.
            own = training.score.of(report.curve)
            step = report.number if judged is None else stage.step
            result |= {"number": step, "own": own, "progress": stage.share * report.progress, "fold": stage.fold}
            yield result | {"said": [*said]}
            said.clear()


def _stage(
    here: Ranks,
    regime: Regime,
    training: TrainingConfig,
    config: dict[str, Any],
    stage: Stage,
    judged: Sequence[int] | None,
    turn: Callable[[], None],
    say: Callable[[str], None],
) -> Iterator[tuple[Report, bool]]:
    """One training run of a trial: (report, whether it is the run's last)."""
    task = replace(training.task, fold=stage.fold)
    job = Run.prepare(regime, replace(training, task=task, share=stage.share), config["judge"], here)
    folder, checkpoint = Path(config["folder"]), Path(config["checkpoint"])
    folder.mkdir(parents=True, exist_ok=True)  # it is not there yet on another machine of a cluster
    with Position(folder, job.schedule) if here.first else contextlib.nullcontext() as at:

        def on_step(step: int, views: int) -> None:
            if at is not None:
                at(step, views)
            turn()

        job.task.pause = turn
        kept = checkpoint.with_name(f"{checkpoint.stem}-{stage.step}{checkpoint.suffix}")
        for report in job.reports(kept, on_step=on_step, say=say, judged=judged):
            last = report.step == len(job.schedule)
            if last and job.task.notes.unreadable:
                say(job.task.notes.lines()[-1])
            # Of the fold that regime.yaml names: judged on another's images, weights would be judged on what they saw.
            if last and here.first and stage.fold == training.task.fold:
                save_result(folder, job, report)
            yield report, last
