"""Draw the primary metric by test size, and the sizes each regime trained on: python -m analysis.sizes --study NAME

The upper panel has a line for each published regime and for the best searched one. The lower panel has a row for each,
which shades the sizes it trained on by their share of the training compute (its training support).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns
from mixtune.cli import run_command

ROW = 0.135  # inches of a row of the lower panel


def draw_study(study: StudyRuns, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the figure and its table: the primary metric by regime and test size, and the share of compute there."""
    shown = sorted(study.shown, key=lambda t: -study.score.of(t.curve))
    sizes = sorted({S for t in shown for S in (*t.curve.sizes, *study.compute_shares(t))})
    with style.figure(2.35 + ROW * len(shown)) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.0, ROW * len(shown)])
        for row, t in enumerate(shown):
            line_style = style.line_style(t.family, row)
            _line(above, study, t, line_style)
            _support(below, t, study.compute_shares(t), row, line_style, sizes)
        above.set_ylabel(study.metrics.primary.axis)
        style.figure_title(figure, f"{study.name}: {study.metrics.noun} away from the training sizes")
        above.tick_params(labelbottom=False, length=0)
        style.grid(above)
        style.size_axis(below, sizes)
        below.set_xlabel("test image size, px\nbars: sizes trained on (darker: more)")
        below.set_ylim(len(shown) - 0.4, -0.6)
        below.set_yticks(range(len(shown)), [style.line_style(t.family).label for t in shown])
        below.tick_params(axis="y", length=0)
        for side in ("left", "bottom"):
            below.spines[side].set_visible(False)
        return style.save_figure(figure, folder, "sizes", _rows(study, shown, sizes)), []


def _line(axes: Any, study: StudyRuns, trial: FinishedTrial, line_style: style.LineStyle) -> None:
    scale = trial.curve.primary.scale
    x, y = trial.curve.sizes, [scale * value for value in trial.curve.by_size().values()]
    wide = {"lw": 1.6, "zorder": 4, "mfc": "white"} if trial.searched else {"lw": 1.0, "zorder": 3}
    if len(study.repeats_of(trial)) > 1:  # the mean over several seeds, in place of the search's one run
        seeds = study.over_seeds(trial)
        x, y = tuple(seeds), [scale * m for m, _ in seeds.values()]
        style.error_bars(axes, x, y, [scale * (d or 0) for _, d in seeds.values()], line_style.colour)
    axes.plot(x, y, color=line_style.colour, marker=line_style.marker, ms=4, label=line_style.label, **wide)


def _support(
    axes: Any,
    trial: FinishedTrial,
    shares: Mapping[int, float],
    row: int,
    line_style: style.LineStyle,
    sizes: Sequence[int],
) -> None:
    for S, share in shares.items():
        low, high = _cell(S, sizes)
        bar = {"color": line_style.colour, "alpha": 0.12 + 0.88 * share, "linewidth": 0}
        axes.barh(row, high - low, 0.78, left=low, **bar)
    x = 1.03  # the marker of the regime's line, beside its row: a legend
    axes.plot(
        x,
        row,
        line_style.marker,
        color=line_style.colour,
        ms=4,
        transform=axes.get_yaxis_transform(),
        clip_on=False,
        mfc="white" if trial.searched else line_style.colour,
    )


def _cell(S: int, sizes: Sequence[int]) -> tuple[float, float]:
    """Return the ends of a size's bar: half-way to its neighbours on the logarithmic axis."""
    i = list(sizes).index(S)
    low = math.sqrt(S * sizes[i - 1]) if i else S * math.sqrt(S / sizes[min(1, len(sizes) - 1)])
    high = math.sqrt(S * sizes[i + 1]) if i + 1 < len(sizes) else S * math.sqrt(S / sizes[max(i - 1, 0)])
    return (low, high) if low < high else (0.9 * S, 1.1 * S)


def _rows(study: StudyRuns, shown: Sequence[FinishedTrial], sizes: Sequence[int]) -> list[dict[str, Any]]:
    rows = []
    for t in shown:
        name, by_size = t.curve.primary.name, t.curve.by_size()
        repeats, both, shares = study.repeats_of(t), study.over_seeds(t), study.compute_shares(t)
        for S in sizes:
            mean, deviation = both.get(S, (None, None))
            row: dict[str, Any] = {"trial": t.number, "family": t.family, "S": S, name: by_size.get(S)}
            row |= {"training_share": shares.get(S, 0.0), "seeds": len(repeats)}
            rows.append(row | {f"mean_{name}": mean, "deviation": deviation})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    return run_on_study(
        study_parser("analysis.sizes", __doc__), argv, lambda study, folder, _: draw_study(study, folder)
    )


if __name__ == "__main__":
    run_command(main)
