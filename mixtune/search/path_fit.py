"""The path nearest to a regime: what a sampler is told of a regime that is no point of the space.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import optimize

from mixtune.regime import Regime
from mixtune.regime.path import GRID, Floats, SizePath, bell, distance, profile

CENTRES, SPREADS = 25, 13  # candidates for a level, over their ranges
SHORTEST = 0.05  # length of a level
EVEN = 1e-4  # what lengths other than equal ones cost, so that a regime with fewer levels has one answer
EVALUATIONS = 400  # of a local search
PROGRESS = (np.arange(GRID) + 0.5) / GRID
SPLITS = tuple(i / 8 for i in range(9))


@dataclass(frozen=True)
class Nearest:
    """A path, and how far its regime is from the one it stands for: octaves of size and of copies (``distance``)."""

    path: SizePath
    sizes: float
    copies: float


@lru_cache(maxsize=256)
def nearest_path(regime: Regime, sizes: tuple[int, ...], levels: int, spreads: tuple[float, float]) -> Nearest:
    """Return the path of so many levels over these sizes that is nearest to a regime. Deterministic; about 0.2 s.

    spreads: the least and the greatest that a level may have, in octaves.
    """
    grid = tuple(sorted(sizes))
    target, copies = profile(regime, grid)
    start = _steps(target, grid, regime.base.S, levels, spreads)
    best, least = start, _distance(start, target, grid, regime.base.S)
    for blend in (0.0, 0.5, 1.0):
        path = _refined(SizePath(start.centres, start.spreads, start.lengths, blend), target, grid, regime, spreads)
        if (far := _distance(path, target, grid, regime.base.S)) < least - 1e-6:
            best, least = path, far
    path = SizePath(best.centres, best.spreads, best.lengths, best.blend, _splits(best, copies, grid, regime))
    return Nearest(path, *distance(path.regime(regime.base, grid), regime, grid))


def _steps(target: Floats, sizes: tuple[int, ...], base: int, levels: int, spreads: tuple[float, float]) -> SizePath:
    """Return the best path without blends, by dynamic programming over where its levels begin. target: [GRID, n]."""
    octaves = np.log2(np.asarray(sizes, float) / base)
    centres = np.linspace(octaves[0], octaves[-1], CENTRES)
    centres = np.unique([*centres, *octaves])  # a single size lies at its own centre
    widths = np.geomspace(*spreads, SPREADS)
    choices = [(float(c), float(w)) for c in centres for w in widths]
    bells = np.array([bell(sizes, base, *choice) for choice in choices])
    cost = np.array([(np.abs(np.cumsum(row - bells, axis=1))[:, :-1] * np.diff(octaves)).sum(1) for row in target])
    total = np.concatenate([np.zeros((1, len(choices))), np.cumsum(cost, axis=0)])  # [GRID + 1, choices]
    # A segment from i to j costs the least of its choices; ties go to the first.
    segment = np.full((GRID + 1, GRID + 1), np.inf)
    chosen = np.zeros((GRID + 1, GRID + 1), int)
    least = math.ceil(SHORTEST * GRID)
    for i in range(GRID - least + 1):
        between = total[i + least :] - total[i]
        lengths = np.arange(least, GRID - i + 1) / GRID
        chosen[i, i + least :] = between.argmin(1)
        segment[i, i + least :] = between.min(1) + EVEN * GRID * (lengths - 1 / levels) ** 2
    ends = np.full((levels + 1, GRID + 1), np.inf)
    ends[0, 0] = 0.0
    before = np.zeros((levels + 1, GRID + 1), int)
    for k in range(1, levels + 1):
        every = ends[k - 1][:, None] + segment
        before[k], ends[k] = every.argmin(0), every.min(0)
    cuts = [GRID]
    for k in range(levels, 0, -1):
        cuts.insert(0, int(before[k, cuts[0]]))
    parts = list(pairwise(cuts))
    picked = [choices[chosen[a, b]] for a, b in parts]
    shares = tuple((b - a) / GRID for a, b in parts)
    return SizePath(tuple(c for c, _ in picked), tuple(w for _, w in picked), shares)


def _distance(path: SizePath, target: Floats, sizes: tuple[int, ...], base: int) -> float:
    octaves = np.log2(np.asarray(sizes, float) / base)
    corners = np.array(path.knots())
    centre, width = (np.interp(PROGRESS, corners[:, 0], corners[:, i]) for i in (1, 2))
    z = (octaves[None] - centre[:, None]) / 2 ** width[:, None]
    weights = np.exp(-0.5 * (z**2 - (z**2).min(1, keepdims=True)))
    weights /= weights.sum(1, keepdims=True)
    return float((np.abs(np.cumsum(weights - target, axis=1))[:, :-1] * np.diff(octaves)).sum(1).mean())


def _refined(
    path: SizePath, target: Floats, sizes: tuple[int, ...], regime: Regime, spreads: tuple[float, float]
) -> SizePath:
    """Return a local optimum near a path (Nelder and Mead 1965)."""
    n, base = len(path.lengths), regime.base.S
    octaves = np.log2(np.asarray(sizes, float) / base)

    def read(x: Floats) -> SizePath:
        lengths = np.clip(x[2 * n : 3 * n], SHORTEST, None)
        return SizePath(
            tuple(np.clip(x[:n], octaves[0], octaves[-1]).tolist()),
            tuple((2 ** np.clip(x[n : 2 * n], *np.log2(spreads))).tolist()),
            tuple((lengths / lengths.sum()).tolist()),
            float(np.clip(x[-1], 0, 1)),
        )

    first = np.array([*path.centres, *np.log2(path.spreads), *path.lengths, path.blend])
    simplex = np.vstack([first, first + np.diag([0.1] * n + [0.5] * n + [0.05] * n + [-0.2 if path.blend else 0.2])])
    options = {"maxfev": EVALUATIONS, "initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-4}

    def far(x: Floats) -> float:
        return _distance(read(x), target, sizes, base)

    return read(optimize.minimize(far, first, method="Nelder-Mead", options=options).x)


def _splits(path: SizePath, copies: Floats, sizes: tuple[int, ...], regime: Regime) -> tuple[float, float]:
    """Return the splits at both ends whose copies are nearest to the regime's; more batch where several are.

    copies: [GRID], mean log2 of the copies.
    """
    p = np.array([bell(sizes, regime.base.S, *path.at(float(t))) for t in PROGRESS])
    table = {s: np.log2([regime.base.resized(S, s).D / regime.base.D for S in sizes]) for s in _finer()}

    def apart(start: float, end: float) -> float:
        splits = start + PROGRESS * (end - start)
        rows = np.array([table[round(s * FINE) / FINE] for s in splits])
        return float(np.abs((p * rows).sum(1) - copies).mean())

    pairs = [(a, a) for a in reversed(SPLITS)] + [(a, b) for a in reversed(SPLITS) for b in reversed(SPLITS) if a != b]
    return min(pairs, key=lambda pair: round(apart(*pair), 6))


FINE = 64


def _finer() -> Sequence[float]:
    return [i / FINE for i in range(FINE + 1)]
