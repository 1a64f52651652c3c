"""Accuracy against test size, and what each regime trained on: python -m analysis.sizes --study NAME

One line per published regime and one for the best searched. Below, a row per regime shades the sizes it trained on by
their share of the compute: its training support.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command import parser, perform
from analysis.finished import FinishedTrial
from analysis.runs import StudyRuns
from mixtune.cli import run

ROW = 0.135  # inches of a row of the lower panel


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """The figure and its table: top-1 by regime and test size, with the share of the training compute spent there."""
    shown = sorted(study.shown, key=lambda t: -study.score.of(t.curve))
    sizes = sorted({S for t in shown for S in (*t.curve.sizes, *study.shares(t))})
    with style.figure(2.35 + ROW * len(shown)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, ROW * len(shown)])
        for place, t in enumerate(shown):
            look = style.look(t.family, place)
            _line(above, study, t, look)
            _support(below, t, study.shares(t), place, look, sizes)
        above.set_ylabel("top-1 accuracy, %")
        style.title(figure, f"{study.name}: accuracy away from the training sizes")
        above.tick_params(labelbottom=False, length=0)
        style.grid(above)
        style.at_sizes(below, sizes)
        below.set_xlabel("test image size, px\nbars: sizes trained on (darker: more)")
        below.set_ylim(len(shown) - 0.4, -0.6)
        below.set_yticks(range(len(shown)), [style.look(t.family).label for t in shown])
        below.tick_params(axis="y", length=0)
        for side in ("left", "bottom"):
            below.spines[side].set_visible(False)
        return style.write(figure, folder, "sizes", _rows(study, shown, sizes)), []


def _line(axes: Any, study: StudyRuns, trial: FinishedTrial, look: style.Look) -> None:
    x, y = trial.curve.sizes, [100 * p.top1 for p in trial.curve.points]
    wide = {"lw": 1.6, "zorder": 4, "mfc": "white"} if trial.searched else {"lw": 1.0, "zorder": 3}
    if len(study.repeats_of(trial)) > 1:  # the mean of several seeds says more than the search's one run
        both = study.over_seeds(trial)
        x, y = tuple(both), [100 * m for m, _ in both.values()]
        style.whiskers(axes, x, y, [100 * (d or 0) for _, d in both.values()], look.colour)
    axes.plot(x, y, color=look.colour, marker=look.marker, ms=4, label=look.label, **wide)


def _support(
    axes: Any, trial: FinishedTrial, shares: Mapping[int, float], row: int, look: style.Look, sizes: Sequence[int]
) -> None:
    for S, share in shares.items():
        low, high = _cell(S, sizes)
        bar = {"color": look.colour, "alpha": 0.12 + 0.88 * share, "linewidth": 0}
        axes.barh(row, high - low, 0.78, left=low, **bar)
    x = 1.03  # the line's marker beside its row makes the panel the legend
    axes.plot(
        x,
        row,
        look.marker,
        color=look.colour,
        ms=4,
        transform=axes.get_yaxis_transform(),
        clip_on=False,
        mfc="white" if trial.searched else look.colour,
    )


def _cell(S: int, sizes: Sequence[int]) -> tuple[float, float]:
    """From half-way (on the logarithmic axis) to the next smaller size to half-way to the next larger one."""
    i = list(sizes).index(S)
    low = math.sqrt(S * sizes[i - 1]) if i else S * math.sqrt(S / sizes[min(1, len(sizes) - 1)])
    high = math.sqrt(S * sizes[i + 1]) if i + 1 < len(sizes) else S * math.sqrt(S / sizes[max(i - 1, 0)])
    return (low, high) if low < high else (0.9 * S, 1.1 * S)


def _rows(study: StudyRuns, shown: Sequence[FinishedTrial], sizes: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for t in shown:
        tops = {p.S: p.top1 for p in t.curve.points}
        repeats, both, shares = study.repeats_of(t), study.over_seeds(t), study.shares(t)
        for S in sizes:
            mean, deviation = both.get(S, (None, None))
            row: dict[str, Any] = {"trial": t.number, "family": t.family, "S": S, "top1": tops.get(S)}
            row |= {"training_share": shares.get(S, 0.0), "seeds": len(repeats)}
            rows.append(row | {"mean_top1": mean, "deviation": deviation})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return perform(parser("analysis.sizes", __doc__), argv, lambda study, folder, _: draw_study(study, folder))


if __name__ == "__main__":
    run(main)
