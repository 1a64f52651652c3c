"""Draw calibration error by test size, and accuracy on corrupted images: python -m analysis.robustness --study NAME

Expected calibration error has 15 bins (Guo et al. 2017). Accuracy on corrupted images is drawn where MLflow holds the
metrics curve/corruption/KIND.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns
from mixtune.cli import run
from mixtune.study.statistics import mean_sd

PREFIX = "corruption/"


def runs_with_corruptions(study: StudyRuns, trial: FinishedTrial) -> list[FinishedTrial]:
    """Return the runs of a trial's regime that were evaluated on corrupted images: repeated runs and the trial."""
    return [r for r in (*study.repeats_of(trial), trial) if any(m.startswith(PREFIX) for m in r.more)]


def shared_corruptions(runs: Sequence[FinishedTrial]) -> list[str]:
    """Return the corruptions that all of the runs were evaluated under."""
    measured = [{m.removeprefix(PREFIX) for m in r.more if m.startswith(PREFIX)} for r in runs]
    return sorted(set.intersection(*measured)) if measured else []


def metric_under_corruption(runs: Sequence[FinishedTrial], kind: str) -> tuple[float, float | None]:
    """Return the accuracy under a corruption: mean and deviation over runs, each at its best size for clean images."""
    accuracies = []
    for r in runs:
        by_size, clean = r.more[PREFIX + kind], {p.S: p.top1 for p in r.curve.points}
        accuracies.append(by_size[max(by_size, key=lambda S, clean=clean: clean.get(S, 0.0))])  # type: ignore[misc]
    return mean_sd(accuracies)


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the figure and its table; return the files and the lines to print."""
    shown = sorted(study.shown, key=lambda t: statistics.fmean(p.ece for p in t.curve.points))
    corrupted = {t.number: runs_with_corruptions(study, t) for t in shown}
    kinds = shared_corruptions([r for runs in corrupted.values() for r in runs])
    sizes = sorted({S for t in shown for S in t.curve.sizes})
    with style.figure(2.75 + (1.9 if kinds else 0)) as figure:
        panels = list(figure.subplots(2 if kinds else 1, 1, squeeze=False)[:, 0])
        for index, t in enumerate(shown):
            line_style = style.line_style(t.family, index)
            x, y = t.curve.sizes, [100 * p.ece for p in t.curve.points]
            if len(study.repeats_of(t)) > 1:
                seeds = study.over_seeds(t, "ece")
                x, y = tuple(seeds), [100 * m for m, _ in seeds.values()]
                style.error_bars(panels[0], x, y, [100 * (d or 0) for _, d in seeds.values()], line_style.colour)
            wide = {"lw": 1.6, "mfc": "white", "zorder": 4} if t.searched else {"lw": 1.0, "zorder": 3}
            marks = {"color": line_style.colour, "marker": line_style.marker, "label": line_style.label}
            panels[0].plot(x, y, ms=4, **marks, **wide)
            if kinds and corrupted[t.number]:
                both = [metric_under_corruption(corrupted[t.number], kind) for kind in kinds]
                columns, heights = range(len(kinds)), [100 * m for m, _ in both]
                style.error_bars(panels[1], columns, heights, [100 * (d or 0) for _, d in both], line_style.colour)
                colour, face = line_style.colour, wide.get("mfc")
                panels[1].plot(columns, heights, line_style.marker, color=colour, ms=4.5, mfc=face)
        style.size_axis(panels[0], sizes)
        panels[0].set_ylabel("calibration error, %")
        panels[0].set_ylim(bottom=0)
        style.figure_title(figure, f"{study.name}: how far confidence is from accuracy")
        style.grid(panels[0])
        if kinds:
            panels[1].set_xticks(range(len(kinds)), [k.replace("_", " ") for k in kinds], rotation=30, ha="right")
            panels[1].set_ylabel("top-1 when corrupted, %")
            style.grid(panels[1])
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            handlelength=1.5,
            columnspacing=0.9,
        )
        paths = style.save_figure(figure, folder, "robustness", _rows(study, shown, corrupted, kinds))
    return paths, [] if kinds else [
        f"accuracy on corrupted images was not measured yet: python -m analysis.measure --study {study.name}"
    ]


def _rows(
    study: StudyRuns, shown: Sequence[FinishedTrial], corrupted: Mapping[int, list[FinishedTrial]], kinds: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for t in shown:
        repeats, seeds = study.repeats_of(t), study.over_seeds(t, "ece")
        for p in t.curve.points:
            row: dict[str, Any] = {"trial": t.number, "family": t.family, "S": p.S, "top1": p.top1, "ece": p.ece}
            mean, deviation = seeds.get(p.S, (None, None))
            row |= {"seeds": len(repeats), "mean_ece": mean, "deviation": deviation}
            for kind in kinds:
                values = [r.more[PREFIX + kind][p.S] for r in corrupted[t.number] if p.S in r.more[PREFIX + kind]]
                row[PREFIX + kind] = statistics.fmean(values) if values else None
            rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return run_on_study(
        study_parser("analysis.robustness", __doc__), argv, lambda study, folder, _: draw_study(study, folder)
    )


if __name__ == "__main__":
    run(main)
