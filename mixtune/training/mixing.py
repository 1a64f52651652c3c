"""Mixup and cutmix: training on blends of two images, with blended labels, wherever the batch lies."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixtune.regime import BatchShape
from mixtune.training.ranks import ALONE, Ranks


def blend(
    inputs: Tensor,
    targets: Tensor,
    classes: int,
    mixup: float,
    cutmix: float,
    rng: np.random.Generator,
    ranks: Ranks = ALONE,
    shape: BatchShape | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch [N, 3, S, S] and labels [N] blended with a random permutation of itself; soft labels [N, classes].

    ``mixup`` and ``cutmix`` are the alphas of Beta(alpha, alpha) for the share of the first image, 0 for off; where
    both are on each takes half of the batches. One share serves the batch. mixup: a weighted sum (Zhang et al. 2018);
    cutmix: a box of the second image, the share being that of the area left (Yun et al. 2019).
    Where the batch is one of several ``ranks``' part of a step of ``shape``, the permutation is of the whole step, and
    partners come from any rank.
    """
    with_cutmix = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if with_cutmix else mixup
    share = float(rng.beta(alpha, alpha))
    order = rng.permutation(len(targets) if ranks.alone or shape is None else shape.views)
    if with_cutmix:
        S = inputs.shape[-1]
        top, left, bottom, right = _box(S, share, rng)
        inputs = inputs.clone()
        inputs[:, :, top:bottom, left:right] = ranks.rows(inputs[:, :, top:bottom, left:right], order, shape)
        share = 1 - (bottom - top) * (right - left) / S**2
    else:
        inputs = torch.lerp(ranks.rows(inputs, order, shape), inputs, share)
    others = F.one_hot(ranks.rows(targets, order, shape), classes).float()
    return inputs, torch.lerp(others, F.one_hot(targets, classes).float(), share)


def _box(S: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a square of (1 - share) of the area about a uniform centre, cut at the border."""
    half = math.sqrt(1 - share) * S / 2
    y, x = rng.uniform(0, S, size=2)
    edges = (y - half, x - half, y + half, x + half)
    top, left, bottom, right = (min(max(round(e), 0), S) for e in edges)
    return top, left, bottom, right
