"""Carry a regime from one base shape to another: found at 32 x 32, trained at 224 x 224.

S, B, D as in ``shapes``.
"""

from __future__ import annotations

from mixtune.regime.regime import Mixture, Regime
from mixtune.regime.shapes import BatchShape, snapped


def rebased(regime: Regime, base: BatchShape, stride: int) -> Regime:
    """The same regime relative to another base: sizes in proportion, snapped to the stride.

    Step shares, phases, clock and each shape's cost relative to the base are kept; D scales with the base's D and B
    absorbs the rounding, except that a shape with the old base's B and D (a fixed batch) gets the new one's. Shapes
    that fall together are one shape with the sum of their p; ``source`` says so. Raises ValueError when the new base
    size is not a multiple of the stride.
    """
    if base.S % stride:
        raise ValueError(f"the new base size {base.S} is not a multiple of the stride {stride}")
    moved = {shape: _moved(shape, regime.base, base, stride) for shape in regime.shapes}
    mixtures = []
    for phase in regime.phases:
        p: dict[BatchShape, float] = {}
        for shape, share in zip(phase.mixture.shapes, phase.mixture.p, strict=True):
            p[moved[shape]] = p.get(moved[shape], 0.0) + share
        mixtures.append(Mixture.of(list(p), list(p.values())))
    together = {to: [str(s) for s in moved if moved[s] == to] for to in sorted(set(moved.values()))}
    said = [f"{' and '.join(were)} fall together at {to}" for to, were in together.items() if len(were) > 1]
    source = "; ".join([regime.source, f"re-based from {regime.base} to {base} at stride {stride}", *said])
    shares = [phase.share for phase in regime.phases]
    return Regime.of(base, mixtures, shares, regime.name, source.removeprefix("; "), regime.clock)


def _moved(shape: BatchShape, old: BatchShape, new: BatchShape, stride: int) -> BatchShape:
    S = snapped(shape.S * new.S / old.S, stride)
    if (shape.B, shape.D) == (old.B, old.D):
        return BatchShape(S, new.B, new.D)
    # A shape within half an image of the budget is meant to be on it; its rounding is not carried along.
    exact = abs(shape.pixels - old.pixels) <= shape.S**2 * shape.D / 2
    cost = new.pixels * (1.0 if exact else shape.pixels / old.pixels)
    D = max(1, round(shape.D * new.D / old.D))
    return BatchShape(S, max(1, round(cost / (S**2 * D))), D)
