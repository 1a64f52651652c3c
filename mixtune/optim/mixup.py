"""Mixup and cutmix: blend each image of a batch with another one, and their labels alike, on the batch's device."""

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

    partner: int64 [N], the other image of each; box: int64 [4], top, left, bottom and right of what cutmix pastes, all
    0 for mixup; weight: of an image's own pixels outside the box, 1 for cutmix; share: of its own label.
    """

    partner: Tensor
    box: Tensor
    weight: float | Tensor
    share: float | Tensor


def draw_blend(N: int, S: int, mixup: float, cutmix: float, rng: np.random.Generator) -> Blend:
    """Draw how a batch of N images at S x S is blended; one share serves the batch.

    ``mixup`` and ``cutmix`` are the alphas of Beta(alpha, alpha) for the share of the first image, 0 for off; with both
    on, each gets half of the batches. mixup: a weighted sum (Zhang et al. 2018); cutmix: a box of the second image, and
    the share is that of the area left (Yun et al. 2019).
    """
    with_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if with_cutmix else mixup
    share = float(rng.beta(alpha, alpha))
    partner = torch.from_numpy(rng.permutation(N))
    if not with_cutmix:
        return Blend(partner, torch.zeros(4, dtype=torch.int64), share, share)
    top, left, bottom, right = box = _box(S, share, rng)
    return Blend(partner, torch.tensor(box), 1.0, 1 - (bottom - top) * (right - left) / S**2)


def apply_blend(
    blend: Blend,
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    group: ProcessGroup = SINGLE_PROCESS,
    shape: BatchShape | None = None,
) -> tuple[Tensor, Tensor]:
    """Return a batch [N, 3, S, S] with labels [N] blended, and soft labels [N, classes]. Read nothing from the device.

    In a ``group`` of several processes the batch is this one's part of a step of ``shape``, ``blend`` lies on the host
    and is of the whole step, and partners come from any process.
    """
    if not group.is_distributed:
        partner = blend.partner.to(inputs.device, non_blocking=True)
        other_inputs, other_targets = inputs[partner], targets[partner]
    else:
        order = blend.partner.numpy()
        other_inputs = group.permute_views(inputs, order, shape)
        other_targets = group.permute_views(targets, order, shape)
    position, label = (torch.arange(n, device=inputs.device) for n in (inputs.shape[-1], classes))
    top, left, bottom, right = blend.box.to(inputs.device, non_blocking=True)
    inside = ((position >= top) & (position < bottom))[:, None] & ((position >= left) & (position < right))
    mixed = torch.where(inside, other_inputs, torch.lerp(other_inputs, inputs, blend.weight))
    one_hot, other_one_hot = ((t[:, None] == label).float() for t in (targets, other_targets))
    return mixed, torch.lerp(other_one_hot, one_hot, blend.share)


def _box(S: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, left, bottom, right of a square of (1 - share) of the area, its centre uniform, cut at the border."""
    half = math.sqrt(1 - share) * S / 2
    y, x = rng.uniform(0, S, size=2)
    edges = (y - half, x - half, y + half, x + half)
    top, left, bottom, right = (min(max(round(e), 0), S) for e in edges)
    return top, left, bottom, right
