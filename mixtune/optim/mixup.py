"""Mixup and cutmix: training on blends of two images, with blended labels, wherever the batch lies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mixtune.regime import BatchShape
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup


@dataclass(frozen=True, eq=False)
class Blend:
    """How a batch of N images is blended with a permutation of itself.

    partner: int64 [N], the other image of each; box: int64 [4], the top, left, bottom and right of what cutmix pastes,
    empty for mixup; weight: of an image's own pixels outside the box, 1 for cutmix; share: of its own label.
    """

    partner: Tensor
    box: Tensor
    weight: float | Tensor
    share: float | Tensor


def draw(N: int, S: int, mixup: float, cutmix: float, rng: np.random.Generator) -> Blend:
    """``mixup`` and ``cutmix`` are the alphas of Beta(alpha, alpha) for the share of the first image, 0 for off; where
    both are on each takes half of the batches. One share serves the batch. mixup: a weighted sum (Zhang et al. 2018);
    cutmix: a box of the second image, the share being that of the area left (Yun et al. 2019).
    """
    with_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if with_cutmix else mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(N))
    if not with_cutmix:
        return Blend(partner, torch.zeros(4, dtype=torch.int64), share, share)
    top, left, bottom, right = box = _box(S, share, rng)
    return Blend(partner, torch.tensor(box), 1.0, 1 - (bottom - top) * (right - left) / S**2)


def apply(
    blend: Blend,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    group: ProcessGroup = SINGLE_PROCESS,
    shape: BatchShape | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch [N, 3, S, S] and labels [N] blended; soft labels [N, classes]. Reads nothing back from the device.

    Where the batch is one of several ``ranks``' part of a step of ``shape``, the blend is of the whole step, on the
    host, and partners come from any rank.
    """
    if not group.is_distributed:
        partner = blend.partner.to(inputs.device, non_blocking=True)
        other, their = inputs[partner], targets[partner]
    else:
        order = blend.partner.numpy()
        other, their = group.permute_views(inputs, order, shape), group.permute_views(targets, order, shape)
    at, known = (torch.arange(n, device=inputs.device) for n in (inputs.shape[-1], classes))
    top, left, bottom, right = blend.box.to(inputs.device, non_blocking=True)
    inside = ((at >= top) & (at < bottom))[:, None] & ((at >= left) & (at < right))
    mixed = torch.where(inside, other, torch.lerp(other, inputs, blend.weight))
    labels, others = ((t[:, None] == known).float() for t in (targets, their))
    return mixed, torch.lerp(others, labels, blend.share)


def _box(S: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a square of (1 - share) of the area about a uniform centre, cut at the border."""
    half = math.sqrt(1 - share) * S / 2
    y, x = rng.uniform(0, S, size=2)
    edges = (y - half, x - half, y + half, x + half)
    top, left, bottom, right = (min(max(round(e), 0), S) for e in edges)
    return top, left, bottom, right
