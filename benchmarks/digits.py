"""The README's figure and table: python -m benchmarks.digits --study-folder studies/digits

Takes a digits study with its final (mixtune.search --final 5): the winner and the published regimes, trained on the
whole training set with several seeds and evaluated on the test set, which the search never read. Writes
docs/digits.json, the study's figure to docs/ and the table into README.md. The last line printed ends with
the difference of mean scores of the winner and the best other regime, in points.
"""

from __future__ import annotations

import json
import platform
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.study_runs import read_study
from benchmarks import readme
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import load_config
from mixtune.errors import InputError
from mixtune.runtime.environment import describe_environment
from mixtune.search.paths import default_uri
from mixtune.search.space import Space
from mixtune.study.verdict import Verdict, verdict


def measure(folder: Path) -> dict[str, Any]:
    """The final of the study in a folder. Raises InputError when it has none."""
    import torch

    study = read_study(default_uri(folder), load_config(folder / "space.yaml", Space).study)
    if study.winner is None:
        raise InputError(f"--study-folder {folder}: the study has no final; run its command again with --final 5")
    regimes: list[dict[str, Any]] = []
    for t in (t for t in study.shown if study.repeats_of(t)):
        runs = [
            {"score": study.score.of(r.curve), "top1": {str(p.S): p.metrics["top1"] for p in r.curve.points}}
            for r in study.repeats_of(t)
        ]
        regimes.append({"name": t.family, "regime": t.regime, "search_score": study.score.of(t.curve), "runs": runs})
    regimes.sort(key=lambda r: -_mean([x["score"] for x in r["runs"]]))
    return {
        "command": "make search ARGS='--final 5'",
        "commit": readme.commit(),
        "hardware": describe_environment()["cpu"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seeds": len(regimes[0]["runs"]),
        "winner": study.winner.family,
        "chosen": study.tags["mixtune.best.chosen"],
        "regimes": regimes,
    }


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def compare(data: dict[str, Any]) -> Verdict:
    """The winner against every other regime."""
    return verdict(
        data["winner"], {r["name"]: {i: x["score"] for i, x in enumerate(r["runs"])} for r in data["regimes"]}
    )


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
        name = f"**{r['name']}**" if r["name"] == data["winner"] else r["name"]
        rows.append(f"| {name} | " + " | ".join(cells) + f" | {r['regime']} |")
    notes = (
        f"Top-1 on the test set in %: mean ± standard deviation over {n} seeds, ResNet-8. Every run trains on the "
        "training set, without the images that are held back to choose batch-norm statistics (a quarter here, 2,048 at "
        "most). The score is the area under the best accuracy available at each inference cost, over the logarithm of "
        f"the cost. The winner was chosen before the test set was read. It had {data['chosen']}. On the test set, "
        f"{compare(data).sentence()}. Made by `{data['command']}`, then `python -m benchmarks.digits`, on "
        f"{data['hardware']}, torch {data['torch']}. Every run is in `docs/digits.json`."
    )
    return "\n".join([*rows, "", notes, ""])


def _spread(values: Sequence[float]) -> str:
    deviation = 100 * statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * _mean(values):.1f} ± {deviation:.1f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("benchmarks.digits", __doc__.split("\n")[0])
    p.add_argument("--study-folder", default="studies/digits", metavar="FOLDER", help="a digits study with its final")
    args = parse_args(p, argv)
    folder = Path(args.study_folder)
    data = measure(folder)
    docs = readme.ROOT / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "digits.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for suffix in ("png", "svg"):
        shutil.copy(folder / "figures" / f"pareto.{suffix}", docs / f"digits_front.{suffix}")
    readme.write("digits", table(data))
    print(table(data))
    rival = min(compare(data).against, key=lambda a: a.difference.value)
    said = f"{data['winner']} against {rival.name}, difference of mean scores in points"
    print(f"{said}: {100 * rival.difference.value:.2f}")
    return 0


if __name__ == "__main__":
    run_command(main)
