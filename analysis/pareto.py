"""Draw the primary metric against inference cost with its Pareto front: python -m analysis.pareto --study NAME

Published regimes are drawn by name, searched ones as grey points with their front.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import style
from analysis.command_line import run_on_study, study_parser
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns, read_study
from mixtune.cli import run_command
from mixtune.errors import InputError
from mixtune.evaluation.curve import cost_range, front, hypervolume
from mixtune.evaluation.metrics import Metric

# What the cost axis can be: how many of a curve's units make one of the axis, and its name with units.
COSTS = {
    "gmacs": (1.0, "inference cost, GMACs per image"),
    "latency": (1e-3, "measured latency, ms per image"),
    "memory": (2.0**20, "peak memory, MiB"),
}


def draw_from_store(uri: str, name: str, folder: Path) -> list[Path]:
    """Read the study from MLflow, write figure and table into ``folder`` and return their paths."""
    return draw_study(read_study(uri, name), folder)[0]


def draw_study(study: StudyRuns, folder: Path, cost: str = "gmacs") -> tuple[list[Path], list[str]]:
    """Write figure and table; return the files, and a line on the hypervolume of each front.

    Where the study has a final evaluation, its mean curves on the test set are drawn, unless the cost was measured on
    the trials (latency, memory). Raises InputError for a cost that was not measured.
    """
    if cost == "gmacs":
        study = study.tested()
    points = {t.number: cost_points(t, cost) for t in study.trials}
    volumes = _hypervolumes(study, points)
    with style.figure(3.5) as figure:
        _figure(figure, study, points, volumes, cost)
        return style.save_figure(figure, folder, "pareto", _rows(study, points, cost)), [
            f"hypervolume of the front of the {kind} regimes: {100 * volume:.2f} %" for kind, volume in volumes.items()
        ]


def cost_points(trial: FinishedTrial, cost: str) -> list[tuple[int, float, float]]:
    """Return (S, cost, primary metric) of a trial's curve. Raises InputError when this cost was not measured."""
    costs = [getattr(p, cost) for p in trial.curve.points]
    if None in costs:
        raise InputError(
            f"--cost {cost}: trial {trial.number} has no metric curve/{cost} at every size in MLflow; a search "
            "does not measure it, python -m analysis.measure does"
        )
    by_size = trial.curve.by_size()
    return [(S, c / COSTS[cost][0], value) for c, (S, value) in zip(costs, by_size.items(), strict=True)]


Points = dict[int, list[tuple[int, float, float]]]  # trial -> (S, cost, metric) at every test size


def front_of(points: Points, numbers: Sequence[int], metric: Metric) -> list[tuple[int, int]]:
    """Return the non-dominated (trial, size) pairs of these trials, cheapest first."""
    pairs = [(n, *p) for n in numbers for p in points[n]]
    on_front = front([cost for _, _, cost, _ in pairs], [metric.quality(value) for *_, value in pairs])
    return [pairs[i][:2] for i in on_front]


def searched_front(trials: Sequence[FinishedTrial], cost: str = "gmacs") -> list[tuple[FinishedTrial, int]]:
    """Return the non-dominated (trial, size) pairs of the searched regimes, cheapest first."""
    searched = {t.number: t for t in trials if t.searched}
    points = {n: cost_points(t, cost) for n, t in searched.items()}
    if not searched:
        return []
    metric = next(iter(searched.values())).curve.primary
    return [(searched[n], S) for n, S in front_of(points, list(searched), metric)]


def _hypervolumes(study: StudyRuns, points: Points) -> dict[str, float]:
    """Return the hypervolume of the published and of the searched front, over the same range of costs."""
    axis = cost_range(sorted({cost for each in points.values() for _, cost, _ in each}))
    kinds = {
        "published": [t.number for t in study.trials if not t.searched],
        "searched": [t.number for t in study.trials if t.searched],
    }
    return {
        kind: _hypervolume([p for n in ns for p in points[n]], study.metrics.primary, *axis)
        for kind, ns in kinds.items()
        if ns
    }


def _hypervolume(points: Sequence[tuple[int, float, float]], metric: Metric, low: float, high: float) -> float:
    return hypervolume([c for _, c, _ in points], [metric.quality(value) for *_, value in points], low, high)


def _rows(study: StudyRuns, points: Points, cost: str) -> list[dict[str, Any]]:
    searched = [t.number for t in study.trials if t.searched]
    primary = study.metrics.primary
    on_front, on_any = set(front_of(points, searched, primary)), set(front_of(points, list(points), primary))
    rows = []
    for t in study.trials:
        costs = [c for _, c, _ in points[t.number]]
        volume = _hypervolume(points[t.number], primary, *cost_range(costs))
        repeats, both = study.repeats_of(t), study.over_seeds(t)
        for S, c, value in points[t.number]:
            mean, deviation = both.get(S, (None, None))
            rows.append(
                {
                    "trial": t.number,
                    "family": t.family,
                    "S": S,
                    cost: c,
                    primary.name: value,
                    "searched_front": (t.number, S) in on_front,
                    "front": (t.number, S) in on_any,
                    "hypervolume": volume,
                    "seeds": len(repeats),
                    f"mean_{primary.name}": mean,
                    "deviation": deviation,
                    "regime": t.regime,
                }
            )
    return rows


def _figure(figure: Any, study: StudyRuns, points: Points, volumes: dict[str, float], cost: str) -> None:
    axes = figure.subplots()
    primary = study.metrics.primary
    on_any = set(front_of(points, list(points), primary))
    searched = [t for t in study.trials if t.searched]
    for t in searched:
        each = points[t.number]
        axes.plot(
            [c for _, c, _ in each], [primary.scale * a for *_, a in each], ".", color=style.FADED, ms=3.5, zorder=1
        )
    others = [t for t in study.trials if not t.searched]
    for i, t in enumerate(others):
        line_style = style.line_style(t.family, i)
        each = points[t.number]
        x, y = [c for _, c, _ in each], [primary.scale * a for *_, a in each]
        axes.plot(x, y, color=line_style.colour, lw=0.9, alpha=0.45, zorder=2)
        for (S, *_), a, b in zip(each, x, y, strict=True):  # points on the front stand out, dominated ones are faded
            size, alpha = (4.5, 1.0) if (t.number, S) in on_any else (3.5, 0.45)
            axes.plot(a, b, line_style.marker, color=line_style.colour, ms=size, alpha=alpha, zorder=3)
        axes.plot([], [], color=line_style.colour, marker=line_style.marker, ms=4.5, lw=0.9, label=line_style.label)
    if searched:
        best = {(t.number, S): (c, a) for t in searched for S, c, a in points[t.number]}
        line = [best[key] for key in front_of(points, [t.number for t in searched], primary)]
        x, y = [c for c, _ in line], [primary.scale * a for _, a in line]
        # A staircase, to the most expensive point: the best value at or below each cost.
        most_expensive = max(c for each in points.values() for _, c, _ in each)
        axes.plot([*x, most_expensive], [*y, y[-1]], color="black", lw=1.5, drawstyle="steps-post", zorder=3)
        axes.plot(x, y, "D", color="black", ms=4.5, mfc="white", zorder=4)
        axes.plot([], [], "D-", color="black", ms=4.5, mfc="white", lw=1.5, label="front of the searched")
        axes.plot(
            [], [], ".", color=style.FADED, ms=4, label=f"searched ({len(searched)} trial{'s' * (len(searched) > 1)})"
        )
    _error_bars(axes, study, points)
    _axes(axes, points, cost, primary.axis, study.tags.get("mixtune.latency", ""))
    percentages = ", ".join(f"{kind} {100 * v:.1f} %" for kind, v in volumes.items())
    style.figure_title(figure, f"{study.name}: one network per regime, at every size\nhypervolume: {percentages}")
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, handlelength=1.5, handletextpad=0.5, columnspacing=0.7
    )


def _error_bars(axes: Any, study: StudyRuns, points: Points) -> None:
    """Draw mean and deviation over seeds for the regimes that were trained with several."""
    seeds = {len(study.repeats_of(t)) for t in study.shown} - {0, 1}
    if seeds:
        label = f"± over {' or '.join(map(str, sorted(seeds)))} seeds"
        axes.plot([], [], "_", color="0.3", ms=6, label=label)
    for i, t in enumerate(study.shown):
        both = study.over_seeds(t)
        for S, c, _ in points[t.number]:
            mean, deviation = both.get(S, (0.0, None))
            if deviation is not None:
                colour = style.line_style(t.family, i).colour
                y, bar = study.metrics.primary.scale * mean, study.metrics.primary.scale * deviation
                style.error_bars(axes, c, y, bar, colour, elinewidth=1.0, zorder=5, fmt="_", ms=5)


def _axes(axes: Any, points: Points, cost: str, metric: str, how: str) -> None:
    from matplotlib.ticker import NullLocator

    costs = {S: c for each in points.values() for S, c, _ in each}
    small = cost == "gmacs" and max(costs.values()) < 0.1
    axes.set_xscale("log")
    ticks = style.spaced_ticks(sorted(costs.items(), key=lambda item: item[1]))
    axes.set_xticks([c for _, c in ticks], [f"{1000 * c if small else c:.3g}" for _, c in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    title = COSTS[cost][1].replace("GMACs", "million MACs") if small else COSTS[cost][1]
    where = f"\n{textwrap.fill(how, 70)}" if how and cost != "gmacs" else ""
    axes.set_xlabel(f"{title} (log scale){where}")
    axes.set_ylabel(metric)
    if cost != "memory":
        top = axes.secondary_xaxis("top")
        top.set_xticks([c for _, c in ticks], [str(S) for S, _ in ticks])
        top.xaxis.set_minor_locator(NullLocator())
        top.set_xlabel("test image size, px")
    style.grid(axes)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = study_parser("analysis.pareto", __doc__)
    p.add_argument("--cost", choices=sorted(COSTS), default="gmacs", help="the cost axis (default gmacs)")
    return run_on_study(p, argv, lambda study, folder, args: draw_study(study, folder, args.cost))


if __name__ == "__main__":
    run_command(main)
