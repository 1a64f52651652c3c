"""Published size regimes: constructors and nothing else. Each cites its paper and section, or the code that defines it.

S, B, D as in ``shapes``. ``split`` makes budget-exact shapes (1 larger batches, B+; 0 more copies, D+; 0.5 both); None
keeps B and D as they are. The authors' own rounding is in ``rounding``. ``catalogue`` gives all of them names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from mixtune.errors import did_you_mean
from mixtune.regime.regime import Clock, Mixture, Regime
from mixtune.regime.rounding import (
    Adapt,
    copies_wanted,
    cvnets_shape,
    cvnets_sizes,
    ffcv_sizes,
    mixsize_shape,
    switches_to_b,
    timm_window,
)
from mixtune.regime.shapes import BatchShape, snapped

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
    """One size throughout: the baseline, and ENTR's "no increase" (Wanger & Frohn, Experiment)."""
    return Regime.of(base, [Mixture.of([base])], name="fixed", source=f"baseline; {ENTR}, no increase")


def mixsize(base: BatchShape, sample_shares: Mapping[int, float], split: float, name: str = "mixsize") -> Regime:
    """MixSize (Hoffer et al. 2019, "Training with multiple image scales"): sizes drawn at random at every step.

    ``sample_shares``: size -> share of the samples, as the authors' code counts (ours count steps; converted here).
    """
    shapes = [base.resized(S, split) for S in sorted(sample_shares)]
    mixture = Mixture.of_samples(shapes, [sample_shares[s.S] for s in shapes])
    shrunk = [str(s) for s in shapes if s.S > base.S and split < 1 and s.B < base.B]
    said = f"fewer than {base.D} copies are not possible, so batches shrink: {', '.join(shrunk)}" if shrunk else ""
    return Regime.of(base, [mixture], name=name, source=_cited(HOFFER, "shapes made budget-exact", said))


def mixsize_authors(
    base: BatchShape, sample_shares: Mapping[int, float], adapt: Adapt, devices: int = 1, name: str = "mixsize_authors"
) -> Regime:
    """MixSize exactly as its authors' code makes it: see ``rounding.mixsize_shape``.

    Their code turns D+ into B+ below half a copy without a word; here the regime's ``source`` says where it happened.
    """
    sizes = sorted(sample_shares)
    mixture = Mixture.of_samples(
        [mixsize_shape(base, S, adapt, devices) for S in sizes], [sample_shares[S] for S in sizes]
    )
    said = [
        f"at S = {S}, {adapt} asks for {copies_wanted(base, S, adapt):.2f} copies, below a half: "
        f"the authors' code uses B+ there, {mixsize_shape(base, S, adapt, devices)}"
        for S in sizes
        if switches_to_b(base, S, adapt)
    ]
    return Regime.of(base, [mixture], name=name, source=_cited(HOFFER, "the authors' own rounding", *said))


def multiscale(base: BatchShape, sizes: Sequence[int], split: float | None = 1.0, name: str = "multiscale") -> Regime:
    """Multi-scale sampler (Nunez et al. 2023): every step a uniformly drawn size, B scaled (VBS) or fixed (FBS)."""
    kind = "multi-scale, fixed batch (MSc-FBS)" if split is None else "multi-scale, variable batch (MSc-VBS)"
    mixture = Mixture.of([_resized(base, S, split) for S in sizes])
    return Regime.of(base, [mixture], name=name, source=_cited(NUNEZ, kind))


def multiscale_authors(base: BatchShape, sizes: Sequence[int], devices: int = 1) -> Regime:
    """The variable-batch sampler with CVNets' own rounding: see ``rounding.cvnets_shape``."""
    mixture = Mixture.of([cvnets_shape(base, S, devices) for S in sizes])
    said = "multi-scale, variable batch (MSc-VBS), CVNets' own rounding"
    return Regime.of(base, [mixture], name="multiscale_authors", source=_cited(NUNEZ, said))


def multiscale_curriculum(
    base: BatchShape,
    ranges: Sequence[tuple[int, int]],
    n_scales: int,
    stride: int,
    devices: int | None = None,
    name: str = "multiscale_vbswc",
) -> Regime:
    """Variable batches with a curriculum (Nunez et al. 2023, abstract): the range of sizes grows from phase to phase.

    ``ranges``: (smallest, largest) size of each phase; phases last equally many epochs. As in CVNets, the base size is
    always among the candidates. ``devices`` given: CVNets' own rounding; not given: budget-exact shapes. The paper's
    stage lengths are in no source that could be read, so equal ones are an assumption, and the source says so.
    """
    mixtures = []
    for low, high in ranges:
        sizes = cvnets_sizes(base.S, low, high, n_scales, stride)
        mixtures.append(Mixture.of([cvnets_shape(base, S, devices) if devices else base.resized(S, 1) for S in sizes]))
    said = "variable batch with curriculum (MSc-VBSWC); ranges and equal stages are assumed, the paper's are not known"
    return Regime.of(base, mixtures, name=name, source=_cited(NUNEZ, said), clock="epochs")


def growing(base: BatchShape, sizes: Sequence[int], split: float | None, name: str = "gradual") -> Regime:
    """ENTR (Wanger & Frohn, Fig. 3): size grows over training, one size a phase; two sizes are its "stepwise".

    Phases are equal shares of the budget, or of the epochs where B is fixed as in the paper, which does not give them.
    """
    mixtures = [Mixture.of([_resized(base, S, split)]) for S in sorted(sizes)]
    said = "stages assumed equal; " + ("B fixed as in the paper" if split is None else "shapes made budget-exact")
    clock: Clock = "epochs" if split is None else "budget"
    return Regime.of(base, mixtures, name=name, source=_cited(ENTR, said), clock=clock)


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
    """Progressive resizing: a linear ramp from ``low`` at epoch ``start`` to ``high`` at ``end`` (FFCV-ImageNet).

    The ramp is quantised to the stride, so it is a few phases of one size; they count epochs, as it was published.
    """
    runs = [(S, len(list(run))) for S, run in groupby(ffcv_sizes(low, high, start, end, epochs, stride))]
    mixtures = [Mixture.of([_resized(base, S, split)]) for S, _ in runs]
    said = f"{low} to {high} from epoch {start} to {end} of {epochs}; " + (
        "B fixed as published" if split is None else "shapes made budget-exact"
    )
    return Regime.of(base, mixtures, [n for _, n in runs], name, _cited(FFCV, said), "epochs")


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
    """A window of sizes that slides from the first to the last (timm's scheduled sampler, "progressive").

    One phase is one timm epoch, which is a fixed number of steps. Defaults are timm's; ``weights`` are its choice
    weights (none: equal).
    """
    if phases < 2 or len(sizes) < 2:
        raise ValueError(f"a window slides over at least two sizes in two phases, not {len(sizes)} in {phases}")
    shapes = [_resized(base, S, split) for S in sizes]
    choices = [1.0] * len(sizes) if weights is None else [float(w) for w in weights]
    p = [timm_window(choices, i / (phases - 1), spread, random_mix) for i in range(phases)]
    said = f"spread {spread:g}, random mix {random_mix:g}; " + ("B fixed" if split is None else "shapes budget-exact")
    return Regime.of(base, [Mixture.of(shapes, q) for q in p], name=name, source=_cited(TIMM, said), clock="steps")


def at_base(relative: Mapping[float, float], base: BatchShape, stride: int) -> dict[int, float]:
    """Shares by relative size as shares by size, snapped to the stride; sizes that fall together add up."""
    shares: dict[int, float] = {}
    for ratio, share in relative.items():
        S = snapped(ratio * base.S, stride)
        shares[S] = shares.get(S, 0.0) + share
    return shares


def snapping_said(regime: Regime, ratios: Iterable[float], stride: int) -> Regime:
    """The regime with a note in its ``source`` of the published sizes that the stride moved; there may be none."""
    wanted = [ratio * regime.base.S for ratio in sorted(ratios)]
    moved = [f"{S:.4g} → {snapped(S, stride)}" for S in wanted if abs(S - snapped(S, stride)) > 1e-6]
    note = f"at base {regime.base.S} and stride {stride}: {', '.join(moved)}" if moved else ""
    return replace(regime, source=_cited(regime.source, note))


def _resized(base: BatchShape, S: int, split: float | None) -> BatchShape:
    return BatchShape(S, base.B, base.D) if split is None else base.resized(S, split)


def _cited(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _mixsize(split: float, name: str) -> Callable[[BatchShape, Sequence[int], int], Regime]:
    def build(base: BatchShape, sizes: Sequence[int], stride: int) -> Regime:
        relative = MIXSIZE_CIFAR if base.S <= SMALL_IMAGES else MIXSIZE_144
        return snapping_said(mixsize(base, at_base(relative, base, stride), split, name), relative, stride)

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
    """The published regime of this name at this base. Raises ValueError for an unknown name."""
    if name not in PUBLISHED:
        raise ValueError(f"unknown published regime {name!r}; {did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name](base, sizes, stride)
