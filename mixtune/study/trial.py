"""A trial as its worker, or each of its ranks, runs it: train one regime and say how it goes. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixtune.config import parse
from mixtune.regime.files import regime_from_dict
from mixtune.secrets import masked
from mixtune.study.limits import Position, position
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
    }


def trial_results(
    here: Ranks, config: dict[str, Any], turn: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Train one regime, alone or as one of several ranks; what is reported, at every report point.

    turn: called after every step and between batches of an evaluation, where trials share a process.
    """
    regime, _ = regime_from_dict(config["regime"], "regime")
    training = parse(config["training"], TrainingConfig, "training")
    job = Run.prepare(regime, training, ranks=here)
    folder = Path(config["folder"])
    folder.mkdir(parents=True, exist_ok=True)  # it is not there yet on another machine of a cluster
    with Position(folder, job.schedule) if here.first else contextlib.nullcontext() as at:

        def on_step(step: int, views: int) -> None:
            if at is not None:
                at(step, views)
            turn()

        job.task.pause = turn
        for report in job.reports(Path(config["checkpoint"]), on_step=on_step):
            last = report.step == len(job.schedule)
            if last and here.first:
                save_result(folder, job, report)
            yield metrics_of(report, training.score.of(report.curve), last)
