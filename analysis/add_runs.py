"""Add runs with other seeds to a study: python -m analysis.add_runs --study NAME FOLDER...

A folder is what ``python -m mixtune.train --regime FILE --seeds N --out FOLDER`` wrote. Each seed becomes a child run
of the study in MLflow, so that figures show mean and deviation and differences are tested over seeds. The results of
``mixtune.evaluate --corruptions`` in the same folder are added too. Adding a folder twice changes nothing.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.finished_trial import FinishedTrial
from analysis.robustness import PREFIX as CORRUPTION
from analysis.study_runs import StudyRuns, read_study, tracking_uri
from mixtune.cli import Parser, parse_args, relative_to_cwd, run_command
from mixtune.errors import InputError
from mixtune.optim.recipe import Recipe
from mixtune.regime import Regime
from mixtune.tracking.recorded import record_repeat
from mixtune.tracking.run_content import repeat
from mixtune.training.run_folder import RESULT, FinishedRun, runs_in

SHARE_TOLERANCE = 1e-3  # studies of earlier versions hold four digits; no two regimes of a study are closer


def matching_trial(study: StudyRuns, regime: Regime, recipe: Recipe) -> FinishedTrial:
    """Return the complete trial that trained this regime, with this recipe where the recipe was searched.

    Raises InputError when no trial did.
    """

    def same_recipe(t: FinishedTrial) -> bool:
        settings = [(getattr(recipe, name), t.params[f"recipe.{name}"]) for name in study.search.recipe]
        return all(
            a == b or (isinstance(b, float) and math.isclose(a, b, rel_tol=SHARE_TOLERANCE)) for a, b in settings
        )

    candidates = [(share_distance(study.regime(t), regime), t) for t in study.trials if same_recipe(t)]
    distance, nearest = min(candidates, key=lambda pair: pair[0], default=(math.inf, None))
    if nearest is None or distance > SHARE_TOLERANCE:
        but = " with this recipe" if study.search.recipe else ""
        name = regime.name or str(regime)
        raise InputError(f"{name}: no complete trial of study {study.name} trained this regime{but} ({regime})")
    return nearest


def share_distance(a: Regime, b: Regime) -> float:
    """Return the largest difference between the shares of two regimes; infinite where their batch shapes differ."""

    def shapes(r: Regime) -> list[Any]:
        return [r.base, r.clock, *(ph.mixture.shapes for ph in r.phases)]

    def shares(r: Regime) -> list[float]:
        return [x for ph in r.phases for x in (ph.share, *ph.mixture.p)]

    if shapes(a) != shapes(b):
        return math.inf
    return max(abs(x - y) for x, y in zip(shares(a), shares(b), strict=True))


def read_corruptions(folder: Path, name: str) -> dict[str, dict[int, float]]:
    """Return the values of the metric ``name`` in ``folder``/corruptions.csv by corruption and size; {} without one.

    They are means over severities.

    Raises InputError for a file that ``mixtune.evaluate --corruptions`` did not write.
    """
    try:
        with (folder / "corruptions.csv").open(newline="", encoding="utf-8") as file:
            return mean_over_severities(csv.DictReader(file), name)
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError) as err:
        raise InputError(f"{folder / 'corruptions.csv'}: is not what mixtune.evaluate wrote ({err})") from None


def mean_over_severities(rows: Iterable[Mapping[str, Any]], name: str) -> dict[str, dict[int, float]]:
    """Return rows of ``corruptions.robustness`` as {corruption: {S: metric ``name``}}, mean over severities.

    Raises KeyError and ValueError for other rows.
    """
    values: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        values.setdefault(f"{CORRUPTION}{row['family']}", {}).setdefault(int(row["S"]), []).append(float(row[name]))
    return {kind: {S: statistics.fmean(v) for S, v in by_size.items()} for kind, by_size in values.items()}


def add_runs(study: StudyRuns, folder: Path) -> int:
    """Record every run in a folder in MLflow and return their number.

    Raises InputError for a run of another data set, network, regime or recipe.
    """
    run_folders = runs_in(folder)
    for path in run_folders:
        trained = FinishedRun.read(path)
        trial = matching_trial(study, trained.regime, trained.config.recipe)
        task, seed = trained.config.task, trained.config.seed
        for key, value in (("dataset", task.dataset), ("network", task.network)):
            of_study = study.settings.get(f"task.{key}")
            if value != of_study:
                raise InputError(f"{path}: trained {key} {value}, and study {study.name} is of {of_study}")
        if trained.judge is None:
            raise InputError(
                f"{path}: holds no {RESULT}, which says on which images it was judged; run the mixtune.train command "
                "of this folder again: it writes the file and trains nothing"
            )
        tags = {"trial": str(trial.number), "family": trial.family, "regime": trial.regime, "seed": str(seed)}
        tags |= {"study": study.name, "judge": trained.judge, "network": task.network, "dataset": task.dataset}
        name = f"{trial.number:03d} {trial.family} {trained.judge} seed {seed}"
        score = study.score.of(trained.curve)
        corrupted = read_corruptions(path, trained.curve.primary.name)
        now = int(1000 * time.time())
        content = repeat(name, tags, trial.params, trained.curve, score, corrupted, (), now, now)
        record_repeat(study.uri, study.parent, content)
    return len(run_folders)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.add_runs", (__doc__ or "").split("\n")[0])
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="what mixtune.train --out wrote")
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    args = parse_args(p, argv)
    study = read_study(tracking_uri(args.tracking_uri, args.study), args.study)
    for folder in map(Path, args.folders):
        print(f"added {add_runs(study, folder)} runs from {relative_to_cwd(folder)}")
    return 0


if __name__ == "__main__":
    run_command(main)
