"""Convert a regime to another base shape: searched at 32 x 32, trained at 224 x 224.

S, B, D as in ``shapes``.
"""

from __future__ import annotations

from mixtune.regime.regime import Mixture, Regime
from mixtune.regime.shapes import BatchShape, snap_to_stride


def rebased(regime: Regime, base: BatchShape, stride: int) -> Regime:
    """Return the regime relative to another base: sizes in proportion, snapped to the stride.

    Step shares, phases, clock and each shape's cost relative to the base stay the same. D scales with the base's D and
    B absorbs the rounding, except that a shape with the old base's B and D (a fixed batch) gets the new base's. Shapes
    that become equal are one shape with the sum of their p, and ``source`` says so. Raise ValueError when the new base
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
    origins = {new: [str(old) for old in moved if moved[old] == new] for new in sorted(set(moved.values()))}
    joined = [f"{' and '.join(old)} fall together at {new}" for new, old in origins.items() if len(old) > 1]
    source = "; ".join([regime.source, f"re-based from {regime.base} to {base} at stride {stride}", *joined])
    shares = [phase.share for phase in regime.phases]
    return Regime.of(base, mixtures, shares, regime.name, source.removeprefix("; "), regime.clock)


def _moved(shape: BatchShape, old: BatchShape, new: BatchShape, stride: int) -> BatchShape:
    S = snap_to_stride(shape.S * new.S / old.S, stride)
    if (shape.B, shape.D) == (old.B, old.D):
        return BatchShape(S, new.B, new.D)
    # A shape within half an image of the budget is meant to be on it; its rounding is not scaled.
    exact = abs(shape.pixels - old.pixels) <= shape.S**2 * shape.D / 2
    cost = new.pixels * (1.0 if exact else shape.pixels / old.pixels)
    D = max(1, round(shape.D * new.D / old.D))
    return BatchShape(S, max(1, round(cost / (S**2 * D))), D)
