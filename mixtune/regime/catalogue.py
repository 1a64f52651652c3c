"""The published regimes by name, at any base; ``python -m mixtune.export --published DIR`` writes them as files.

A plain name is budget-exact; a name that ends in ``_authors`` has the published code's own shapes. S, B, D as in
``shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mixtune.errors import did_you_mean
from mixtune.regime import literature as lit
from mixtune.regime.files import save_regime
from mixtune.regime.regime import Regime
from mixtune.regime.rounding import Adapt, cvnets_sizes
from mixtune.regime.shapes import BatchShape, snap_to_stride

IMAGENET, IMAGENET_STRIDE, IMAGENET_DEVICES = BatchShape(224, 256), 32, 4  # the MixSize authors train on 4 x 64 images
CIFAR, CIFAR_STRIDE = BatchShape(32, 64), 8

RegimeBuilder = Callable[[BatchShape, int, int], Regime]  # (base, stride, devices) -> regime


def _mixsize(relative: dict[float, float], split: float) -> RegimeBuilder:
    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        regime = lit.mixsize(base, lit.shares_at_base(relative, base, stride), split)
        return lit.with_snapping_note(regime, relative, stride)

    return build


def _mixsize_authors(relative: dict[float, float], adapt: Adapt) -> RegimeBuilder:
    """Return a builder with the authors' ImageNet sizes: base + k * int(base / 7), whatever the stride."""

    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        shares = {base.S + round(7 * (ratio - 1)) * (base.S // 7): share for ratio, share in relative.items()}
        return lit.mixsize_authors(base, shares, adapt, devices)

    return build


def _cifar_authors(adapt: Adapt) -> RegimeBuilder:
    """Return a builder with the authors' CIFAR sizes 16, 24, 32 and 48; it raises ValueError at another base."""

    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        shares = {round(ratio * CIFAR.S): share for ratio, share in lit.MIXSIZE_CIFAR.items()}
        if base.S != CIFAR.S:
            raise ValueError(f"the authors' CIFAR sizes are for base {CIFAR.S}, not {base.S}; re-base their regime")
        return lit.mixsize_authors(base, shares, adapt, devices)

    return build


def _multiscale_sizes(base: BatchShape, stride: int) -> list[int]:
    """Return 128 to 320 at base 224: the range of CVNets' ImageNet configurations (base 224, ten scales)."""
    return cvnets_sizes(base.S, *_range(base, stride, 320), 10, stride)


def _range(base: BatchShape, stride: int, high: int) -> tuple[int, int]:
    return snap_to_stride(base.S * 128 / 224, stride), snap_to_stride(base.S * high / 224, stride)


def _curriculum(authors: bool) -> RegimeBuilder:
    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        ranges = [_range(base, stride, high) for high in (192, 256, 320)]
        return lit.multiscale_curriculum(base, ranges, 10, stride, devices if authors else None)

    return build


def _entr(relative: tuple[float, ...], split: float | None) -> RegimeBuilder:
    """Return a builder with these sizes relative to the base: the paper has 100, 150, 200, 250 at base 250."""

    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        regime = lit.growing(base, [snap_to_stride(r * base.S, stride) for r in relative], split)
        return lit.with_snapping_note(regime, relative, stride)

    return build


def _ffcv(split: float | None) -> RegimeBuilder:
    """Return a builder of the ramp of FFCV's rn50_88_epochs.yaml: 160 to 192 from epoch 65 to 76 of 88."""

    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        low, high = (snap_to_stride(base.S * S / 224, stride) for S in (160, 192))
        return lit.progressive(base, low, high, 65, 76, 88, stride, split)

    return build


def _window(split: float | None) -> RegimeBuilder:
    """Return a builder of timm's window with its default spread and random mix.

    timm publishes no sizes; these are 128 to 224 at base 224, in ten phases.
    """

    def build(base: BatchShape, stride: int, devices: int) -> Regime:
        sizes = sorted({snap_to_stride(base.S * S / 224, stride) for S in (128, 160, 192, 224)})
        return lit.window(base, sizes, 10, split=split)

    return build


_CIFAR: dict[str, RegimeBuilder] = {
    "mixsize_cifar_b": _mixsize(lit.MIXSIZE_CIFAR, 1.0),
    "mixsize_cifar_b_authors": _cifar_authors("B+"),
    "mixsize_cifar_d": _mixsize(lit.MIXSIZE_CIFAR, 0.0),
    "mixsize_cifar_d_authors": _cifar_authors("D+"),
    "mixsize_cifar_bd": _mixsize(lit.MIXSIZE_CIFAR, 0.5),
    "mixsize_cifar_bd_authors": _cifar_authors("both"),
}
# The authors' code has no ImageNet regime that adapts both B and D, so there is no ``_bd_authors``.
_IMAGENET: dict[str, RegimeBuilder] = {
    "fixed": lambda base, stride, devices: lit.fixed(base),
    "mixsize144_b": _mixsize(lit.MIXSIZE_144, 1.0),
    "mixsize144_b_authors": _mixsize_authors(lit.MIXSIZE_144, "B+"),
    "mixsize144_d": _mixsize(lit.MIXSIZE_144, 0.0),
    "mixsize144_d_authors": _mixsize_authors(lit.MIXSIZE_144, "D+"),
    "mixsize144_bd": _mixsize(lit.MIXSIZE_144, 0.5),
    "mixsize224_b": _mixsize(lit.MIXSIZE_224, 1.0),
    "mixsize224_b_authors": _mixsize_authors(lit.MIXSIZE_224, "B+"),
    "mixsize224_d": _mixsize(lit.MIXSIZE_224, 0.0),
    "mixsize224_d_authors": _mixsize_authors(lit.MIXSIZE_224, "D+"),
    "mixsize224_bd": _mixsize(lit.MIXSIZE_224, 0.5),
    "multiscale_fbs": lambda base, stride, devices: lit.multiscale(base, _multiscale_sizes(base, stride), None),
    "multiscale_vbs": lambda base, stride, devices: lit.multiscale(base, _multiscale_sizes(base, stride)),
    "multiscale_vbs_authors": lambda base, stride, devices: lit.multiscale_authors(
        base, _multiscale_sizes(base, stride), devices
    ),
    "multiscale_vbswc": _curriculum(authors=False),
    "multiscale_vbswc_authors": _curriculum(authors=True),
    "entr_gradual": _entr((0.4, 0.6, 0.8, 1.0), 1.0),
    "entr_gradual_authors": _entr((0.4, 0.6, 0.8, 1.0), None),
    "entr_stepwise": _entr((0.4, 1.0), 1.0),
    "entr_stepwise_authors": _entr((0.4, 1.0), None),
    "progressive": _ffcv(1.0),
    "progressive_authors": _ffcv(None),
    "window": _window(1.0),
    "window_authors": _window(None),
}
LITERATURE = _IMAGENET | _CIFAR


def from_literature(name: str, base: BatchShape, stride: int, devices: int = 1) -> Regime:
    """Return the published regime of this name at this base.

    Sizes are multiples of ``stride`` (the authors' MixSize sizes follow their own rule); ``devices`` share the batch
    where the authors' rounding is per device. Raise ValueError for an unknown name and where the base does not fit.
    """
    if name not in LITERATURE:
        raise ValueError(f"unknown published regime {name!r}; {did_you_mean(name, LITERATURE)}")
    return replace(LITERATURE[name](base, stride, devices), name=name)


def published_run_length(base: BatchShape) -> tuple[int, float]:
    """Return training images and epochs of the papers' runs: ImageNet for 90, CIFAR for 200 where the base is small."""
    return (50_000, 200.0) if base.S <= lit.SMALL_IMAGES else (1_281_167, 90.0)


def at_published_bases() -> Iterator[Regime]:
    """Yield every regime at the base that it was published for: ImageNet's 224x256 or CIFAR's 32x64."""
    yield from (from_literature(name, IMAGENET, IMAGENET_STRIDE, IMAGENET_DEVICES) for name in _IMAGENET)
    yield from (from_literature(name, CIFAR, CIFAR_STRIDE) for name in _CIFAR)


def write_published(folder: str | Path) -> list[Path]:
    """Write ``at_published_bases`` as regime files, one per name; return their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = []
    for regime in at_published_bases():
        paths.append(Path(folder) / f"{regime.name}.yaml")
        save_regime(paths[-1], regime)
    return paths
