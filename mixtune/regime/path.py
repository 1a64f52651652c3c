"""SizePath: a regime said in about ten numbers: where the mixture of sizes lies, how wide it is, and when it moves.

Sizes are counted in octaves relative to the base, log2(S / base.S), so that a path means the same at 32 and at 224 px.
S, B, D as in ``shapes``.   p  share of steps, which is the share of compute where every step costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from mixtune.regime.regime import Mixture, Regime
from mixtune.regime.shapes import BatchShape

NEGLIGIBLE = 0.05  # of the largest p of a mixture: a size below this is left out, or no path would ever leave one out
SLICES = 6  # constant pieces that a moving part of a path is compiled to
GRID = 60  # points of progress at which two regimes are compared

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SizePath:
    """A mixture over sizes that moves with progress, through levels.

    At a level the share of steps at size S is proportional to exp(-((log2(S/base) - centre) / spread)^2 / 2).

    centres: one per level, in octaves above the base. spreads: one per level, in octaves, positive; a small one is a
    single size and a large one all sizes alike. lengths: one per level, shares of the budget that sum to 1. blend: the
    share of each level's length that moves, linearly, towards its neighbours, from 0 (steps) to 1 (no level rests).
    splits: how a smaller size spends what it saves at the start and at the end of the run, see ``BatchShape.resized``;
    in between it moves linearly.
    """

    centres: tuple[float, ...]
    spreads: tuple[float, ...]
    lengths: tuple[float, ...]
    blend: float = 0.0
    splits: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        n = len(self.lengths)
        if n < 1 or len(self.centres) != n or len(self.spreads) != n:
            raise ValueError(f"a path needs one centre, spread and length per level, not {self}")
        if any(not math.isfinite(x) for x in self.centres):
            raise ValueError(f"centres must be finite, not {list(self.centres)}")
        if any(not math.isfinite(x) or x <= 0 for x in self.spreads):
            raise ValueError(f"spreads must be positive, not {list(self.spreads)}")
        if any(not x >= 0 for x in self.lengths) or abs(sum(self.lengths) - 1) > 1e-9:
            raise ValueError(f"lengths must be at least 0 and sum to 1, not {list(self.lengths)}")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend must lie in [0, 1], not {self.blend!r}")
        if any(not 0 <= x <= 1 for x in self.splits):
            raise ValueError(f"splits must lie in [0, 1], not {list(self.splits)}")

    def knots(self) -> list[tuple[float, float, float]]:
        """Return (progress, centre, log2 of the spread) at the corners of the path, whose values lie on straight lines.

        Two corners at the same progress are a step.
        """
        corners: list[tuple[float, float, float]] = []
        start = 0.0
        used = [i for i, length in enumerate(self.lengths) if length > 0]
        for i in used:
            rest = self.blend * self.lengths[i] / 2
            end = start + self.lengths[i]
            level = (self.centres[i], math.log2(self.spreads[i]))
            corners += [(start + rest * (i != used[0]), *level), (end - rest * (i != used[-1]), *level)]
            start = end
        return corners

    def at(self, progress: float) -> tuple[float, float]:
        """Return the centre and the spread, both in octaves, at a share of the budget."""
        corners = self.knots()
        where = [c[0] for c in corners]
        i = int(np.searchsorted(where, progress, side="right"))
        if i == 0 or i == len(corners):
            _, centre, width = corners[min(i, len(corners) - 1)]
            return centre, 2.0**width
        (a, ca, wa), (b, cb, wb) = corners[i - 1], corners[i]
        t = (progress - a) / (b - a)
        return ca + t * (cb - ca), 2.0 ** (wa + t * (wb - wa))

    def split_at(self, progress: float) -> float:
        """Return the split at a share of the budget."""
        start, end = self.splits
        return start + progress * (end - start)

    def boundaries(self) -> list[float]:
        """Return where the compiled path may change, from 0 to 1."""
        cuts = {0.0, 1.0}
        moving_split = self.splits[0] != self.splits[1]
        for (a, *level), (b, *other) in pairwise(self.knots()):
            pieces = SLICES if level != other or moving_split else 1
            cuts |= {a + (b - a) * k / pieces for k in range(pieces + 1)}
        return sorted(cuts)

    def regime(self, base: BatchShape, sizes: Sequence[int], name: str = "", source: str = "") -> Regime:
        """Compile the path to phases over these sizes. Every step costs what a step of ``base`` does, to half an image.

        Raise ValueError when no size is given.
        """
        grid = sorted(sizes)
        if not grid:
            raise ValueError("a path needs at least one size")
        phases: list[tuple[Mixture, float]] = []
        for a, b in pairwise(self.boundaries()):
            middle = (a + b) / 2
            p = bell(grid, base.S, *self.at(middle))
            p[p < NEGLIGIBLE * p.max()] = 0.0
            mixture = Mixture.of([base.resized(S, self.split_at(middle)) for S in grid], p.tolist())
            if phases and phases[-1][0] == mixture:
                phases[-1] = (mixture, phases[-1][1] + b - a)
            elif b - a > 1e-9:
                phases.append((mixture, b - a))
        return Regime.of(base, [m for m, _ in phases], [share for _, share in phases], name, source)


def bell(sizes: Sequence[int], base: int, centre: float, spread: float) -> Floats:
    """Return the shares [n] of sizes under a bell over log2(size / base); centre and spread in octaves."""
    z = (np.log2(np.asarray(sizes, float) / base) - centre) / spread
    weights: Floats = np.exp(-0.5 * (z**2 - (z**2).min()))
    weights /= weights.sum()
    return weights


def profile(regime: Regime, sizes: Sequence[int]) -> tuple[Floats, Floats]:
    """Return how a regime spends its compute over progress: (size shares [GRID, n], mean log2 of the copies [GRID]).

    Sizes that are not on the grid count towards their two neighbours on it, by their distance in octaves. Progress and
    shares are of pixels, also where batches are fixed.
    """
    grid = np.log2(np.asarray(sorted(sizes), float))
    shares = np.cumsum([0.0, *regime.shares_of(lambda s: s.pixels)])
    rows = []
    for phase in regime.phases:
        cost = np.array([p * s.pixels for s, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True)])
        cost /= cost.sum()
        row = np.zeros(len(grid))
        for shape, share in zip(phase.mixture.shapes, cost, strict=True):
            at = float(np.interp(math.log2(shape.S), grid, np.arange(len(grid))))
            low = min(int(at), len(grid) - 1)
            row[low] += share * (1 - (at - low))
            if at > low:
                row[low + 1] += share * (at - low)
        copies = sum(c * math.log2(s.D / regime.base.D) for s, c in zip(phase.mixture.shapes, cost, strict=True))
        rows.append(np.append(row, copies))
    middles = (np.arange(GRID) + 0.5) / GRID
    which = np.clip(np.searchsorted(shares, middles, side="right") - 1, 0, len(rows) - 1)
    values = np.array(rows)[which]
    return values[:, :-1], values[:, -1]


def distance(a: Regime, b: Regime, sizes: Sequence[int]) -> tuple[float, float]:
    """Return how far two regimes are apart: (octaves of size, octaves of copies), means over progress.

    The first is the earth mover's distance between the size mixtures, so 0.2 means that at a moment of the run the
    average pixel of compute is spent at a size that differs by a fifth of an octave.
    """
    (size_a, copies_a), (size_b, copies_b) = profile(a, sizes), profile(b, sizes)
    return _moved(size_a, size_b, sizes), float(np.abs(copies_a - copies_b).mean())


def _moved(a: Floats, b: Floats, sizes: Sequence[int]) -> float:
    steps = np.diff(np.log2(np.asarray(sorted(sizes), float)))
    return float((np.abs(np.cumsum(a - b, axis=1))[:, :-1] * steps).sum(1).mean())
