"""Draw ENTR's efficiency score sqrt(A / T): python -m analysis.efficiency --study NAME

A is top-1, or the task's own primary metric (0 to 1), at the regime's best test size. Wanger & Frohn call T "inference
time" where they speak of training; both readings are here: --time training (minutes of the run, evaluation included) or
inference (GMACs of an image).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns, trial_names
from mixtune.cli import run_command
from mixtune.errors import InputError
from mixtune.study.statistics import mean_sd

TIMES = {"training": "minutes of training and evaluation", "inference": "GMACs of one image at that size"}


def efficiency(trial: FinishedTrial, time: str) -> tuple[float, float, float, int]:
    """Return (sqrt(A / T), A, T, S): A is measured at test size S, T in the units of ``TIMES``.

    With ``time`` "training" S is the most accurate size, with "inference" the size of the best score. Raises InputError
    when the run's seconds are not known.
    """
    points = list(zip(trial.curve.qualities, trial.curve.points, strict=True))
    if time == "training":
        if not trial.seconds:
            raise InputError(f"--time training: trial {trial.number} has no metric 'seconds' in MLflow; use inference")
        A, p = max(points, key=lambda pair: pair[0])
        T = trial.seconds / 60
    else:
        A, p = max(points, key=lambda pair: pair[0] / pair[1].gmacs)
        T = p.gmacs
    return math.sqrt(A / T), A, T, p.S


def draw_study(study: StudyRuns, folder: Path, time: str = "training") -> tuple[list[Path], list[str]]:
    """Write the figure and its table, the most efficient regime first; return the files and the lines to print."""
    untimed = [t for t in study.shown if time == "training" and t.pruned]  # the final evaluation records no seconds
    shown = [t for t in study.shown if t not in untimed]
    rows: list[dict[str, Any]] = []
    for t in shown:
        score, A, T, S = efficiency(t, time)
        values = [efficiency(r, time)[0] for r in study.repeats_of(t) if r.seconds or time == "inference"]
        mean, deviation = mean_sd(values) if values else (None, None)
        row = {"trial": t.number, "family": t.family, "efficiency": score, "A": A, "T": T, "S": S, "T_is": TIMES[time]}
        rows.append(row | {"seeds": len(values), "mean_efficiency": mean, "deviation": deviation})
    rows.sort(key=lambda r: -r["efficiency"])
    with style.figure(0.95 + 0.22 * len(rows)) as figure:
        axes = figure.subplots()
        for i, r in enumerate(rows):
            line_style = style.line_style(r["family"], i)
            if r["deviation"] is not None:
                style.error_bars(axes, r["mean_efficiency"], i, r["deviation"], line_style.colour, horizontal=True)
            face = "white" if r["family"] == "searched" else line_style.colour
            axes.plot(r["efficiency"], i, line_style.marker, color=line_style.colour, mfc=face, ms=5)
            note = f"{100 * r['A']:.1f} % at {r['S']} px"
            axes.annotate(note, (1.01, i), xycoords=axes.get_yaxis_transform(), va="center", fontsize=6.5)
        axes.set_yticks(range(len(rows)), [style.line_style(r["family"]).label for r in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.08)
        axes.set_xlabel(f"√(A / T), more is better\nA: {study.metrics.primary.label} (0 to 1), T: {TIMES[time]}")
        style.figure_title(figure, f"{study.name}: ENTR's efficiency")
        style.grid(axes, "both")
        paths = style.save_figure(figure, folder, "efficiency", rows)
    best = next(t for t in shown if t.number == rows[0]["trial"])
    lines = [f"best: {trial_names([best])[0]}; T is {TIMES[time]}"]
    if untimed:
        lines.append(f"left out: {', '.join(trial_names(untimed))}, which the search pruned: a final keeps no times")
    if time == "training" and study.settings.get("budget.spend") == "compute":
        lines.append("equal compute for all: T differs by how well a machine handles small images, and by noise")
    return paths, lines


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = study_parser("analysis.efficiency", __doc__)
    p.add_argument("--time", choices=sorted(TIMES), default="training", help="what T is (default training)")
    return run_on_study(p, argv, lambda study, folder, args: draw_study(study, folder, args.time))


if __name__ == "__main__":
    run_command(main)
