"""Schedule: every step of a run, decided before the run from (regime, budget, seed).

Loader, learning rate, cost, plots and tests are folds over this array. Resuming is one integer. A lower fidelity is
the same regime with a smaller budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixtune.regime.regime import Mixture, Regime, StepCost
from mixtune.regime.shapes import BatchShape
from mixtune.regime.step_cost import Unit, sample_cost, step_cost

BUDGET_TOLERANCE = 0.05  # the largest share by which a run may miss its budget; whole steps miss it by far less


@dataclass(frozen=True)
class Budget:
    """How much training a run may spend: ``epochs`` of the base shape, or an ``amount`` of what is counted.

    ``spend="compute"``: every regime gets the same compute (then B+ is an accuracy regime).
    ``spend="epochs"``: every regime sees the same number of samples (then B+ is a speed regime).
    ``cost`` is what compute is counted in: "pixels" (S^2*B*D), or measured "gmacs" or "seconds", which need a table;
    ``{amount: 3600, cost: seconds}`` is an hour of training steps.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    epochs: float = 0.0
    spend: Literal["compute", "epochs"] = "compute"
    cost: Unit = "pixels"
    amount: float | None = None

    def __post_init__(self) -> None:
        if self.amount is not None and (not np.isfinite(self.amount) or self.amount <= 0 or self.epochs):
            raise ValueError(f"amount must be positive, and stands instead of epochs; got {self.amount!r}")
        if self.amount is None and (not np.isfinite(self.epochs) or self.epochs <= 0):
            raise ValueError(f"epochs must be positive, not {self.epochs!r}")
        if self.spend == "epochs" and self.amount is not None:
            raise ValueError("a budget spent as equal epochs is given as epochs, not as an amount")
        if self.spend == "epochs" and self.cost != "pixels":
            raise ValueError(f"a budget spent as equal epochs counts images, not {self.cost}; leave cost out")

    @classmethod
    def of_total(cls, total: float, cost: Unit, base: BatchShape, n_samples: int, table: StepCost) -> Budget:
        """Return the budget of ``total`` GMACs or seconds: as many epochs of the base shape as they pay for.

        An hour on this machine is ``Budget.of_total(3600, "seconds", base, n_samples, table)``.
        """
        return cls(total / (n_samples / base.B * step_cost(table, cost)(base)), "compute", cost)

    def total(self, base: BatchShape, n_samples: int, step: StepCost) -> float:
        """Return the whole budget, in the units of ``step``."""
        return self.amount or self.epochs * n_samples / base.B * step(base)

    def scaled(self, share: float) -> Budget:
        """Return this share of the budget (a lower fidelity)."""
        if self.amount is not None:
            return replace(self, amount=self.amount * share)
        return replace(self, epochs=self.epochs * share)

    def __str__(self) -> str:
        return f"{self.epochs:g} epochs" if self.amount is None else f"{self.amount:g} {self.cost}"


def apportion(p: Sequence[float], n: int) -> np.ndarray:
    """Return n steps apportioned by largest remainder: counts within one step of ``p*n`` that sum to n. [len(p)]"""
    quota = np.asarray(p, float) * n
    counts: np.ndarray = np.floor(quota).astype(np.int64)
    counts[np.argsort(counts - quota, kind="stable")[: n - counts.sum()]] += 1
    return counts


@dataclass(frozen=True, eq=False)
class Schedule:
    """Every step of a run: ``shapes[index[t]]`` is what step t feeds the network.

    ``cost[i]`` is what a step of ``shapes[i]`` takes from the budget (pixels, GMACs, seconds, or samples when epochs
    are spent), so ``progress`` is the share of the budget spent before each step: the learning rate's clock.
    """

    shapes: tuple[BatchShape, ...]
    index: np.ndarray  # [n_steps], into shapes
    cost: np.ndarray  # [n_shapes], budget units per step
    phase_steps: tuple[int, ...] = ()  # [n_phases], steps of each phase, in order

    @classmethod
    def build(
        cls,
        regime: Regime,
        budget: Budget,
        n_samples: int,
        seed: int,
        cost: StepCost | Mapping[BatchShape, float] | None = None,
        tolerance: float = BUDGET_TOLERANCE,
        share: float = 1.0,
    ) -> Schedule:
        """Return the schedule that spends ``budget`` on ``regime``; an epoch of the budget is ``n_samples`` images.

        Steps of a phase are apportioned by largest remainder and put in random order, keyed by (seed, phase). ``cost``
        is what one step of a shape takes, in the budget's unit: a ``CostTable``, a mapping or a function.
        ``share`` below 1 is a lower fidelity: the whole regime compressed into that share of the budget, without the
        phases that do not get a step there.
        Raise ValueError when a phase's share of the budget does not pay for a single step, when the whole run misses
        the budget by more than ``tolerance`` (a share of it), and when a shape's cost is needed but not given.
        """
        step = sample_cost if budget.spend == "epochs" else step_cost(cost, budget.cost)
        budget = budget.scaled(share)
        total = budget.total(regime.base, n_samples, step)
        shapes = regime.shapes
        costs = np.array([step(s) for s in shapes], float)
        parts: list[np.ndarray] = []
        spent, due = 0.0, 0.0
        for i, (phase, due_share) in enumerate(zip(regime.phases, regime.shares_of(step, step), strict=True)):
            mixture = phase.mixture
            due += due_share * total
            ids = np.array([shapes.index(s) for s in mixture.shapes])
            # Each phase ends where the budget says, so that no phase inherits the rounding of those before it.
            counts = _steps(mixture, costs[ids], due - spent)
            if counts.sum() < 1:
                if share < 1 and (parts or i + 1 < len(regime.phases)):
                    continue  # what it would have spent is left to the next phase
                raise ValueError(
                    f"phase {i + 1} of {len(regime.phases)} ({mixture}) gets {100 * due_share:.0f} % of a budget of "
                    f"{budget} of {n_samples} images: less than one step"
                )
            spent += float(counts @ costs[ids])
            order = np.repeat(ids.astype(np.int16), counts)
            parts.append(np.random.default_rng((seed, i)).permutation(order))
        schedule = cls(shapes, np.concatenate(parts), costs, tuple(len(part) for part in parts))
        if abs(spent / total - 1) > tolerance:
            unit = "images" if budget.spend == "epochs" else budget.cost
            raise ValueError(
                f"{regime.name or regime} cannot meet its budget of {budget} of {n_samples} images: "
                f"{len(schedule)} whole steps spend {spent:.4g} {unit} for {total:.4g} "
                f"({100 * (spent / total - 1):+.1f} %, "
                f"{100 * tolerance:g} % allowed); try more epochs or smaller batches"
            )
        return schedule

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[BatchShape]:
        return (self.shapes[i] for i in self.index)

    @property
    def counts(self) -> np.ndarray:
        """Steps of each shape. [n_shapes]"""
        n: np.ndarray = np.bincount(self.index, minlength=len(self.shapes))
        return n

    def _total(self, per_shape: Sequence[float]) -> float:
        return float(self.counts @ np.asarray(per_shape, float))

    @property
    def spent(self) -> float:
        """What the whole run takes from the budget, in the budget's units."""
        return self._total(self.cost.tolist())

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
        """Yield the sample indices of each step from ``start`` on: B distinct numbers below ``n_samples``. [B]

        Every epoch is a permutation, so each sample is drawn exactly once per epoch; a step that straddles two epochs
        takes what is left of the old one and starts the new one with samples it does not yet hold. All ranks and
        every resumed run draw the same numbers. Raise ValueError when a batch is larger than the data set.
        """
        B = np.array([s.B for s in self.shapes])
        largest = int(B.max())
        if largest > n_samples:
            raise ValueError(f"a batch of {largest} distinct images cannot be drawn from {n_samples} images")
        first, before = self._resume_point(B, n_samples, start)
        epoch, used = divmod(before, n_samples)
        order = np.random.default_rng((seed, epoch)).permutation(n_samples)
        for t in range(first, len(self.index)):
            size = int(B[self.index[t]])
            batch = order[used : used + size]
            used += len(batch)
            if len(batch) < size:
                epoch += 1
                order = np.random.default_rng((seed, epoch)).permutation(n_samples)
                # Samples already in this step move behind the first ones that are not: a stable partition of the
                # first B entries, which hold at least the number needed.
                head = order[:size]
                seen = np.isin(head, batch)
                order[:size] = np.concatenate([head[~seen], head[seen]])
                used = size - len(batch)
                batch = np.concatenate([batch, order[:used]])
            if t >= start:
                yield batch

    def _resume_point(self, B: np.ndarray, n_samples: int, start: int) -> tuple[int, int]:
        """Return a step from which ``start`` is drawn as in an unbroken run, and the samples drawn before that step.

        An epoch's order depends on the epoch before it only through the step that straddles the two: samples in that
        step move within the head (the first B entries) of the new order. So it is enough to begin with the last step
        that starts in the epoch before, unless heads and tails can overlap (a batch of more than half the data).
        """
        before = np.concatenate([[0], np.cumsum(B[self.index[:start]])])  # samples drawn before each step
        epoch = int(before[-1]) // n_samples
        if epoch == 0 or 2 * int(B.max()) > n_samples:
            return 0, 0
        first = int(np.searchsorted(before, epoch * n_samples, side="right")) - 1
        return first, int(before[first])


def _steps(mixture: Mixture, costs: np.ndarray, due: float) -> np.ndarray:
    """Return the steps of each shape in a phase whose total cost comes nearest to ``due``. [len(mixture.p)]

    Where shapes cost differently, their number may be one beside the expected one.
    """
    n = int(due / float(np.dot(mixture.p, costs)))
    options = [apportion(mixture.p, max(0, k)) for k in (n, n + 1, n - 1, n + 2)]
    return min(options, key=lambda counts: abs(float(counts @ costs) - due))
