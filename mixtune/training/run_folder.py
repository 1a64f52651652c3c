"""Run folder: what a finished run leaves: regime.yaml, curve.csv, weights.safetensors, result.yaml and images.tsv.

``mixtune.train`` writes it; so does a search for every trial, whose driver adds the curve. images.tsv lists image files
that were odd, where there were any.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from mixtune.config import parse, read_yaml, to_plain, to_yaml
from mixtune.errors import InputError
from mixtune.evaluation.curve import Curve, write_csv
from mixtune.regime import Regime
from mixtune.regime.files import load_regime, save_regime
from mixtune.runtime.environment import describe_environment
from mixtune.tasks.base import Judge
from mixtune.training.loop import Report
from mixtune.training.run import Run, TrainingConfig

WEIGHTS, RESULT = "weights.safetensors", "result.yaml"


@dataclass(frozen=True)
class FinishedRun:
    """A finished run's folder. judge: on which images the curve was measured; None where the folder does not say."""

    folder: Path
    regime: Regime
    config: TrainingConfig
    curve: Curve
    judge: Judge | None = None

    @property
    def weights(self) -> Path:
        """The network's weights."""
        return self.folder / WEIGHTS

    @classmethod
    def read(cls, folder: Path) -> FinishedRun:
        """Read a folder that ``save_run`` wrote. Raise InputError where something is missing or not mixtune's."""
        regime, training = load_regime(folder / "regime.yaml")
        if not (folder / "curve.csv").exists():
            raise InputError(f"{folder}: holds no curve.csv; was it written by mixtune.train --out?")
        config = parse(training, TrainingConfig, f"{folder / 'regime.yaml'}: training")
        try:
            with (folder / "curve.csv").open(newline="", encoding="utf-8") as file:
                curve = Curve.from_rows(csv.DictReader(file), config.task.metrics)
        except (OSError, KeyError, ValueError) as err:
            raise InputError(f"{folder / 'curve.csv'}: is not a curve that mixtune wrote ({err})") from None
        return cls(folder, regime, config, curve, judged_on(folder))


def judged_on(folder: Path) -> Judge | None:
    """Return on which images a finished run was evaluated; None where its folder does not say.

    Raise InputError for anything but validation or test.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    judge = read_yaml(path).get("judge")
    if judge not in get_args(Judge):
        raise InputError(f"{path}: judge must be validation or test, not {judge!r}")
    return judge  # type: ignore[no-any-return]


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of single runs in what ``mixtune.train`` wrote. Raise InputError when there are none."""
    folders = [folder] if (folder / "curve.csv").exists() else sorted(p.parent for p in folder.glob("seed*/curve.csv"))
    if not folders:
        raise InputError(
            f"{folder}: holds no finished run (curve.csv, regime.yaml); was it written by mixtune.train --out?"
        )
    return folders


def save_run(folder: Path, regime: Regime, job: Run, report: Report) -> None:
    """Write everything about a finished run; ``report`` is its last. Raise InputError where that is not possible."""
    save_result(folder, job, report)
    save_regime(folder / "regime.yaml", regime, to_plain(job.config))
    write_csv(folder / "curve.csv", report.curve.rows())


def save_result(folder: Path, job: Run, report: Report) -> None:
    """Write the weights, result.yaml (on which images the run was evaluated, its cost, its machine) and images.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    job.save_weights(folder / WEIGHTS)
    result = {
        "judge": job.judge,
        "images": {"trained": job.task.n_train, "judged": job.task.n_judged, **report.findings},
        **job.task.result(),
        "seed": job.config.seed,
        "score": job.config.score.of(report.curve),
        "measure": job.config.score.describe(job.task.metrics),
        "steps": report.step,
        "epochs": round(job.schedule.samples / job.task.n_train, 3),
        "loss": report.loss,
        "minutes": round(report.seconds / 60, 3),
        "device": str(job.task.device),
        "environment": describe_environment(),
    }
    job.task.file_issues.save(folder)
    (folder / RESULT).write_text(to_yaml(result), encoding="utf-8")
