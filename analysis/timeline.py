"""Draw size regimes side by side: image size over the training budget, with batch size and copies.

For a study: python -m analysis.timeline --study NAME. For regime files: python -m mixtune.show FILE...

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixtune.errors import InputError
from mixtune.regime import Regime

if TYPE_CHECKING:
    from analysis.study_runs import StudyRuns

WIDTH, HEIGHT = 1.75, 1.65  # inches of a panel
HAIRLINE = 0.05  # least thickness of a bar, as a share of the gap between sizes: rare shapes stay visible


def draw_timelines(
    regimes: Sequence[Regime], stem: Path, captions: Sequence[str] | None = None, columns: int = 6
) -> list[Path]:
    """Draw one panel per regime, save STEM.png and STEM.svg and return their paths.

    A bar is one batch shape in one phase. It spans the phase's share of the compute, lies at its image size, and is as
    thick as its share of the phase's compute, so its area is compute; its colour is D. B (and D) stand at the right.
    ``captions``: a line below each title. Raises InputError without matplotlib or where the files cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("figures need matplotlib, which is not installed here; use --no-figure") from None
    columns = min(columns, len(regimes))
    rows = math.ceil(len(regimes) / columns)
    bases = [r.base.S for r in regimes]  # regimes of one base share an axis of sizes
    sizes = {base: sorted({S for r in regimes if base == r.base.S for S in r.sizes}) for base in bases}
    colours = _colours(sorted({s.D for r in regimes for s in r.shapes}))
    style = {"font.size": 6.5, "font.family": "DejaVu Sans", "axes.linewidth": 0.5, "svg.hashsalt": "mixtune"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(WIDTH * columns + 0.6, HEIGHT * rows + 0.75), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for i, regime in enumerate(regimes):
            _panel(panels[i], regime, sizes[bases[i]], colours)
            panels[i].set_title(regime.name or f"regime {i + 1}", fontsize=7, pad=11 if captions else 4)
            if captions:
                panels[i].text(0.5, 1.03, captions[i], ha="center", transform=panels[i].transAxes, color="0.35")
            same_as_left = i % columns > 0 and bases[i] == bases[i - 1]
            panels[i].tick_params(labelleft=not same_as_left, labelbottom=i + columns >= len(regimes))
        for spare in panels[len(regimes) :]:
            spare.set_axis_off()
        figure.supxlabel("share of the training compute", fontsize=7.5)
        figure.supylabel("image size S", fontsize=7.5)
        if len(colours) > 1:
            _legend(figure, colours)
        return [_saved(figure, stem.with_name(stem.name + suffix)) for suffix in (".png", ".svg")]


def _panel(panel: Any, regime: Regime, sizes: Sequence[int], colours: dict[int, Any]) -> None:
    gap = min((b - a for a, b in pairwise(sizes)), default=32)
    start = 0.0
    for phase, width in zip(regime.phases, regime.shares_of(lambda s: s.pixels), strict=True):
        for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
            thick = gap * max(HAIRLINE, 0.92 * p * shape.pixels / phase.mixture.pixels)
            panel.broken_barh(
                [(start, width)], (shape.S - thick / 2, thick), color=colours[shape.D], linewidth=0, snap=False
            )
        start += width
        if start < 0.999:
            panel.axvline(start, color="0.8", linewidth=0.4, zorder=0)
    panel.set_xlim(0, 1)
    panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panel.set_ylim(sizes[0] - 0.75 * gap, sizes[-1] + 0.75 * gap)
    panel.set_yticks(sizes)
    panel.tick_params(length=2, width=0.5, pad=2)
    panel.grid(axis="y", color="0.93", linewidth=0.5, zorder=0)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.annotate("B × D", (1, 1), (3, 0), "axes fraction", "offset points", color="0.35", va="center", fontsize=5.5)
    for S in regime.sizes:
        batches = ", ".join(f"{s.B} × {s.D}" if s.D > 1 else str(s.B) for s in regime.shapes if s.S == S)
        panel.annotate(batches, (1, S), (3, 0), textcoords="offset points", va="center", annotation_clip=False)


def _colours(copies: Sequence[int]) -> dict[int, Any]:
    """Return a colour per number of copies from viridis, whose order colour-blind readers see, also in grey."""
    from matplotlib import colormaps

    # The lightest colours are left out: they are too close to white.
    return {D: colormaps["viridis"](0.22 + 0.68 * i / max(1, len(copies) - 1)) for i, D in enumerate(copies)}


def _legend(figure: Any, colours: dict[int, Any]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=colour, label=f"D = {D}") for D, colour in colours.items()]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches), frameon=False, fontsize=7.5)


def _saved(figure: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a date, the same regimes give the same file.
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else {})
    except OSError as err:
        raise InputError(f"{path}: cannot be written ({err.strerror})") from None
    return path


def draw_study(study: StudyRuns, folder: Path, columns: int = 2) -> tuple[list[Path], list[str]]:
    """Write figure and table of a study's published regimes and its best searched one; return the files."""
    from analysis.style import label

    shown = study.shown
    titles = [label(t.family) + (f" #{t.number}" if t.searched else "") for t in shown]
    regimes = [replace(study.regime(t), name=title) for t, title in zip(shown, titles, strict=True)]
    captions = [f"{100 * study.score.of(t.curve):.2f} % in the search" for t in shown]
    stem = folder / "timeline"
    paths = draw_timelines(regimes, stem, captions, columns)
    table = stem.with_suffix(".csv")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "family", "phase", "compute_share", "S", "B", "D", "p_of_steps"])
        for t, regime in zip(shown, regimes, strict=True):
            for i, phase in enumerate(regime.phases, start=1):
                for s, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
                    writer.writerow([t.number, t.family, i, phase.share, s.S, s.B, s.D, p])
    return [*paths, table], []


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    from analysis.command_line import run_on_study, study_parser

    p = study_parser(
        "analysis.timeline", "What each regime does over the budget: python -m analysis.timeline --study NAME"
    )
    return run_on_study(p, argv, lambda study, folder, _: draw_study(study, folder))


if __name__ == "__main__":
    from mixtune.cli import run_command

    run_command(main)
