"""The figures' common style: colours, markers, names and column width; and how figures and tables are written.

Okabe and Ito's colours are told apart by colour-blind readers, and every regime has a marker of its own beside them.
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
FADED = "0.78"

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#5E4FA2")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d", "<")
# A published regime looks the same in every figure of every study; more than these share looks in turn.
_LOOKS = ("fixed", "mixsize_b", "mixsize_d", "multiscale", "gradual", "stepwise", "mixsize_bd")
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
class Look:
    """How a regime is drawn."""

    colour: str
    marker: str
    label: str


def label(family: str) -> str:
    """What a regime family is called in figures and reports."""
    return _NAMES.get(family, family.replace("_", " "))


def look(family: str, place: int = 0) -> Look:
    """The look of a family; ``place`` tells unknown ones apart. Black is kept for what was searched."""
    if family == "searched":
        return Look("black", "D", label(family))
    i = _LOOKS.index(family) if family in _LOOKS else len(_LOOKS) + place
    return Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)], label(family))


@contextlib.contextmanager
def figure(height: float, width: float = WIDTH, **options: Any) -> Iterator[Any]:
    """A figure in the common style, ``height`` by ``width`` inches; closed by leaving it to the garbage collector.

    Raises InputError without matplotlib.
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


def title(figure: Any, text: str) -> None:
    """What a figure shows, above it and from its left edge; a long line is broken at the figure's width."""
    room = int(17 * figure.get_figwidth())  # characters of this size
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, room)]
    figure.suptitle("\n".join(lines), fontsize=7.5, x=0.01, ha="left")


def grid(axes: Any, axis: str = "y") -> None:
    """Faint lines behind the data."""
    axes.grid(axis=axis, lw=0.4, color="0.9")
    axes.set_axisbelow(True)


def whiskers(axes: Any, x: Any, y: Any, errors: Any, colour: str, horizontal: bool = False, **more: Any) -> None:
    """Error bars alone, so that what they belong to is drawn by whoever calls. ``errors`` as for matplotlib."""
    look = {"fmt": "none", "ecolor": colour, "elinewidth": 0.8, "capsize": 2} | more
    axes.errorbar(x, y, **{"xerr" if horizontal else "yerr": errors}, **look)


def apart(ticks: Sequence[tuple[int, float]], least: float = 0.075) -> list[tuple[int, float]]:
    """The (size, place) whose labels do not touch at column width: at least this share of a log axis apart."""
    span = math.log(ticks[-1][1] / ticks[0][1]) or 1.0
    kept: list[tuple[int, float]] = []
    for S, place in ticks:
        if not kept or math.log(place / kept[-1][1]) / span >= least:
            kept.append((S, place))
    return kept


def at_sizes(axes: Any, sizes: Sequence[int], axis_label: bool = True) -> None:
    """A logarithmic axis of image sizes, with a tick at every size (labels that would touch are left out)."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    shown = [S for S, _ in apart([(S, float(S)) for S in sizes])]
    axes.set_xticks(list(sizes), [str(S) if S in shown else "" for S in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    if axis_label:
        axes.set_xlabel("test image size, px")


def write(figure: Any, folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write NAME.png, NAME.svg and NAME.csv into ``folder``; returns their paths.

    The same figure gives the same files, to the byte. Raises InputError when the folder cannot be written to.
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
