"""Constructors of the published size regimes; each cites its paper and section, or the code that defines it.

S, B, D as in ``shapes``. ``split`` makes budget-exact shapes (1 larger batches, B+; 0 more copies, D+; 0.5 both); None
keeps B and D as they are. The authors' own rounding is in ``rounding``. ``catalogue`` gives all of them names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from mixtune.errors import did_you_mean
from mixtune.regime.regime import Mixture, PhaseClock, Regime
from mixtune.regime.rounding import (
    Adapt,
    copies_wanted,
    cvnets_shape,
    cvnets_sizes,
    ffcv_sizes,
    mixsize_shape,
    switches_to_b_plus,
    timm_window,
)
from mixtune.regime.shapes import BatchShape, snap_to_stride

# Shares of the *samples* by size relative to the base, from the MixSize authors' models/resnet.py: their CIFAR mixture
# (base 32), "sampled-144" and "sampled-224" (base 224; mean sizes exactly 144 and 224).
MIXSIZE_CIFAR = {16 / 32: 0.2, 24 / 32: 0.3, 32 / 32: 0.3, 48 / 32: 0.2}
MIXSIZE_144 = {96 / 224: 0.2, 128 / 224: 0.6, 224 / 224: 0.1, 256 / 224: 0.1}
MIXSIZE_224 = {S / 224: 0.2 if S == 224 else 0.8 / 6 for S in range(128, 321, 32)}
SMALL_IMAGES = 64  # bases up to this use the authors' CIFAR mixture, larger ones their ImageNet mixture

HOFFER = "Hoffer et al. 2019, Mix & Match (arXiv 1908.08986), MixSize"
NUNEZ = "Nunez et al. 2023, On the Efficacy of Multi-Scale Data Samplers (arXiv 2309.04502)"
ENTR = "Wanger & Frohn, Efficient Network TRaining, Experiment and Fig. 3"
FFCV = "FFCV-ImageNet, train_imagenet.py, get_resolution"
TIMM = "timm 1.0.31, data/scheduled_sampler.py, progressive"


def fixed(base: BatchShape) -> Regime:
    """Return one size throughout: the baseline, and ENTR's "no increase" (Wanger & Frohn, Experiment)."""
    return Regime.of(base, [Mixture.of([base])], name="fixed", source=f"baseline; {ENTR}, no increase")


def mixsize(base: BatchShape, sample_shares: Mapping[int, float], split: float, name: str = "mixsize") -> Regime:
    """Return MixSize (Hoffer et al. 2019, "Training with multiple image scales"): sizes drawn at random at every step.

    ``sample_shares``: size -> share of the samples, as the authors' code counts (ours count steps; converted here).
    """
    shapes = [base.resized(S, split) for S in sorted(sample_shares)]
    mixture = Mixture.of_samples(shapes, [sample_shares[s.S] for s in shapes])
    shrunk = [str(s) for s in shapes if s.S > base.S and split < 1 and s.B < base.B]
    note = f"fewer than {base.D} copies are not possible, so batches shrink: {', '.join(shrunk)}" if shrunk else ""
    return Regime.of(base, [mixture], name=name, source=_cited(HOFFER, "shapes made budget-exact", note))


def mixsize_authors(
    base: BatchShape, sample_shares: Mapping[int, float], adapt: Adapt, devices: int = 1, name: str = "mixsize_authors"
) -> Regime:
    """Return MixSize exactly as its authors' code makes it: see ``rounding.mixsize_shape``.

    Their code silently turns D+ into B+ below half a copy; here the regime's ``source`` says where.
    """
    sizes = sorted(sample_shares)
    mixture = Mixture.of_samples(
        [mixsize_shape(base, S, adapt, devices) for S in sizes], [sample_shares[S] for S in sizes]
    )
    switched = [
        f"at S = {S}, {adapt} asks for {copies_wanted(base, S, adapt):.2f} copies, below a half: "
        f"the authors' code uses B+ there, {mixsize_shape(base, S, adapt, devices)}"
        for S in sizes
        if switches_to_b_plus(base, S, adapt)
    ]
    return Regime.of(base, [mixture], name=name, source=_cited(HOFFER, "the authors' own rounding", *switched))


def multiscale(base: BatchShape, sizes: Sequence[int], split: float | None = 1.0, name: str = "multiscale") -> Regime:
    """Return the multi-scale sampler (Nunez et al. 2023): sizes drawn uniformly, B scaled (VBS) or fixed (FBS)."""
    kind = "multi-scale, fixed batch (MSc-FBS)" if split is None else "multi-scale, variable batch (MSc-VBS)"
    mixture = Mixture.of([_resized(base, S, split) for S in sizes])
    return Regime.of(base, [mixture], name=name, source=_cited(NUNEZ, kind))


def multiscale_authors(base: BatchShape, sizes: Sequence[int], devices: int = 1) -> Regime:
    """Return the variable-batch sampler with CVNets' own rounding: see ``rounding.cvnets_shape``."""
    mixture = Mixture.of([cvnets_shape(base, S, devices) for S in sizes])
    kind = "multi-scale, variable batch (MSc-VBS), CVNets' own rounding"
    return Regime.of(base, [mixture], name="multiscale_authors", source=_cited(NUNEZ, kind))


def multiscale_curriculum(
    base: BatchShape,
    ranges: Sequence[tuple[int, int]],
    n_scales: int,
    stride: int,
    devices: int | None = None,
    name: str = "multiscale_vbswc",
) -> Regime:
    """Return variable batches with a curriculum (Nunez et al. 2023, abstract): the range of sizes grows by phase.

    ``ranges``: (smallest, largest) size of each phase; phases last equally many epochs. As in CVNets, the base size is
    always among the candidates. ``devices`` given: CVNets' own rounding; not given: budget-exact shapes. The paper's
    stage lengths are in no source that could be read, so equal ones are an assumption, and the source says so.
    """
    mixtures = []
    for low, high in ranges:
        sizes = cvnets_sizes(base.S, low, high, n_scales, stride)
        mixtures.append(Mixture.of([cvnets_shape(base, S, devices) if devices else base.resized(S, 1) for S in sizes]))
    kind = "variable batch with curriculum (MSc-VBSWC); ranges and equal stages are assumed, the paper's are not known"
    return Regime.of(base, mixtures, name=name, source=_cited(NUNEZ, kind), clock="epochs")


def growing(base: BatchShape, sizes: Sequence[int], split: float | None, name: str = "gradual") -> Regime:
    """Return ENTR (Wanger & Frohn, Fig. 3): size grows over training, one size a phase; two sizes are its "stepwise".

    Phases are equal shares of the budget, or of the epochs where B is fixed as in the paper, which does not give them.
    """
    mixtures = [Mixture.of([_resized(base, S, split)]) for S in sorted(sizes)]
    note = "stages assumed equal; " + ("B fixed as in the paper" if split is None else "shapes made budget-exact")
    clock: PhaseClock = "epochs" if split is None else "budget"
    return Regime.of(base, mixtures, name=name, source=_cited(ENTR, note), clock=clock)


def progressive(
    base: BatchShape,
    low: int,
    high: int,
    start: int,
    end: int,
    epochs: int,
    stride: int,
    split: float | None = None,
    name: str = "progressive",
) -> Regime:
    """Return progressive resizing: a linear ramp from ``low`` at epoch ``start`` to ``high`` at ``end`` (FFCV).

    The ramp is quantised to the stride, so it is a few phases of one size; their shares are of the epochs.
    """
    runs = [(S, len(list(run))) for S, run in groupby(ffcv_sizes(low, high, start, end, epochs, stride))]
    mixtures = [Mixture.of([_resized(base, S, split)]) for S, _ in runs]
    note = f"{low} to {high} from epoch {start} to {end} of {epochs}; " + (
        "B fixed as published" if split is None else "shapes made budget-exact"
    )
    return Regime.of(base, mixtures, [n for _, n in runs], name, _cited(FFCV, note), "epochs")


def window(
    base: BatchShape,
    sizes: Sequence[int],
    phases: int,
    spread: float = 0.65,
    random_mix: float = 0.1,
    split: float | None = None,
    name: str = "window",
    weights: Sequence[float] | None = None,
) -> Regime:
    """Return a window of sizes that slides from the first to the last (timm's scheduled sampler, "progressive").

    One phase is one timm epoch, which is a fixed number of steps. Defaults are timm's; ``weights`` are its choice
    weights (none: equal). Raise ValueError for fewer than two sizes or two phases.
    """
    if phases < 2 or len(sizes) < 2:
        raise ValueError(f"a window slides over at least two sizes in two phases, not {len(sizes)} in {phases}")
    shapes = [_resized(base, S, split) for S in sizes]
    choices = [1.0] * len(sizes) if weights is None else [float(w) for w in weights]
    p = [timm_window(choices, i / (phases - 1), spread, random_mix) for i in range(phases)]
    note = f"spread {spread:g}, random mix {random_mix:g}; " + ("B fixed" if split is None else "shapes budget-exact")
    return Regime.of(base, [Mixture.of(shapes, q) for q in p], name=name, source=_cited(TIMM, note), clock="steps")


def shares_at_base(relative: Mapping[float, float], base: BatchShape, stride: int) -> dict[int, float]:
    """Convert shares by relative size to shares by size, snapped to the stride; shares of equal sizes add up."""
    shares: dict[int, float] = {}
    for ratio, share in relative.items():
        S = snap_to_stride(ratio * base.S, stride)
        shares[S] = shares.get(S, 0.0) + share
    return shares


def with_snapping_note(regime: Regime, ratios: Iterable[float], stride: int) -> Regime:
    """Return the regime with the published sizes that the stride moved, if any, noted in its ``source``."""
    wanted = [ratio * regime.base.S for ratio in sorted(ratios)]
    moved = [f"{S:.4g} → {snap_to_stride(S, stride)}" for S in wanted if abs(S - snap_to_stride(S, stride)) > 1e-6]
    note = f"at base {regime.base.S} and stride {stride}: {', '.join(moved)}" if moved else ""
    return replace(regime, source=_cited(regime.source, note))


def _resized(base: BatchShape, S: int, split: float | None) -> BatchShape:
    return BatchShape(S, base.B, base.D) if split is None else base.resized(S, split)


def _cited(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _mixsize(split: float, name: str) -> Callable[[BatchShape, Sequence[int], int], Regime]:
    def build(base: BatchShape, sizes: Sequence[int], stride: int) -> Regime:
        relative = MIXSIZE_CIFAR if base.S <= SMALL_IMAGES else MIXSIZE_144
        return with_snapping_note(mixsize(base, shares_at_base(relative, base, stride), split, name), relative, stride)

    return build


# The published regimes that are points of the search space: name -> constructor(base, candidate sizes, stride).
PUBLISHED: dict[str, Callable[[BatchShape, Sequence[int], int], Regime]] = {
    "fixed": lambda base, sizes, stride: fixed(base),
    "mixsize_b": _mixsize(1.0, "mixsize_b"),
    "mixsize_d": _mixsize(0.0, "mixsize_d"),
    "mixsize_bd": _mixsize(0.5, "mixsize_bd"),
    "multiscale": lambda base, sizes, stride: multiscale(base, sizes),
    "gradual": lambda base, sizes, stride: growing(base, [S for S in sizes if S <= base.S], 1.0, "gradual"),
    "stepwise": lambda base, sizes, stride: growing(base, [min(sizes), base.S], 1.0, "stepwise"),
    "window": lambda base, sizes, stride: window(base, [S for S in sizes if S <= base.S], 10, split=1.0),
}


def published(name: str, base: BatchShape, sizes: Sequence[int], stride: int) -> Regime:
    """Return the published regime of this name at this base. Raise ValueError for an unknown name."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown published regime {name!r}; {did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name](base, sizes, stride)
