"""How far confidence and accuracy hold away from the training sizes: python -m analysis.robustness --study NAME

Expected calibration error (15 bins; Guo et al. 2017) against test size, one line per regime; and, where the study
measured them (metrics curve/corruption/KIND by size), top-1 under common corruptions.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command import parser, perform
from analysis.finished import FinishedTrial
from analysis.runs import StudyRuns
from mixtune.cli import run
from mixtune.study.statistics import mean_sd

PREFIX = "corruption/"


def measured(study: StudyRuns, trial: FinishedTrial) -> list[FinishedTrial]:
    """The runs of a trial's regime that were tried on corrupted images: its repeated runs, or the trial itself."""
    return [r for r in (*study.repeats_of(trial), trial) if any(m.startswith(PREFIX) for m in r.more)]


def kinds_of(runs: Sequence[FinishedTrial]) -> list[str]:
    """The corruptions that every one of the runs was measured under."""
    known = [{m.removeprefix(PREFIX) for m in r.more if m.startswith(PREFIX)} for r in runs]
    return sorted(set.intersection(*known)) if known else []


def corrupted(runs: Sequence[FinishedTrial], kind: str) -> tuple[float, float | None]:
    """Top-1 under a corruption, mean and deviation over runs, each at its size that is best for clean images."""
    found = []
    for r in runs:
        by_size, clean = r.more[PREFIX + kind], {p.S: p.top1 for p in r.curve.points}
        found.append(by_size[max(by_size, key=lambda S, clean=clean: clean.get(S, 0.0))])  # type: ignore[misc]
    return mean_sd(found)


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """The figure and its table."""
    shown = sorted(study.shown, key=lambda t: statistics.fmean(p.ece for p in t.curve.points))
    tried = {t.number: measured(study, t) for t in shown}
    kinds = kinds_of([r for runs in tried.values() for r in runs])
    sizes = sorted({S for t in shown for S in t.curve.sizes})
    with style.figure(2.75 + (1.9 if kinds else 0)) as figure:
        panels = list(figure.subplots(2 if kinds else 1, 1, squeeze=False)[:, 0])
        for place, t in enumerate(shown):
            look = style.look(t.family, place)
            x, y = t.curve.sizes, [100 * p.ece for p in t.curve.points]
            if len(study.repeats_of(t)) > 1:
                seeds = study.over_seeds(t, "ece")
                x, y = tuple(seeds), [100 * m for m, _ in seeds.values()]
                style.whiskers(panels[0], x, y, [100 * (d or 0) for _, d in seeds.values()], look.colour)
            wide = {"lw": 1.6, "mfc": "white", "zorder": 4} if t.searched else {"lw": 1.0, "zorder": 3}
            panels[0].plot(x, y, color=look.colour, marker=look.marker, ms=4, label=look.label, **wide)
            if kinds and tried[t.number]:
                both = [corrupted(tried[t.number], kind) for kind in kinds]
                at, heights = range(len(kinds)), [100 * m for m, _ in both]
                style.whiskers(panels[1], at, heights, [100 * (d or 0) for _, d in both], look.colour)
                panels[1].plot(at, heights, look.marker, color=look.colour, ms=4.5, mfc=wide.get("mfc"))
        style.at_sizes(panels[0], sizes)
        panels[0].set_ylabel("calibration error, %")
        panels[0].set_ylim(bottom=0)
        style.title(figure, f"{study.name}: how far confidence is from accuracy")
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
        paths = style.write(figure, folder, "robustness", _rows(study, shown, tried, kinds))
    return paths, [] if kinds else [
        f"accuracy on corrupted images was not measured yet: python -m analysis.measure --study {study.name}"
    ]


def _rows(
    study: StudyRuns, shown: Sequence[FinishedTrial], tried: Mapping[int, list[FinishedTrial]], kinds: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for t in shown:
        repeats, seeds = study.repeats_of(t), study.over_seeds(t, "ece")
        for p in t.curve.points:
            row: dict[str, Any] = {"trial": t.number, "family": t.family, "S": p.S, "top1": p.top1, "ece": p.ece}
            mean, deviation = seeds.get(p.S, (None, None))
            row |= {"seeds": len(repeats), "mean_ece": mean, "deviation": deviation}
            for kind in kinds:
                found = [r.more[PREFIX + kind][p.S] for r in tried[t.number] if p.S in r.more[PREFIX + kind]]
                row[PREFIX + kind] = statistics.fmean(found) if found else None
            rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return perform(parser("analysis.robustness", __doc__), argv, lambda study, folder, _: draw_study(study, folder))


if __name__ == "__main__":
    run(main)
