"""The README's figure and table: python -m benchmarks.digits --study-folder studies/digits

Takes a finished digits study, trains its best searched regime and the published ones again on the whole training set
with several seeds, and judges them on the test set, which the search never read. Writes docs/digits.json, the study's
figure to docs/ and the table into README.md. The last line printed ends with the difference of mean scores, in points.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from analysis.runs import finished_trials
from benchmarks import readme
from mixtune.cli import Parser, parse_args, run
from mixtune.config import load, parse
from mixtune.errors import InputError
from mixtune.regime.files import load_regime
from mixtune.study.space import Space
from mixtune.study.tracking import default_uri
from mixtune.training.environment import environment
from mixtune.training.run import Run, TrainingConfig


def train_once(regime_file: str, seed: int) -> dict[str, Any]:
    """One run on the whole training set: its score and top-1 per size on the test set."""
    regime, training = load_regime(regime_file)
    config = parse(
        training | {"seed": seed, "evaluate": training["evaluate"] | {"reports": 1}}, TrainingConfig, regime_file
    )
    job = Run.prepare(regime, config, "test")
    (report,) = job.reports()
    return {"score": config.score.of(report.curve), "top1": {str(p.S): p.top1 for p in report.curve.points}}


def measure(folder: Path, seeds: int) -> dict[str, Any]:
    """Train every published regime of the study and its best searched one with seeds 1 to ``seeds``."""
    import torch

    space = load(folder / "space.yaml", Space)
    trials = finished_trials(default_uri(folder), space.study)
    searched = [t for t in trials if t.searched]
    if not searched:
        raise InputError(f"--study-folder {folder}: no searched trial was completed; give the study more trials")
    best = max(searched, key=lambda t: space.score.of(t.curve))
    chosen = {t.family: t for t in trials if not t.searched} | {"searched": best}
    files = {name: str(folder / "trials" / f"{t.number:04d}" / "regime.yaml") for name, t in chosen.items()}
    jobs = [(name, seed) for name in files for seed in range(1, seeds + 1)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        results = list(pool.map(train_once, [files[name] for name, _ in jobs], [seed for _, seed in jobs]))
    regimes: list[dict[str, Any]] = []
    for name, t in chosen.items():
        mine = [r for (owner, _), r in zip(jobs, results, strict=True) if owner == name]
        regimes.append({"name": name, "regime": t.regime, "search_score": space.score.of(t.curve), "runs": mine})
    regimes.sort(key=lambda r: -_mean([x["score"] for x in r["runs"]]))
    return {
        "command": "make search, then python -m benchmarks.digits",
        "commit": readme.commit(),
        "hardware": environment()["cpu"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seeds": seeds,
        "regimes": regimes,
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def compare(data: dict[str, Any]) -> tuple[str, float, float]:
    """Searched against the best published regime: (its name, difference of mean scores, p of Welch's t-test)."""
    from scipy import stats

    scores = {r["name"]: [x["score"] for x in r["runs"]] for r in data["regimes"]}
    mine = scores.pop("searched")
    rival = max(scores, key=lambda name: _mean(scores[name]))
    p = float(stats.ttest_ind(mine, scores[rival], equal_var=False).pvalue)
    return rival, _mean(mine) - _mean(scores[rival]), p


def table(data: dict[str, Any]) -> str:
    """The README's table, in Markdown."""
    n = data["seeds"]
    sizes = list(data["regimes"][0]["runs"][0]["top1"])
    rows = [
        "| regime | score | " + " | ".join(f"{S} px" for S in sizes) + " | size x batch (x copies), % of steps |",
        "|---|--:|" + "--:|" * len(sizes) + "---|",
    ]
    for r in data["regimes"]:
        cells = [_spread([x["score"] for x in r["runs"]])]
        cells += [_spread([x["top1"][S] for x in r["runs"]]) for S in sizes]
        name = f"**{r['name']}**" if r["name"] == "searched" else r["name"]
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {r['regime']} |")
    rival, difference, p = compare(data)
    verdict = "is distinguishable" if p < 0.05 else "is **not** distinguishable"
    notes = (
        f"Test-set top-1 in % (mean ± standard deviation over {n} seeds) of a ResNet-8 trained on all training images; "
        "the score is the mean of the curve's staircase over log cost. The searched regime is the best of its study "
        f"by a single hold-out run. At this noise it {verdict} from the best published one, {rival}: "
        f"{100 * difference:+.2f} points, p = {p:.2g} (Welch's t-test). Made by `{data['command']}` on "
        f"{data['hardware']}, torch {data['torch']}; every run is in `docs/digits.json`."
    )
    return "\n".join([*rows, "", notes, ""])


def _spread(values: Sequence[float]) -> str:
    deviation = 100 * statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * _mean(values):.1f} ± {deviation:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("benchmarks.digits", __doc__.split("\n")[0])
    p.add_argument("--study-folder", default="studies/digits", metavar="FOLDER", help="a finished digits study")
    p.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings of each regime")
    args = parse_args(p, argv)
    folder = Path(args.study_folder)
    data = measure(folder, args.seeds)
    docs = readme.ROOT / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "digits.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for suffix in ("png", "svg"):
        shutil.copy(folder / "figures" / f"pareto.{suffix}", docs / f"digits_front.{suffix}")
    readme.write("digits", table(data))
    print(table(data))
    rival, difference, _ = compare(data)
    print(f"searched against {rival}, difference of mean scores in points: {100 * difference:.2f}")
    return 0


if __name__ == "__main__":
    run(main)
