"""What training would have said, simulated from the recorded table: the scores of any regime at every fidelity.

A table of some hundred regimes cannot answer for every point that a search proposes. Gaussian processes, fitted to
the table, give the expected score of any regime at every fidelity; to it is added what they missed on one of the
table's regimes when that was held out, at all fidelities together. So seed noise, what the processes do not know, and
how far a low fidelity misjudges a regime are those of the table. The same regime always has the same scores.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixtune.search.candidates import NEGLIGIBLE, Search
from mixtune.search.domains import Uniform
from mixtune.search.space import Space

FidelityKey = tuple[str, str]  # ("compress", "1/9")
FULL_BUDGET: FidelityKey = ("compress", "1/1")
FOLDS = 10
Floats = npt.NDArray[np.float64]


def fidelities(row: Mapping[str, Any]) -> list[FidelityKey]:
    """Those that a row of the table holds."""
    return [(kind, share) for kind in ("compress", "truncate") for share in row[kind]]


def features(search: Search, params: Mapping[str, Any]) -> Floats:
    """A point as numbers that equal regimes share: each size's part of the weights, their mean size in octaves, split,
    and growth one-hot.
    """
    weights = np.array([float(params[f"w_{S}"]) for S in search.sizes])
    kept = np.where(weights >= NEGLIGIBLE, weights, 0.0)
    if not kept.any():
        kept[int(weights.argmax())] = 1.0
    growth = [float(params["growth"] == g) for g in search.growth]
    parts = kept / kept.sum()
    return np.array([*parts, float(parts @ np.log2(search.sizes)), float(params["split"]), *growth])


class Simulated:
    """Scores of points of a space, from a table's rows."""

    def __init__(self, space: Space, rows: Sequence[Mapping[str, Any]]) -> None:
        from sklearn.base import clone
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
        from sklearn.model_selection import KFold, cross_val_predict

        self.space, self.fidelities = space, fidelities(rows[0])
        self.points = np.array([features(space.search, r["params"]) for r in rows])
        self.scores = np.array([[r[kind][share]["score"] for kind, share in self.fidelities] for r in rows])
        # A linear trend, what bends away from it, and noise.
        smooth = DotProduct(1.0) + ConstantKernel(1.0) * RBF(1.0, (0.05, 50.0))
        process = GaussianProcessRegressor(smooth + WhiteKernel(0.1, (1e-3, 2.0)), normalize_y=True)
        folds = KFold(FOLDS, shuffle=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a part of the kernel that a fidelity does not need ends at its bound
            self._processes = [clone(process).fit(self.points, y) for y in self.scores.T]
            held_out = [cross_val_predict(process, self.points, y, cv=folds) for y in self.scores.T]
        self.missed = self.scores - np.array(held_out).T

    def expected(self, points: Floats) -> Floats:
        """What the processes expect of features [n, ...]: [n, fidelities]."""
        return np.array([process.predict(points) for process in self._processes]).T

    def explained(self) -> dict[str, float]:
        """The part of the scores' variance that is foreseen on regimes held out, by share, for compress."""
        parts = 1 - self.missed.var(axis=0) / self.scores.var(axis=0)
        named = zip(self.fidelities, parts.tolist(), strict=True)
        return {share: round(part, 3) for (kind, share), part in named if kind == FULL_BUDGET[0]}

    def of(self, params: Mapping[str, Any], world: int) -> dict[FidelityKey, float]:
        """The point's scores. Each ``world`` draws anew what the processes miss."""
        point = features(self.space.search, params)
        seed = hashlib.sha256(np.round(point, 9).tobytes() + world.to_bytes(8, "big")).digest()
        missed = self.missed[int.from_bytes(seed[:8], "big") % len(self.missed)]
        return dict(zip(self.fidelities, (self.expected(point[None])[0] + missed).tolist(), strict=True))

    def drawn(self, n: int, seed: int) -> Floats:
        """Scores of ``n`` points drawn evenly, [n, fidelities]."""
        points = [self.space.suggest(Uniform((seed, i))) for i in range(n)]
        expected = self.expected(np.array([features(self.space.search, p) for p in points]))
        chosen = np.random.default_rng((seed, n)).integers(len(self.missed), size=n)
        found: Floats = expected + self.missed[chosen]
        return found
