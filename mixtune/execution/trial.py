"""Train one trial in the processes of a worker and report its progress. No Ray here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mixtune.config import parse
from mixtune.errors import DISK_FULL
from mixtune.evaluation.curve import Curve, mean_curve
from mixtune.execution.position import Position, describe_position
from mixtune.regime import Regime
from mixtune.regime.files import regime_from_dict
from mixtune.runtime import device
from mixtune.runtime.oom import is_out_of_memory
from mixtune.runtime.process_group import PeerLostError, ProcessGroup
from mixtune.search.fidelity import Stage
from mixtune.secrets import masked
from mixtune.tasks.base import Judge
from mixtune.training.loop import Report, TrainingDivergedError
from mixtune.training.run import Run, TrainingConfig
from mixtune.training.run_folder import save_result

# machine: a device, a file, a reader or a rank was lost, and another attempt may well succeed. memory: it was lacking,
# and would be again, unless the regime was trained before. regime: it diverges with this seed.
Cause = Literal["machine", "memory", "regime", "unknown"]


def failure_cause(err: Exception) -> Cause:
    """Return what an error that ended a run is due to."""
    if isinstance(err, TrainingDivergedError):
        return "regime"
    if isinstance(err, MemoryError) or is_out_of_memory(err):
        return "memory"
    if isinstance(err, OSError) and err.errno in DISK_FULL:
        return "unknown"
    return "machine" if isinstance(err, OSError | PeerLostError) or device.is_device_lost(err) else "unknown"


def failure_message(err: Exception, folder: Path) -> str:
    """Return what went wrong in the trial in ``folder`` and at which step, in one line."""
    position = describe_position(folder)
    return masked(f"{type(err).__name__}: {err}")[:1000] + (f", at {position}" if position else "")


@dataclass(frozen=True)
class TrialSpec:
    """What a worker is to train: the configuration that ``trial_config`` makes, read once.

    stages: the trial's runs, in the order in which the pruner sees them; reports_within: whether the first of them is
    judged on the way.
    """

    regime: Regime
    training: TrainingConfig
    folder: Path
    checkpoint: Path
    judge: Judge
    stages: tuple[Stage, ...]
    reports_within: bool
    folds_at_once: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TrialSpec:
        """Read a worker's configuration. Raises InputError when it is not one."""
        regime, _ = regime_from_dict(config["regime"], "regime")
        return cls(
            regime,
            parse(config["training"], TrainingConfig, "training"),
            Path(config["folder"]),
            Path(config["checkpoint"]),
            config["judge"],
            tuple(Stage(**stage) for stage in config["stages"]),
            config["reports"],
            config["folds_at_once"],
        )

    def is_judged_within(self, stage: Stage) -> bool:
        """Return whether this run is judged on the way: a truncated trial's first; all others once, at their end."""
        return self.reports_within and stage == self.stages[0]

    def stage_checkpoint(self, stage: Stage) -> Path:
        """Return the checkpoint of one of the runs."""
        return self.checkpoint.with_name(f"{self.checkpoint.stem}-{stage.step}{self.checkpoint.suffix}")


@dataclass(frozen=True)
class RunReport:
    """A report of one of a trial's runs; last: of this run; messages: what the run has said since the one before."""

    stage: Stage
    report: Report
    last: bool
    messages: tuple[str, ...]


def trial_reports(
    group: ProcessGroup, spec: TrialSpec, pause: Callable[[], None] = lambda: None
) -> Iterator[dict[str, Any]]:
    """Train one regime through all its stages, alone or as one of several ranks; yield the trial's reports.

    pause: called after every step and between batches of an evaluation, where trials share a process.
    """
    return combined_reports(spec, run_reports(group, spec, spec.stages, pause))


def combined_reports(spec: TrialSpec, reports: Iterable[RunReport]) -> Iterator[dict[str, Any]]:
    """Yield the trial's reports, from those of its runs in the order of its stages, wherever they train.

    A report holds plain values, which Ray carries to the driver; none is a dictionary, which Ray would flatten.
    """
    whole: list[Curve] = []  # of the folds that were trained on the whole budget
    for one in reports:
        report, stage = one.report, one.stage
        if one.last and stage.share == 1:
            whole.append(report.curve)
        curve = mean_curve(whole) if whole else report.curve
        yield {
            "number": report.number if spec.is_judged_within(stage) else stage.step,
            "last": one.last and stage == spec.stages[-1],
            "score": spec.training.score.of(curve),
            # Pruners that compare folds want this fold's own score, all others the best estimate there is.
            "own": spec.training.score.of(report.curve),
            "fold": stage.fold,
            "progress": stage.share * report.progress,
            "loss": report.loss,
            "lr": report.lr,
            "views_per_second": report.views_per_second,
            "seconds": report.seconds,
            "curve": curve.rows(),
            "findings": list(report.findings.items()),
            "said": list(one.messages),
        }


def run_reports(
    group: ProcessGroup, spec: TrialSpec, stages: Sequence[Stage], pause: Callable[[], None] = lambda: None
) -> Iterator[RunReport]:
    """Train these of a trial's runs, one after the other; yield their reports."""
    for stage in stages:
        messages: list[str] = []
        for report, last in _train_stage(group, spec, stage, pause, messages.append):
            yield RunReport(stage, report, last, tuple(messages))
            messages.clear()


def _train_stage(
    group: ProcessGroup, spec: TrialSpec, stage: Stage, pause: Callable[[], None], say: Callable[[str], None]
) -> Iterator[tuple[Report, bool]]:
    """Train one run of a trial; yield (report, whether it is the run's last)."""
    task = replace(spec.training.task, fold=stage.fold)
    run = Run.prepare(spec.regime, replace(spec.training, task=task, share=stage.share), spec.judge, group)
    spec.folder.mkdir(parents=True, exist_ok=True)  # it is not there yet on another machine of a cluster
    fold = stage.fold if spec.folds_at_once > 1 else None
    judged = None if spec.is_judged_within(stage) else (spec.training.evaluate.reports,)
    with Position(spec.folder, run.schedule, fold) if group.is_main else contextlib.nullcontext() as position:

        def on_step(step: int, views: int) -> None:
            if position is not None:
                position(step, views)
            pause()

        run.task.pause = pause
        for report in run.reports(spec.stage_checkpoint(stage), on_step=on_step, say=say, judged=judged):
            last = report.step == len(run.schedule)
            if last and run.task.file_issues.unreadable:
                say(run.task.file_issues.lines()[-1])
            # Of the fold that regime.yaml names: judged on another's images, weights would be judged on what they saw.
            if group.is_main and stage.fold == spec.training.task.fold:
                save_result(spec.folder, run, report) if last else run.task.file_issues.save(spec.folder)
            yield report, last
