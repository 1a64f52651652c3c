"""Schedule: a regime made concrete. Every step of the run is decided before the run, from (regime, budget, seed).

Loader, learning rate, cost, plots and tests are folds over this array; resuming is one integer; a lower fidelity is
the same regime with a smaller budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixtune.regime.regime import Mixture, Regime
from mixtune.regime.shapes import BatchShape


@dataclass(frozen=True)
class Budget:
    """How much training a run may spend: ``epochs`` of the base shape.

    ``spend="compute"``: every regime gets the same pixels (then B+ is an accuracy regime).
    ``spend="epochs"``: every regime sees the same number of samples (then B+ is a speed regime).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    epochs: float
    spend: Literal["compute", "epochs"] = "compute"

    def __post_init__(self) -> None:
        if not np.isfinite(self.epochs) or self.epochs <= 0:
            raise ValueError(f"epochs must be positive, not {self.epochs!r}")

    def scaled(self, share: float) -> Budget:
        """The same budget at a lower fidelity."""
        return Budget(self.epochs * share, self.spend)


def apportion(p: Sequence[float], n: int) -> np.ndarray:
    """Share n steps out by largest remainder: every count is within one step of ``p*n`` and they sum to n. [len(p)]"""
    quota = np.asarray(p, float) * n
    counts: np.ndarray = np.floor(quota).astype(np.int64)
    counts[np.argsort(counts - quota, kind="stable")[: n - counts.sum()]] += 1
    return counts


@dataclass(frozen=True, eq=False)
class Schedule:
    """Every step of a run: ``shapes[index[t]]`` is what step t feeds the network.

    ``cost[i]`` is what a step of ``shapes[i]`` takes from the budget (pixels, or samples when epochs are spent), so
    ``progress`` is the share of the budget spent before each step: the learning rate's clock.
    """

    shapes: tuple[BatchShape, ...]
    index: np.ndarray  # [n_steps], into shapes
    cost: np.ndarray  # [n_shapes], budget units per step

    @classmethod
    def build(cls, regime: Regime, budget: Budget, n_samples: int, seed: int) -> Schedule:
        """Spend ``budget`` (counted in epochs of ``n_samples`` images at the regime's base shape) on ``regime``.

        Steps of a phase are shared out by largest remainder and put in random order, keyed by (seed, phase).
        Raises ValueError when a phase's share of the budget does not pay for a single step.
        """
        in_pixels = budget.spend == "compute"
        base = regime.base
        total = budget.epochs * n_samples * (base.pixels / base.B if in_pixels else 1)
        shapes = regime.shapes
        parts = []
        for i, phase in enumerate(regime.phases):
            mixture = phase.mixture
            n = round(phase.share * total / (mixture.pixels if in_pixels else mixture.samples))
            if n < 1:
                raise ValueError(
                    f"phase {i + 1} of {len(regime.phases)} ({mixture}) gets {100 * phase.share:.0f} % of a budget of "
                    f"{budget.epochs:g} epochs of {n_samples} images: less than one step"
                )
            parts.append(_shuffled(mixture, shapes, n, np.random.default_rng((seed, i))))
        cost = np.array([s.pixels if in_pixels else s.B for s in shapes], float)
        return cls(shapes, np.concatenate(parts), cost)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[BatchShape]:
        return (self.shapes[i] for i in self.index)

    def _total(self, per_shape: Sequence[float]) -> float:
        return float(np.bincount(self.index, minlength=len(self.shapes)) @ np.asarray(per_shape, float))

    @property
    def progress(self) -> np.ndarray:
        """Share of the budget spent before each step, from 0 up to just below 1. [n_steps]"""
        spent = self.cost[self.index]
        before: np.ndarray = (np.cumsum(spent) - spent) / spent.sum()
        return before

    @property
    def pixels(self) -> float:
        """Compute of the whole run."""
        return self._total([s.pixels for s in self.shapes])

    @property
    def samples(self) -> int:
        """Distinct images drawn over the whole run (an epoch is one pass over the data set)."""
        return int(self._total([s.B for s in self.shapes]))

    @property
    def views(self) -> int:
        """Images through the network over the whole run."""
        return int(self._total([s.views for s in self.shapes]))

    def sample_batches(self, n_samples: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
        """The sample indices of each step from ``start`` on: arrays of B distinct numbers below ``n_samples``.

        Every epoch is a permutation, so each sample is drawn exactly once per epoch; a step that straddles two epochs
        takes what is left of the old one and starts the new one with samples it does not yet hold. All ranks and
        every resumed run draw the same numbers. Raises ValueError when a batch is larger than the data set.
        """
        largest = max(s.B for s in self.shapes)
        if largest > n_samples:
            raise ValueError(f"a batch of {largest} distinct images cannot be drawn from {n_samples} images")
        epoch, used = 0, 0
        order = np.random.default_rng((seed, epoch)).permutation(n_samples)
        for step, i in enumerate(self.index):
            B = self.shapes[i].B
            batch = order[used : used + B]
            used += len(batch)
            if len(batch) < B:
                epoch += 1
                order = np.random.default_rng((seed, epoch)).permutation(n_samples)
                # Samples already in this step move behind the first ones that are not: a stable partition of the
                # first B entries, which hold at least the number needed.
                head = order[:B]
                seen = np.isin(head, batch)
                order[:B] = np.concatenate([head[~seen], head[seen]])
                used = B - len(batch)
                batch = np.concatenate([batch, order[:used]])
            if step >= start:
                yield batch


def _shuffled(mixture: Mixture, shapes: tuple[BatchShape, ...], n: int, rng: np.random.Generator) -> np.ndarray:
    ids = [shapes.index(s) for s in mixture.shapes]
    return rng.permutation(np.repeat(np.asarray(ids, np.int16), apportion(mixture.p, n)))
