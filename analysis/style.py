"""The common style of the figures: colours, markers, names, axes; and saving a figure with its table.

The colours are Okabe and Ito's, which colour-blind readers can distinguish. A regime has a marker of its own as well.
"""

from __future__ import annotations

import contextlib
import csv
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixtune.errors import InputError

WIDTH = 3.5  # inches: one column of a paper
FADED = "0.78"  # grey of what is in the background

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#5E4FA2")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d", "<")
# A published regime has the same colour and marker in every figure; regimes beyond these reuse them in turn.
_KNOWN = ("fixed", "mixsize_b", "mixsize_d", "multiscale", "gradual", "stepwise", "mixsize_bd")
_NAMES = {
    "fixed": "fixed size",
    "mixsize_b": "MixSize B+",
    "mixsize_d": "MixSize D+",
    "mixsize_bd": "MixSize B+D+",
    "multiscale": "multi-scale VBS",
    "gradual": "ENTR gradual",
    "stepwise": "ENTR stepwise",
    "searched": "searched",
}


@dataclass(frozen=True)
class LineStyle:
    """Colour, marker and legend entry of a regime."""

    colour: str
    marker: str
    label: str


def label(family: str) -> str:
    """Return the name of a regime family in figures and reports."""
    return _NAMES.get(family, family.replace("_", " "))


def line_style(family: str, index: int = 0) -> LineStyle:
    """Return the line style of a family; unknown ones are given theirs by ``index``. Searched regimes are black."""
    if family == "searched":
        return LineStyle("black", "D", label(family))
    i = _KNOWN.index(family) if family in _KNOWN else len(_KNOWN) + index
    return LineStyle(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], label(family))


@contextlib.contextmanager
def figure(height: float, width: float = WIDTH, **options: Any) -> Iterator[Any]:
    """Yield a matplotlib figure in the common style, ``height`` by ``width`` inches.

    It is not pyplot's, so nothing needs to be closed. Raises InputError without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib, which is not installed here") from None
    style = {
        "font.size": 8,
        "font.family": "DejaVu Sans",
        "axes.labelsize": 8,
        "axes.titlesize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "mixtune",
    }
    with mpl.rc_context(style):
        yield Figure(figsize=(width, height), layout="constrained", **options)


def figure_title(figure: Any, text: str) -> None:
    """Write a title above the figure, from its left edge; long lines are wrapped at the figure's width."""
    width = int(17 * figure.get_figwidth())  # in characters of this font size
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width)]
    figure.suptitle("\n".join(lines), fontsize=7.5, x=0.01, ha="left")


def grid(axes: Any, axis: str = "y") -> None:
    """Draw light grid lines behind the data."""
    axes.grid(axis=axis, lw=0.4, color="0.9")
    axes.set_axisbelow(True)


def error_bars(axes: Any, x: Any, y: Any, errors: Any, colour: str, horizontal: bool = False, **more: Any) -> None:
    """Draw error bars without points; ``errors`` as in matplotlib's errorbar, ``more`` overrides its options."""
    options = {"fmt": "none", "ecolor": colour, "elinewidth": 0.8, "capsize": 2} | more
    axes.errorbar(x, y, **{"xerr" if horizontal else "yerr": errors}, **options)


def spaced_ticks(ticks: Sequence[tuple[int, float]], least: float = 0.075) -> list[tuple[int, float]]:
    """Return the (size, position) whose labels do not overlap: ``least`` is their distance as a share of a log axis."""
    span = math.log(ticks[-1][1] / ticks[0][1]) or 1.0
    spaced: list[tuple[int, float]] = []
    for S, position in ticks:
        if not spaced or math.log(position / spaced[-1][1]) / span >= least:
            spaced.append((S, position))
    return spaced


def size_axis(axes: Any, sizes: Sequence[int], axis_label: bool = True) -> None:
    """Make the x axis logarithmic, with a tick at every size; labels that would overlap are left out."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    shown = [S for S, _ in spaced_ticks([(S, float(S)) for S in sizes])]
    axes.set_xticks(list(sizes), [str(S) if S in shown else "" for S in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    if axis_label:
        axes.set_xlabel("test image size, px")


def save_figure(figure: Any, folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv into ``folder`` and return their paths.

    The same figure gives the same bytes. Raises InputError when the folder cannot be written to.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg", "csv")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with paths[2].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(k for row in rows for k in row)))
            writer.writeheader()
            writer.writerows(rows)
        figure.savefig(paths[0], dpi=300)
        figure.savefig(paths[1], metadata={"Date": None})
    except OSError as err:
        raise InputError(f"--out {folder}: cannot be written to ({err.strerror}); name another folder") from None
    return paths
