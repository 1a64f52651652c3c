"""Tables of regimes for people, as text and as Markdown: each shape's part of a run.

S, B, D as in ``shapes``. Both shares are always shown: of the steps, which p counts, and of the samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixtune.regime.regime import Regime, StepCost
from mixtune.regime.schedule import Budget, Schedule
from mixtune.regime.shapes import BatchShape
from mixtune.regime.step_cost import step_cost


@dataclass(frozen=True)
class TableRow:
    """One shape in one phase of a run. Shares are of the whole run; ``cost`` is a step's, relative to the base step."""

    phase: int  # from 1
    shape: BatchShape
    step_share: float
    sample_share: float
    cost: float
    steps: int
    epochs: float
    images: int  # distinct images drawn, an epoch being one pass over the data
    views: int  # images through the network


@dataclass(frozen=True)
class RunTable:
    """A regime's steps under a budget, counted; ``compute`` is relative to the base shape for its epochs."""

    regime: Regime
    budget: Budget
    n_samples: int
    rows: tuple[TableRow, ...]
    compute: float

    @classmethod
    def of(
        cls,
        regime: Regime,
        budget: Budget,
        n_samples: int,
        cost: StepCost | Mapping[BatchShape, float] | None = None,
    ) -> RunTable:
        """Build the schedule and count the steps of every phase and shape. Raise what ``Schedule.build`` raises."""
        schedule = Schedule.build(regime, budget, n_samples, 0, cost)
        step = step_cost(cost, budget.cost)
        rows = []
        for i, index in enumerate(np.split(schedule.index, np.cumsum(schedule.phase_steps)[:-1])):
            counts = np.bincount(index, minlength=len(schedule.shapes))
            for shape in sorted(regime.phases[i].mixture.shapes):
                steps = int(counts[schedule.shapes.index(shape)])
                rows.append(
                    TableRow(
                        phase=i + 1,
                        shape=shape,
                        step_share=steps / len(schedule),
                        sample_share=steps * shape.B / schedule.samples,
                        cost=step(shape) / step(regime.base),
                        steps=steps,
                        epochs=steps * shape.B / n_samples,
                        images=steps * shape.B,
                        views=steps * shape.views,
                    )
                )
        compute = sum(r.steps * r.cost for r in rows) / (budget.epochs * n_samples / regime.base.B)
        return cls(regime, budget, n_samples, tuple(rows), compute)

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return sum(r.steps for r in self.rows)

    @property
    def images(self) -> int:
        """Distinct images drawn over the run."""
        return sum(r.images for r in self.rows)

    @property
    def epochs(self) -> float:
        """Passes over the data."""
        return self.images / self.n_samples

    @property
    def views(self) -> int:
        """Images through the network over the run."""
        return sum(r.views for r in self.rows)

    @property
    def dearest(self) -> float:
        """The most expensive step, relative to the base step: what sets the memory."""
        return max(r.cost for r in self.rows)

    @property
    def budget_line(self) -> str:
        """The budget in words."""
        kind = "equal epochs" if self.budget.spend == "epochs" else f"equal compute, in {self.budget.cost}"
        return f"{self.budget.epochs:g} epochs of {self.n_samples:,} images at {self.regime.base} ({kind})"


def to_text(table: RunTable) -> str:
    """Return the table of one regime: one line per shape and phase, and the whole run below."""
    head = f"{table.regime.name or 'regime'}: {table.budget_line}"
    lines = [head, *([table.regime.source] if table.regime.source else []), ""]
    columns = "{:>5}  {:<12} {:>7} {:>9} {:>6} {:>9} {:>8} {:>13} {:>13}"
    names = ("phase", "shape", "steps %", "samples %", "cost", "steps", "epochs", "images seen", "views")
    lines.append(columns.format(*names))
    lines += [
        columns.format(
            r.phase,
            str(r.shape),
            f"{100 * r.step_share:.1f}",
            f"{100 * r.sample_share:.1f}",
            f"{r.cost:.3f}",
            f"{r.steps:,}",
            f"{r.epochs:.2f}",
            f"{r.images:,}",
            f"{r.views:,}",
        )
        for r in table.rows
    ]
    whole = ("all", "", "100.0", "100.0", f"{table.compute:.3f}", f"{table.steps:,}", f"{table.epochs:.2f}")
    lines.append(columns.format(*whole, f"{table.images:,}", f"{table.views:,}"))
    return "\n".join(lines)


def to_markdown(tables: Sequence[RunTable]) -> str:
    """Return one row per regime, and one table per base and budget."""
    out: list[str] = []
    for line in dict.fromkeys(t.budget_line for t in tables):
        out += [
            f"{line}:",
            "",
            "| regime | source | shapes (SxB or SxBxD), then share of steps / of samples in % | phases | steps "
            "| epochs | images seen | views | compute | compute of an epoch | most expensive step |",
            "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
            *(_markdown_row(t) for t in tables if t.budget_line == line),
            "",
        ]
    return "\n".join(out).rstrip() + "\n"


def _markdown_row(t: RunTable) -> str:
    shapes = []
    for shape in t.regime.shapes:
        rows = [r for r in t.rows if r.shape == shape]
        steps, images = sum(r.step_share for r in rows), sum(r.sample_share for r in rows)
        shapes.append(f"{shape} {100 * steps:.0f}/{100 * images:.0f}")
    cells = [
        t.regime.name or "regime",
        re.split("[,;]", t.regime.source)[0],
        " · ".join(shapes),
        str(len(t.regime.phases)),
        f"{t.steps:,}",
        f"{t.epochs:.1f}",
        f"{t.images / 1e6:.1f} M",
        f"{t.views / 1e6:.1f} M",
        f"{t.compute:.2f}",
        f"{t.compute * t.budget.epochs / t.epochs:.2f}",
        f"{t.dearest:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"
