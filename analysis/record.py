"""Add runs with other seeds to a study: python -m analysis.record --study NAME FOLDER...

A folder is what ``python -m mixtune.train --regime FILE --seeds N --out FOLDER`` wrote. Each seed becomes a child run,
so that figures show mean and deviation and differences are tested over seeds. Recording it again changes nothing.
What ``mixtune.evaluate --corruptions`` wrote into the same folder is recorded too.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.finished import FinishedTrial
from analysis.robustness import PREFIX as CORRUPTION
from analysis.runs import StudyRuns, read_study, store
from mixtune.cli import Parser, parse_args, run, short
from mixtune.errors import InputError
from mixtune.optim.recipe import Recipe
from mixtune.regime import Regime
from mixtune.tracking.recorded import record_repeat
from mixtune.tracking.run_content import repeat
from mixtune.training.run_folder import RESULT, FinishedRun, runs_in

ROUNDED = 1e-3  # old studies hold their points rounded to four digits; none has two regimes nearer than that


def trial_of(study: StudyRuns, regime: Regime, recipe: Recipe) -> FinishedTrial:
    """The trial of a study that trained this regime, with this recipe where that was searched.

    Raises InputError when none did.
    """

    def same_recipe(t: FinishedTrial) -> bool:
        settings = [(getattr(recipe, name), t.params[f"recipe.{name}"]) for name in study.search.recipe]
        return all(a == b or (isinstance(b, float) and math.isclose(a, b, rel_tol=ROUNDED)) for a, b in settings)

    near = [(apart(study.regime(t), regime), t) for t in study.trials if same_recipe(t)]
    distance, found = min(near, key=lambda pair: pair[0], default=(math.inf, None))
    if found is None or distance > ROUNDED:
        but = " with this recipe" if study.search.recipe else ""
        name = regime.name or str(regime)
        raise InputError(f"{name}: no complete trial of study {study.name} trained this regime{but} ({regime})")
    return found


def apart(a: Regime, b: Regime) -> float:
    """The largest difference between the shares of two regimes; infinite where their phases hold other shapes."""

    def shapes(r: Regime) -> list[Any]:
        return [r.base, r.clock, *(ph.mixture.shapes for ph in r.phases)]

    def shares(r: Regime) -> list[float]:
        return [x for ph in r.phases for x in (ph.share, *ph.mixture.p)]

    if shapes(a) != shapes(b):
        return math.inf
    return max(abs(x - y) for x, y in zip(shares(a), shares(b), strict=True))


def corruptions(folder: Path) -> dict[str, dict[int, float]]:
    """Top-1 by corruption and size, mean over severities, where ``mixtune.evaluate --corruptions`` left them there."""
    try:
        with (folder / "corruptions.csv").open(newline="", encoding="utf-8") as file:
            return over_severities(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, ValueError) as err:
        raise InputError(f"{folder / 'corruptions.csv'}: is not what mixtune.evaluate wrote ({err})") from None


def over_severities(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Rows of ``training.robustness`` as {metric: {S: top-1}}, mean over severities. Raises KeyError, ValueError."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(f"{CORRUPTION}{row['family']}", {}).setdefault(int(row["S"]), []).append(float(row["top1"]))
    return {kind: {S: statistics.fmean(v) for S, v in by_size.items()} for kind, by_size in found.items()}


def record(study: StudyRuns, folder: Path) -> int:
    """Log every run in a folder; returns how many. Raises InputError for a run of another task, regime or network."""
    single = runs_in(folder)
    for path in single:
        trained = FinishedRun.read(path)
        trial = trial_of(study, trained.regime, trained.config.recipe)
        task, seed = trained.config.task, trained.config.seed
        for key, mine in (("dataset", task.dataset), ("network", task.network)):
            if mine != study.settings.get(f"task.{key}"):
                theirs = study.settings.get(f"task.{key}")
                raise InputError(f"{path}: trained {key} {mine}, and study {study.name} is of {theirs}")
        if trained.judge is None:
            raise InputError(
                f"{path}: holds no {RESULT}, which says on which images it was judged; the mixtune.train command that "
                "made it writes one when it is run again, and trains nothing anew"
            )
        tags = {"trial": str(trial.number), "family": trial.family, "regime": trial.regime, "seed": str(seed)}
        tags |= {"study": study.name, "judge": trained.judge, "network": task.network, "dataset": task.dataset}
        name = f"{trial.number:03d} {trial.family} {trained.judge} seed {seed}"
        score = study.score.of(trained.curve)
        now = int(1000 * time.time())
        content = repeat(name, tags, trial.params, trained.curve, score, corruptions(path), (), now, now)
        record_repeat(study.uri, study.parent, content)
    return len(single)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.record", (__doc__ or "").split("\n")[0])
    p.add_argument("folders", nargs="+", metavar="FOLDER", help="what mixtune.train --out wrote")
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    args = parse_args(p, argv)
    study = read_study(store(args.tracking_uri, args.study), args.study)
    for folder in map(Path, args.folders):
        print(f"recorded {record(study, folder)} runs from {short(folder)}")
    return 0


if __name__ == "__main__":
    run(main)
