"""Are the crops of training images those of torchvision, in distribution, and as good where less is decoded? Rows of
the loader's benchmark.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixtune.data import crops
from mixtune.data.decode import DecodeRegion, decode

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's


def row(n: int = 20000) -> dict[str, Any]:
    """How far the crops' distribution is from torchvision's, over the distance that would be noticed.

    The largest of the Kolmogorov-Smirnov distances of the boxes' areas, aspect ratios and places, and of the share of
    mirrored views, over the critical one at 0.1 %: below 1 there is no difference to be seen in ``n`` crops.
    """
    from torchvision.transforms import v2

    theirs = v2.RandomResizedCrop(16, SCALE, RATIO)
    torch.manual_seed(0)
    largest = 0.0
    numbers, mirrored = crops.draw_crops(0, 0, n)
    for H, W in ((375, 500), (224, 224), (90, 400)):
        drawn = [theirs.make_params([torch.empty(3, H, W)]) for _ in range(n)]
        sides = (
            np.array([crops.random_box(H, W, row, SCALE, RATIO) for row in numbers.tolist()], float),
            np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn], float),
        )
        features = [(h * w, w / h, top, left) for top, left, h, w in (boxes.T for boxes in sides)]
        largest = max(largest, *(distance(ours, others) for ours, others in zip(*features, strict=True)))
    largest = max(largest, abs(float(mirrored.mean()) - 0.5))
    critical = math.sqrt(-math.log(0.001 / 2) / 2) * math.sqrt(2 / n)
    what = "the crops' distance from torchvision's in distribution, over the one that would be noticed"
    return {"what": what, "ratio": largest / critical, "at_least": 1.0, "aim": 0.9, "crops": n}


def reduced_row(paths: Sequence[str], S: int = 128) -> dict[str, Any]:
    """How near views that are decoded at a reduced scale are to those of the same boxes at full size.

    In decibels (PSNR, median over the views that are decoded so), over those between bicubic and bilinear shrinking of
    the full size: above 1 it matters less than which of torchvision's two filters is taken.
    """
    found: list[tuple[float, float]] = []
    numbers, _ = crops.draw_crops(0, 0, len(paths))
    for path, row in zip(paths, numbers.tolist(), strict=True):
        full = decode(path)
        drawn = crops.random_box(full.H, full.W, row, SCALE, RATIO)
        need = crops.region_for_boxes([drawn], S)
        if (k := need.factor) > 1:
            top, left, bottom, right = (round(x / k) * k for x in _corners(drawn))
            box = top, left, bottom - top, right - left
            ours, theirs = np.empty((2, S, S, 3), np.uint8)
            crops.resize_crop_into(ours, decode(path, partial(_same, need)).crop(*box))
            crops.resize_crop_into(theirs, full.crop(*box))
            other = Image.fromarray(full.crop(*box)).resize((S, S), Image.Resampling.BICUBIC)
            found.append((decibels(ours, theirs), decibels(np.asarray(other), theirs)))
    ours, between = (statistics.median(x) for x in zip(*found, strict=True))
    what = f"views at {S} px decoded at a reduced scale, their PSNR over that between bicubic and bilinear shrinking"
    return {"what": what, "ratio": ours / between, "at_least": 1.0, "aim": 1.1, "views": len(found), "decibels": ours}


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal to noise (PSNR) between uint8 images; 78 where they are the same."""
    return 10 * math.log10(255**2 / max(float(np.square(a.astype(float) - b).mean()), 1e-3))


def _same(need: DecodeRegion, H: int, W: int) -> DecodeRegion:
    return need


def _corners(box: crops.Box) -> crops.Box:
    top, left, h, w = box
    return top, left, top + h, left + w


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov and Smirnov's, of two samples: the largest gap between their cumulative distributions."""
    values = np.concatenate([a, b])
    shares = (np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b))
    return float(np.abs(np.subtract(*shares)).max())
