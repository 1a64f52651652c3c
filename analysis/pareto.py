"""Accuracy against inference cost: python -m analysis.pareto --study NAME --tracking-uri URI --out FOLDER

Writes pareto.png, pareto.svg and pareto.csv: the published regimes by name, and the front of the searched ones.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.runs import FinishedTrial, finished_trials
from mixtune.cli import Parser, parse_args, run, short
from mixtune.errors import InputError
from mixtune.training.curve import cost_range, front, hypervolume

# Okabe and Ito's colours, told apart by colour-blind readers; black is kept for the searched front.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "v", "P", "X", "d")


def draw(uri: str, study: str, folder: Path) -> list[Path]:
    """Read the study from MLflow and write figure and table into ``folder``; returns their paths."""
    trials = finished_trials(uri, study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "pareto.csv"
        _write_csv(table, trials)
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written to ({err.strerror}); name another folder") from None
    return [*_figure(trials, study, folder), table]


def searched_front(trials: Sequence[FinishedTrial]) -> list[tuple[FinishedTrial, int]]:
    """The non-dominated (trial, size) pairs of the searched regimes, cheapest first."""
    pairs = [(t, p) for t in trials if t.searched for p in t.curve.points]
    kept = front([p.gmacs for _, p in pairs], [p.top1 for _, p in pairs])
    return [(pairs[i][0], pairs[i][1].S) for i in kept]


def _write_csv(path: Path, trials: Sequence[FinishedTrial]) -> None:
    on_front = {(t.number, S) for t, S in searched_front(trials)}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "family", "S", "gmacs", "top1", "searched_front", "hypervolume", "regime"])
        for t in trials:
            costs = [p.gmacs for p in t.curve.points]
            volume = hypervolume(costs, [p.top1 for p in t.curve.points], *cost_range(costs))
            for p in t.curve.points:
                row = [t.number, t.family, p.S, p.gmacs, p.top1, (t.number, p.S) in on_front, volume, t.regime]
                writer.writerow(row)


def _figure(trials: Sequence[FinishedTrial], study: str, folder: Path) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style = {"font.size": 8, "axes.spines.right": False, "svg.fonttype": "none", "axes.linewidth": 0.6}
    with mpl.rc_context(style):
        figure, axes = plt.subplots(figsize=(3.5, 3.4), layout="constrained")
        published = [t for t in trials if not t.searched]
        searched = [t for t in trials if t.searched]
        for t in searched:
            axes.plot(*_xy(t), ".", color="0.72", ms=4, zorder=1)
        for i, t in enumerate(published):
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            axes.plot(*_xy(t), color=colour, marker=marker, ms=4, lw=1, label=t.family, zorder=2)
        if searched:
            pairs = searched_front(trials)
            points = [t.curve.at(S) for t, S in pairs]
            axes.plot(
                [p.gmacs for p in points],
                [100 * p.top1 for p in points],
                color="black",
                marker="D",
                ms=4.5,
                mfc="white",
                lw=1.8,
                label="front of the searched",
                zorder=3,
            )
            axes.plot([], [], ".", color="0.72", ms=4, label=f"searched ({len(searched)} trials)")
        _axes(axes, trials)
        axes.set_title(f"{study}: one network per regime, at every size", fontsize=8, loc="left")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=7, handlelength=1.6, columnspacing=1)
        paths = [folder / "pareto.png", folder / "pareto.svg"]
        figure.savefig(paths[0], dpi=300)
        figure.savefig(paths[1])
        plt.close(figure)
    return paths


def _axes(axes: Any, trials: Sequence[FinishedTrial]) -> None:
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    costs = {p.S: p.gmacs for t in trials for p in t.curve.points}
    axes.set_xscale("log")
    axes.set_xticks(list(costs.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    axes.set_xlabel("inference cost, GMACs per image (log scale)")
    axes.set_ylabel("top-1 accuracy on held-out images, %")
    top = axes.secondary_xaxis("top")
    top.set_xticks(list(costs.values()), [str(S) for S in costs])
    top.xaxis.set_minor_locator(NullLocator())
    top.set_xlabel("inference size, px")
    axes.grid(axis="y", lw=0.4, color="0.9")


def _xy(trial: FinishedTrial) -> tuple[list[float], list[float]]:
    return [p.gmacs for p in trial.curve.points], [100 * p.top1 for p in trial.curve.points]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.pareto", __doc__.split("\n")[0])
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument(
        "--tracking-uri", required=True, metavar="URI", help="MLflow store, e.g. sqlite:///studies/X/mlflow.db"
    )
    p.add_argument("--out", required=True, metavar="FOLDER", help="where the figures go")
    args = parse_args(p, argv)
    for path in draw(args.tracking_uri, args.study, Path(args.out)):
        print(short(path))
    return 0


if __name__ == "__main__":
    run(main)
