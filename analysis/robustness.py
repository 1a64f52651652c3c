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
from mixtune.cli import run_command
from mixtune.errors import InputError
from mixtune.study.statistics import mean_sd

PREFIX = "corruption/"
CALIBRATION = "ece"  # the metric of calibration error, where a task has it


def runs_with_corruptions(study: StudyRuns, trial: FinishedTrial) -> list[FinishedTrial]:
    """Return the runs of a trial's regime that were evaluated on corrupted images: repeated runs and the trial."""
    return [r for r in (*study.repeats_of(trial), trial) if any(m.startswith(PREFIX) for m in r.more)]


def shared_corruptions(runs: Sequence[FinishedTrial]) -> list[str]:
    """Return the corruptions that all of the runs were evaluated under."""
    measured = [{m.removeprefix(PREFIX) for m in r.more if m.startswith(PREFIX)} for r in runs]
    return sorted(set.intersection(*measured)) if measured else []


def metric_under_corruption(runs: Sequence[FinishedTrial], kind: str) -> tuple[float, float | None]:
    """Return the primary metric under a corruption: mean and deviation over runs, each at its best size for clean
    images.
    """
    values = []
    for r in runs:
        by_size, clean = r.more[PREFIX + kind], dict(zip(r.curve.sizes, r.curve.qualities, strict=True))
        values.append(by_size[max(by_size, key=lambda S, clean=clean: clean.get(S, 0.0))])  # type: ignore[misc]
    return mean_sd(values)


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the figure and its table; return the files and the lines to print.

    Raises InputError where there is nothing to draw: the task measures no calibration error, and nobody corruptions.
    """
    calibrated, shown = CALIBRATION in study.metrics, study.shown
    if calibrated:
        shown = sorted(shown, key=lambda t: statistics.fmean(t.curve.by_size(CALIBRATION).values()))
    corrupted = {t.number: runs_with_corruptions(study, t) for t in shown}
    kinds = shared_corruptions([r for runs in corrupted.values() for r in runs])
    measure = f"python -m analysis.measure --study {study.name}"
    if not (calibrated or kinds):
        raise InputError(f"--study {study.name}: nothing was measured on corrupted images yet: {measure}")
    with style.figure(0.85 + 1.9 * (calibrated + bool(kinds))) as figure:
        panels = list(figure.subplots(calibrated + bool(kinds), 1, squeeze=False)[:, 0])
        if calibrated:
            _calibration(panels[0], study, shown)
        if kinds:
            _corruptions(panels[-1], study, shown, corrupted, kinds)
        style.figure_title(
            figure, f"{study.name}: " + ("how far confidence is from accuracy" * calibrated or "robustness")
        )
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            handlelength=1.5,
            columnspacing=0.9,
        )
        paths = style.save_figure(figure, folder, "robustness", _rows(study, shown, corrupted, kinds))
    return paths, [] if kinds else [f"{study.metrics.noun} on corrupted images was not measured yet: {measure}"]


def _calibration(axes: Any, study: StudyRuns, shown: Sequence[FinishedTrial]) -> None:
    """Draw calibration error against test size, a line for each trial."""
    metric = study.metrics[CALIBRATION]
    for index, t in enumerate(shown):
        line_style = style.line_style(t.family, index)
        x, y = t.curve.sizes, [metric.scale * value for value in t.curve.by_size(CALIBRATION).values()]
        if len(study.repeats_of(t)) > 1:
            seeds = study.over_seeds(t, CALIBRATION)
            x, y = tuple(seeds), [metric.scale * m for m, _ in seeds.values()]
            style.error_bars(axes, x, y, [metric.scale * (d or 0) for _, d in seeds.values()], line_style.colour)
        wide = {"lw": 1.6, "mfc": "white", "zorder": 4} if t.searched else {"lw": 1.0, "zorder": 3}
        marks = {"color": line_style.colour, "marker": line_style.marker, "label": line_style.label}
        axes.plot(x, y, ms=4, **marks, **wide)
    style.size_axis(axes, sorted({S for t in shown for S in t.curve.sizes}))
    axes.set_ylabel(metric.axis)
    axes.set_ylim(bottom=0)
    style.grid(axes)


def _corruptions(
    axes: Any,
    study: StudyRuns,
    shown: Sequence[FinishedTrial],
    corrupted: Mapping[int, list[FinishedTrial]],
    kinds: Sequence[str],
) -> None:
    """Draw the primary metric under each corruption, a mark for each trial."""
    primary, columns = study.metrics.primary, range(len(kinds))
    for index, t in enumerate(shown):
        line_style = style.line_style(t.family, index)
        if corrupted[t.number]:
            both = [metric_under_corruption(corrupted[t.number], kind) for kind in kinds]
            heights = [primary.scale * m for m, _ in both]
            style.error_bars(axes, columns, heights, [primary.scale * (d or 0) for _, d in both], line_style.colour)
            marks = {"color": line_style.colour, "label": line_style.label, "mfc": "white" if t.searched else None}
            axes.plot(columns, heights, line_style.marker, ms=4.5, **marks)
    axes.set_xticks(columns, [k.replace("_", " ") for k in kinds], rotation=30, ha="right")
    axes.set_ylabel(f"corrupted: {primary.axis}")
    style.grid(axes)


def _rows(
    study: StudyRuns, shown: Sequence[FinishedTrial], corrupted: Mapping[int, list[FinishedTrial]], kinds: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    names = [study.metrics.primary.name, *(metric.name for metric in study.metrics if metric.name == CALIBRATION)]
    for t in shown:
        repeats, seeds = study.repeats_of(t), study.over_seeds(t, names[-1])
        for p in t.curve.points:
            row: dict[str, Any] = {"trial": t.number, "family": t.family, "S": p.S}
            row |= {name: p.metrics[name] for name in names}
            mean, deviation = seeds.get(p.S, (None, None))
            row |= {"seeds": len(repeats), f"mean_{names[-1]}": mean, "deviation": deviation}
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
    run_command(main)
