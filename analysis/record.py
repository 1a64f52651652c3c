"""Add runs with other seeds to a study: python -m analysis.record --study NAME FOLDER...

A folder is what ``python -m mixtune.train --regime FILE --seeds N --out FOLDER`` wrote. Each seed becomes a child run,
so that figures show mean and deviation and differences are tested over seeds. Recording it again changes nothing.
What ``mixtune.evaluate --corruptions`` wrote into the same folder is recorded too.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path

from analysis.robustness import PREFIX as CORRUPTION
from analysis.runs import FinishedTrial, StudyRuns, read_study, store
from mixtune.cli import Parser, parse_args, run, short
from mixtune.errors import InputError
from mixtune.regime import Regime
from mixtune.regime.files import load_regime
from mixtune.study.tracking import record_repeat
from mixtune.training.curve import Curve


def runs_in(folder: Path) -> list[Path]:
    """The folders of single runs in what ``mixtune.train`` wrote. Raises InputError when there are none."""
    found = [folder] if (folder / "curve.csv").exists() else sorted(p.parent for p in folder.glob("seed*/curve.csv"))
    if not found:
        raise InputError(
            f"{folder}: holds no finished run (curve.csv, regime.yaml); was it written by mixtune.train --out?"
        )
    return found


def trial_of(study: StudyRuns, regime: Regime) -> FinishedTrial:
    """The trial of a study that trained this regime. Raises InputError when none did."""
    for t in study.trials:
        if t.regime == str(regime):
            return t
    raise InputError(f"{regime.name or regime}: no complete trial of study {study.name} trained this regime ({regime})")


def corruptions(folder: Path) -> dict[str, dict[int, float]]:
    """Top-1 by corruption and size, mean over severities, where ``mixtune.evaluate --corruptions`` left them there."""
    found: dict[str, dict[int, list[float]]] = {}
    try:
        with (folder / "corruptions.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                by_size = found.setdefault(f"{CORRUPTION}{row['family']}", {})
                by_size.setdefault(int(row["S"]), []).append(float(row["top1"]))
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError) as err:
        raise InputError(f"{folder / 'corruptions.csv'}: is not what mixtune.evaluate wrote ({err})") from None
    return {kind: {S: statistics.fmean(v) for S, v in by_size.items()} for kind, by_size in found.items()}


def record(study: StudyRuns, folder: Path, judge: str) -> int:
    """Log every run in a folder; returns how many. Raises InputError for a run of another task, regime or network."""
    single = runs_in(folder)
    for path in single:
        regime, training = load_regime(path / "regime.yaml")
        trial = trial_of(study, regime)
        for key in ("dataset", "network"):
            mine, theirs = training.get("task", {}).get(key), study.settings.get(f"task.{key}")
            if mine != theirs:
                raise InputError(f"{path}: trained {key} {mine}, and study {study.name} is of {theirs}")
        try:
            with (path / "curve.csv").open(newline="", encoding="utf-8") as file:
                curve = Curve.from_rows(csv.DictReader(file))
        except (OSError, KeyError, ValueError) as err:
            raise InputError(f"{path / 'curve.csv'}: is not a curve that mixtune wrote ({err})") from None
        seed = int(training.get("seed", 0))
        tags = {"trial": str(trial.number), "family": trial.family, "regime": trial.regime, "seed": str(seed)}
        tags |= {"study": study.name, "judge": judge, "network": str(training["task"]["network"])}
        tags |= {"dataset": str(training["task"]["dataset"])}
        name = f"{trial.number:03d} {trial.family} {judge} seed {seed}"
        record_repeat(
            study.uri, study.parent, name, tags, dict(trial.params), curve, study.score.of(curve), corruptions(path)
        )
    return len(single)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.record", (__doc__ or "").split("\n")[0])
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="what mixtune.train --out wrote")
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    p.add_argument(
        "--judge",
        required=True,
        choices=("test", "validation"),
        help="which images they were judged on: test if they were trained with --test, else validation",
    )
    args = parse_args(p, argv)
    study = read_study(store(args.tracking_uri, args.study), args.study)
    for folder in map(Path, args.folders):
        print(f"recorded {record(study, folder, args.judge)} runs from {short(folder)}")
    return 0


if __name__ == "__main__":
    run(main)
