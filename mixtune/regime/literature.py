"""Published size regimes, by name: constructors and nothing else. Each cites its paper.

S, B, D as in ``shapes``; sizes are multiples of the network's total stride.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixtune.errors import did_you_mean
from mixtune.regime.regime import Mixture, Regime
from mixtune.regime.shapes import BatchShape

# Sample shares by size relative to the base, from the MixSize authors' models/resnet.py: the mixture for CIFAR (base
# 32) and "sampled-144" for ImageNet (base 224, mean size exactly 144).
MIXSIZE_CIFAR = {16 / 32: 0.2, 24 / 32: 0.3, 32 / 32: 0.3, 48 / 32: 0.2}
MIXSIZE_144 = {96 / 224: 0.2, 128 / 224: 0.6, 224 / 224: 0.1, 256 / 224: 0.1}
SMALL_IMAGES = 64  # bases up to this use the authors' CIFAR mixture, larger ones their ImageNet mixture


def fixed(base: BatchShape) -> Regime:
    """One size throughout: the baseline, and ENTR's "no increase"."""
    return Regime.of(base, [Mixture.of([base])], name="fixed", source="baseline")


def mixsize(base: BatchShape, sample_shares: dict[int, float], split: float, name: str = "mixsize") -> Regime:
    """MixSize (Hoffer et al. 2019): sizes drawn at random at every step; split 1 is B+, 0 is D+, 0.5 both.

    ``sample_shares``: size -> share of the samples, as the authors' code counts (ours count steps; converted here).
    """
    shapes = [base.resized(S, split) for S in sample_shares]
    mixture = Mixture.of_samples(shapes, list(sample_shares.values()))
    return Regime.of(base, [mixture], name=name, source="Hoffer et al. 2019, Mix & Match")


def multiscale(base: BatchShape, sizes: Sequence[int]) -> Regime:
    """Multi-scale variable-batch sampler (Nunez et al. 2023; CVNets): every step a uniformly drawn size, B scaled."""
    mixture = Mixture.of([base.resized(S, 1.0) for S in sizes])
    return Regime.of(base, [mixture], name="multiscale", source="Nunez et al. 2023, multi-scale variable batch")


def growing(base: BatchShape, sizes: Sequence[int], split: float, name: str = "gradual") -> Regime:
    """ENTR (Wanger & Frohn): size grows over training, one size a phase, equal shares; two sizes are its "stepwise"."""
    mixtures = [Mixture.of([base.resized(S, split)]) for S in sorted(sizes)]
    return Regime.of(base, mixtures, name=name, source="Wanger & Frohn, ENTR")


def _mixsize_published(split: float, name: str) -> Callable[[BatchShape, Sequence[int], int], Regime]:
    def build(base: BatchShape, sizes: Sequence[int], stride: int) -> Regime:
        published = MIXSIZE_CIFAR if base.S <= SMALL_IMAGES else MIXSIZE_144
        shares: dict[int, float] = {}
        for ratio, share in published.items():
            S = max(stride, round(ratio * base.S / stride) * stride)
            shares[S] = shares.get(S, 0.0) + share
        return mixsize(base, shares, split, name)

    return build


# name -> constructor(base, candidate sizes, stride). The candidate sizes are those of the search space.
PUBLISHED: dict[str, Callable[[BatchShape, Sequence[int], int], Regime]] = {
    "fixed": lambda base, sizes, stride: fixed(base),
    "mixsize_b": _mixsize_published(1.0, "mixsize_b"),
    "mixsize_d": _mixsize_published(0.0, "mixsize_d"),
    "mixsize_bd": _mixsize_published(0.5, "mixsize_bd"),
    "multiscale": lambda base, sizes, stride: multiscale(base, sizes),
    "gradual": lambda base, sizes, stride: growing(base, [S for S in sizes if S <= base.S], 1.0, "gradual"),
    "stepwise": lambda base, sizes, stride: growing(base, [min(sizes), base.S], 1.0, "stepwise"),
}


def published(name: str, base: BatchShape, sizes: Sequence[int], stride: int) -> Regime:
    """The published regime of this name at this base. Raises ValueError for an unknown name."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown published regime {name!r}; {did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name](base, sizes, stride)
