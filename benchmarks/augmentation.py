"""Are the crops of training images those of torchvision, in distribution? A row of the loader's benchmark."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from mixtune.training.images import crops


def row(n: int = 20000) -> dict[str, Any]:
    """How far the crops' distribution is from torchvision's, over the distance that would be noticed.

    The largest of the Kolmogorov-Smirnov distances of the boxes' areas, aspect ratios and places, and of the share of
    mirrored views, over the critical one at 0.1 %: below 1 there is no difference to be seen in ``n`` crops.
    """
    from torchvision.transforms import v2

    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    theirs = v2.RandomResizedCrop(16, scale, ratio)
    torch.manual_seed(0)
    largest = 0.0
    numbers, mirrored = crops.draw(0, 0, n)
    for H, W in ((375, 500), (224, 224), (90, 400)):
        drawn = [theirs.make_params([torch.empty(3, H, W)]) for _ in range(n)]
        sides = (
            np.array([crops.random_box(H, W, row, scale, ratio) for row in numbers.tolist()], float),
            np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn], float),
        )
        features = [(h * w, w / h, top, left) for top, left, h, w in (boxes.T for boxes in sides)]
        largest = max(largest, *(distance(ours, others) for ours, others in zip(*features, strict=True)))
    largest = max(largest, abs(float(mirrored.mean()) - 0.5))
    critical = math.sqrt(-math.log(0.001 / 2) / 2) * math.sqrt(2 / n)
    what = "the crops' distance from torchvision's in distribution, over the one that would be noticed"
    return {"what": what, "ratio": largest / critical, "at_least": 1.0, "aim": 0.9, "crops": n}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov and Smirnov's, of two samples: the largest gap between their cumulative distributions."""
    values = np.concatenate([a, b])
    shares = (np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b))
    return float(np.abs(np.subtract(*shares)).max())
