"""The batch shapes of published code, with its own rounding, so that a paper can be repeated exactly.

``BatchShape.resized`` stays within half an image of the budget. Published code misses it by up to 65 %.
S, B, D as in ``shapes``. ``devices``: the code rounds the batch of one device, so B is a multiple of their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mixtune.regime.shapes import BatchShape

Adapt = Literal["B+", "D+", "both"]


def mixsize_shape(base: BatchShape, S: int, adapt: Adapt, devices: int = 1) -> BatchShape:
    """Return the MixSize authors' shape at size S (Hoffer et al. 2019; ``mixsize_config`` in their models/resnet.py).

    B and D are rounded to the nearest whole number, independently: D+ costs from 0.73 to 1.65 of the base at the
    published ImageNet sizes. Below half a copy their code drops D+ and shrinks the batch (``switches_to_b_plus``).
    Raise ValueError where no image is left.
    """
    gain = base.S / S if adapt == "both" else (base.S / S) ** 2
    more_images = adapt != "D+" or switches_to_b_plus(base, S, adapt)
    more_copies = adapt != "B+" and not switches_to_b_plus(base, S, adapt)
    B = round(gain * _per_device(base, devices)) if more_images else _per_device(base, devices)
    if B < 1:
        raise ValueError(f"the MixSize authors' rounding leaves no image of {base} at S = {S}; use a larger batch")
    return BatchShape(S, B * devices, max(1, round(gain * base.D)) if more_copies else base.D)


def switches_to_b_plus(base: BatchShape, S: int, adapt: Adapt) -> bool:
    """Return whether the authors' code, asked for more copies, silently uses B+ at this size."""
    return adapt != "B+" and copies_wanted(base, S, adapt) < 0.5


def copies_wanted(base: BatchShape, S: int, adapt: Adapt) -> float:
    """Return the copies of each image that keep the pixels at size S, before rounding."""
    return float(base.D * (base.S / S) ** (1 if adapt == "both" else 2))


def cvnets_shape(base: BatchShape, S: int, devices: int = 1) -> BatchShape:
    """Return the shape of CVNets' variable-batch sampler (``image_batch_pairs``): B is cut off, not rounded."""
    B = int(round(base.S**2 * _per_device(base, devices) / S**2, 2))
    return BatchShape(S, max(1, B) * devices, base.D)


def cvnets_sizes(base: int, low: int, high: int, n_scales: int, stride: int) -> list[int]:
    """Return the sizes of CVNets' multi-scale samplers: evenly spaced, the base added, rounded to the stride.

    Halves round up, and a size that would lose more than a tenth goes up one stride. Equal sizes count once: 128 to
    320 at stride 32 has seven sizes whatever ``n_scales``. Raise ValueError for a range that does not grow.
    """
    if not 1 <= low <= high:
        raise ValueError(f"a range of sizes must grow from at least 1, not from {low} to {high}")
    if n_scales < 1 or stride < 1:
        raise ValueError(f"n_scales and stride must be at least 1, not {n_scales} and {stride}")
    wanted = {*np.linspace(low, high, n_scales).tolist(), float(base)}
    return sorted({_divisible(size, stride) for size in wanted})


def cvnets_ranges(low: int, high: int, low_factor: float, high_factor: float, stages: int) -> list[tuple[int, int]]:
    """Return the (low, high) ranges of CVNets' growing sampler (``update_scales``): each adds a share of the last.

    A factor of 0.1 grows a range by a tenth. CVNets' default of 1.0 doubles the sizes every time.
    """
    ranges = [(low, high)]
    for _ in range(stages - 1):
        low, high = low + int(low * low_factor), high + int(high * high_factor)
        ranges.append((low, high))
    return ranges


def ffcv_sizes(low: int, high: int, start: int, end: int, epochs: int, stride: int) -> list[int]:
    """Return the size of every epoch of FFCV's ramp (``get_resolution``): linear from start to end, in whole strides.

    Raise ValueError for a ramp that does not grow or does not lie on the stride.
    """
    if low > high or start > end or not 0 <= start <= epochs:
        raise ValueError(f"the ramp must grow: {low} to {high} from epoch {start} to {end} of {epochs}")
    if low % stride or high % stride:
        raise ValueError(f"the ramp's ends, {low} and {high}, must be multiples of the stride {stride}")
    at = np.arange(epochs)
    ramp = np.round(np.interp(at, [start, end], [low, high]) / stride) * stride if end > start else np.zeros(epochs)
    return [low if e <= start else high if e >= end else int(ramp[e]) for e in range(epochs)]


def timm_window(weights: Sequence[float], position: float, spread: float, random_mix: float) -> list[float]:
    """Return the probabilities of timm's progressive sampler (``choice_weights_for_epoch``) at a window ``position``.

    ``position`` runs from 0, the first choice, to 1, the last; ``spread`` is the window's standard deviation in
    choices (0: the nearest one), ``random_mix`` the share of steps drawn uniformly from the choices in use.
    """
    distance = [abs(i - position * (len(weights) - 1)) for i in range(len(weights))]
    if spread:
        window = [w * math.exp(-0.5 * (d / spread) ** 2) for w, d in zip(weights, distance, strict=True)]
    else:
        window = [w * (d == min(distance)) for w, d in zip(weights, distance, strict=True)]
    if sum(window) <= 0:  # the window sees only choices of weight 0
        nearest = min((i for i, w in enumerate(weights) if w > 0), key=lambda i: distance[i])
        window = [float(i == nearest) for i in range(len(weights))]
    in_use = sum(w > 0 for w in weights)
    mixed = [
        (1 - random_mix) * x / sum(window) + random_mix * (w > 0) / in_use for x, w in zip(window, weights, strict=True)
    ]
    return [x / sum(mixed) for x in mixed]


def _per_device(base: BatchShape, devices: int) -> int:
    if devices < 1 or base.B % devices:
        raise ValueError(f"a batch of {base.B} images cannot be shared equally by {devices} devices")
    return base.B // devices


def _divisible(size: float, stride: int) -> int:
    S = max(stride, int(size + stride / 2) // stride * stride)
    return S + stride if 0.9 * size > S else S
