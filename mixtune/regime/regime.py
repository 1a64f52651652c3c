"""Mixture, Phase, Regime: how a training run mixes batch shapes, as plain frozen values.

S, B, D as in ``shapes``.   p  share of *steps* (not of samples) that use a shape, as in the MixSize paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from mixtune.regime.shapes import BatchShape

PhaseClock = Literal["budget", "epochs", "steps"]
StepCost = Callable[[BatchShape], float]
MAX_PHASES_SHOWN = 6  # str() sums up a regime of more phases


@dataclass(frozen=True)
class Mixture:
    """A distribution over batch shapes; ``p[i]`` is the share of steps that use ``shapes[i]``."""

    shapes: tuple[BatchShape, ...]
    p: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("a mixture needs at least one batch shape")
        if len(self.shapes) != len(self.p):
            raise ValueError(f"{len(self.shapes)} batch shapes but {len(self.p)} probabilities")
        if len(set(self.shapes)) < len(self.shapes):
            twice = next(s for s in self.shapes if self.shapes.count(s) > 1)
            raise ValueError(f"batch shape {twice} is listed twice; give it once with the sum of its p")
        if any(not math.isfinite(x) or x < 0 for x in self.p):
            raise ValueError(f"p must be finite and at least 0, not {list(self.p)}")
        if abs(sum(self.p) - 1) > 1e-9:
            raise ValueError(f"p must sum to 1, not {sum(self.p):g}")

    @classmethod
    def of(cls, shapes: Sequence[BatchShape], weights: Sequence[float] | None = None) -> Mixture:
        """Return the mixture of these weights, normalised, without shapes of weight 0 (no weights: uniform).

        Probabilities that already sum to 1 are unchanged to the bit, so that a mixture read from a file is the one
        written. Raise ValueError for weights that are negative, not finite or all 0, and for a shape given twice.
        """
        w = [1.0] * len(shapes) if weights is None else [float(x) for x in weights]
        if any(not math.isfinite(x) or x < 0 for x in w):
            raise ValueError(f"probabilities must be finite and at least 0, not {w}")
        if w and sum(w) <= 0:
            raise ValueError("probabilities are all zero; at least one must be positive")
        total = 1.0 if abs(sum(w) - 1) <= 1e-9 else sum(w)
        used = [(s, x / total) for s, x in zip(shapes, w, strict=True) if x > 0]
        return cls(tuple(s for s, _ in used), tuple(x for _, x in used))

    @classmethod
    def of_samples(cls, shapes: Sequence[BatchShape], sample_shares: Sequence[float]) -> Mixture:
        """Return the mixture whose shapes see these shares of the *samples*: step share proportional to share / B.

        The MixSize authors' code divides each epoch's samples by p (data.py, SampledDataRegime); we count steps.
        """
        return cls.of(shapes, [q / s.B for s, q in zip(shapes, sample_shares, strict=True)])

    @property
    def sample_shares(self) -> tuple[float, ...]:
        """Share of the distinct samples that each shape sees: proportional to p*B."""
        samples = [p * s.B for s, p in zip(self.shapes, self.p, strict=True)]
        return tuple(x / sum(samples) for x in samples)

    @property
    def pixels(self) -> float:
        """Expected pixels of a step."""
        return sum(p * s.pixels for s, p in zip(self.shapes, self.p, strict=True))

    @property
    def samples(self) -> float:
        """Expected distinct images of a step."""
        return sum(p * s.B for s, p in zip(self.shapes, self.p, strict=True))

    def expected(self, cost: StepCost) -> float:
        """Return the expected cost of a step."""
        return sum(p * cost(s) for s, p in zip(self.shapes, self.p, strict=True))

    def __str__(self) -> str:
        return " · ".join(f"{s} {100 * p:.0f}%" for s, p in zip(self.shapes, self.p, strict=True))


@dataclass(frozen=True)
class Phase:
    """A share of the run spent on one mixture (of the budget, unless the regime's clock says otherwise)."""

    share: float
    mixture: Mixture

    def __post_init__(self) -> None:
        if not math.isfinite(self.share) or self.share <= 0:
            raise ValueError(f"a phase's share must be positive, not {self.share!r}")


@dataclass(frozen=True)
class Regime:
    """A sequence of phases. Every published size regime is one.

    ``base`` is the shape whose pixels are the compute budget of one step. ``name`` and ``source`` are for people and
    do not take part in comparisons. ``clock`` is what the phases' shares are shares of: whatever the *budget* counts
    (the default), *epochs* (distinct images, as progressive resizing is published) or *steps* (timm's sliding window).
    ``shares_of`` converts exactly from any clock to any cost.
    """

    base: BatchShape
    phases: tuple[Phase, ...]
    name: str = field(default="", compare=False)
    source: str = field(default="", compare=False)
    clock: PhaseClock = "budget"

    def __post_init__(self) -> None:
        if self.clock not in get_args(PhaseClock):
            raise ValueError(f"clock must be one of {', '.join(get_args(PhaseClock))}, not {self.clock!r}")
        if not self.phases:
            raise ValueError("a regime needs at least one phase")
        total = sum(ph.share for ph in self.phases)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the phases' shares must sum to 1, not {total:g}")

    @classmethod
    def of(
        cls,
        base: BatchShape,
        mixtures: Sequence[Mixture],
        shares: Sequence[float] | None = None,
        name: str = "",
        source: str = "",
        clock: PhaseClock = "budget",
    ) -> Regime:
        """Return the regime of these mixtures in order, with shares normalised (none: equal)."""
        w = [1.0] * len(mixtures) if shares is None else [float(x) for x in shares]
        if any(not math.isfinite(x) or x <= 0 for x in w):
            raise ValueError(f"phase shares must be positive, not {w}")
        total = 1.0 if abs(sum(w) - 1) <= 1e-9 else sum(w)
        phases = tuple(Phase(x / total, m) for x, m in zip(w, mixtures, strict=True))
        return cls(base, phases, name, source, clock)

    def shares_of(self, cost: StepCost, budget_cost: StepCost | None = None) -> tuple[float, ...]:
        """Return each phase's share of the run's total ``cost``. [n_phases], sums to 1

        ``cost`` is what one step of a shape takes (``lambda s: 1`` for steps, ``lambda s: s.B`` for epochs, pixels,
        seconds). ``budget_cost`` is what a step takes from the budget, pixels unless given; it matters only where the
        clock is the budget's. With n_i steps in phase i, share_i is proportional to n_i * (clock's cost of a step).
        """
        clocks: dict[PhaseClock, StepCost] = {"epochs": lambda s: s.B, "steps": lambda s: 1.0}
        clock = clocks.get(self.clock, budget_cost or (lambda s: s.pixels))
        spent = [ph.share * ph.mixture.expected(cost) / ph.mixture.expected(clock) for ph in self.phases]
        return tuple(x / sum(spent) for x in spent)

    @property
    def mixture(self) -> Mixture:
        """The mixture of the whole run: each shape with its share of all steps."""
        share_of_steps = dict.fromkeys(self.shapes, 0.0)
        for phase, share in zip(self.phases, self.shares_of(lambda s: 1.0), strict=True):
            for shape, p in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
                share_of_steps[shape] += share * p
        return Mixture.of(list(share_of_steps), list(share_of_steps.values()))

    @property
    def shapes(self) -> tuple[BatchShape, ...]:
        """All batch shapes in use, smallest size first."""
        return tuple(sorted({s for ph in self.phases for s in ph.mixture.shapes}))

    @property
    def sizes(self) -> tuple[int, ...]:
        """All image sizes in use, smallest first."""
        return tuple(sorted({s.S for s in self.shapes}))

    def __str__(self) -> str:
        """Return one line for people: ``16x256 40% · 32x64 60%``; arrows join phases, each with its share.

        More than MAX_PHASES_SHOWN phases are summed up: their number, the mean size at both ends and the mixture of
        the whole run.
        """
        if len(self.phases) == 1:
            return str(self.phases[0].mixture)
        if len(self.phases) > MAX_PHASES_SHOWN:
            first, last = (self.phases[i].mixture.expected(lambda s: s.S) for i in (0, -1))
            return f"{len(self.phases)} phases, {first:.0f} to {last:.0f} px on average: {self.mixture}"
        return " → ".join(f"{100 * ph.share:.0f}%: {_phase(ph.mixture)}" for ph in self.phases)


def _phase(mixture: Mixture) -> str:
    return str(mixture.shapes[0]) if len(mixture.shapes) == 1 else f"({mixture})"
