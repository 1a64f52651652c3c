"""Crops: which part of an image a view shows, and its resizing to S x S, as torchvision does both.

A view's box depends on eleven or more random numbers that are drawn before the image's size is known, so that a step's
randomness is keyed by (seed, step) whoever decodes the image. S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from mixtune.data.decode import SCALE_FACTORS, Decoded, DecodeRegion

CROP_RATIO = 0.875  # evaluation of image files: shorter side to S / 0.875, then the central S x S
ATTEMPTS = 10  # torchvision's, at a box that fits into the image
DRAWS = 2 * ATTEMPTS + 2  # areas, aspect ratios, and the box's place in both directions
Box = tuple[int, int, int, int]  # top, left, height, width


@lru_cache
def opencv() -> Any:
    """Return OpenCV, an optional extra, or None where it is not installed. It is loaded when it is first needed.

    It works in the calling thread alone from then on: images are decoded by as many threads as a trial has.
    """
    try:
        import cv2
    except ImportError:
        return None
    cv2.setNumThreads(1)
    return cv2


def draw_crops(seed: int, step: int, views: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a step's random numbers: uniform [views, DRAWS] for the boxes, and which views are mirrored [views]."""
    rng = np.random.default_rng((seed, step))
    return rng.random((views, DRAWS), np.float32), rng.random(views, np.float32) < 0.5


def random_box(H: int, W: int, numbers: Sequence[float], scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """Return a box as torchvision's RandomResizedCrop: ``scale`` of the area, an aspect of ``ratio``, anywhere inside.

    numbers: DRAWS uniform ones. An image too narrow for ten attempts gives its middle, as there.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(ATTEMPTS):
        area = H * W * (scale[0] + (scale[1] - scale[0]) * numbers[attempt])
        aspect = math.exp(low + (high - low) * numbers[ATTEMPTS + attempt])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= W and 0 < h <= H:
            return int(numbers[-2] * (H - h + 1)), int(numbers[-1] * (W - w + 1)), h, w
    w, h = W, H
    if ratio[0] > W / H:
        h = min(H, max(1, round(W / ratio[0])))
    elif ratio[1] < W / H:
        w = min(W, max(1, round(H * ratio[1])))
    return (H - h) // 2, (W - w) // 2, h, w


def region_for_boxes(boxes: Sequence[Box], S: int) -> DecodeRegion:
    """Return what to decode for these boxes: as small as leaves each of them S pixels or more in both directions."""
    shortest = min(min(h, w) for _, _, h, w in boxes)
    factor = next((k for k in SCALE_FACTORS if shortest // k >= S), 1)
    return DecodeRegion(factor, min(b[0] for b in boxes), max(b[0] + b[2] for b in boxes))


def region_for_evaluation(H: int, W: int, S: int) -> DecodeRegion:
    """Return what to decode for an evaluation at S: at least twice the pixels that are kept, so that what the resizing
    averages is as good as the original.
    """
    side = math.floor(S / CROP_RATIO)
    return DecodeRegion(next((k for k in SCALE_FACTORS if min(H, W) // k >= 2 * side), 1), 0, H)


def resize_into(out: np.ndarray, pixels: np.ndarray) -> None:
    """Resize uint8 [h, w, 3] into ``out``, uint8 [H, W, 3], as ``F.interpolate(mode="bilinear", antialias=True)``."""
    if pixels.shape == out.shape:
        out[...] = pixels
        return
    # What interpolate calls in the end. A copy without gaps and writing in place each save a fifth, at 128 px.
    source, target = (torch.from_numpy(x).permute(2, 0, 1)[None] for x in (np.ascontiguousarray(pixels), out))
    torch.ops.aten._upsample_bilinear2d_aa.out(source, list(out.shape[:2]), False, None, None, out=target)


def resize_crop_into(out: np.ndarray, pixels: np.ndarray) -> None:
    """Resize as ``resize_into``, for training.

    Where nothing shrinks there is nothing to antialias, and OpenCV, if installed, takes half the time; it rounds to
    within one level of 255.
    """
    (h, w, _), (H, W, _) = pixels.shape, out.shape
    if h <= H and w <= W and (h, w) != (H, W) and (cv2 := opencv()):
        cv2.resize(pixels, (W, H), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        resize_into(out, pixels)


def mirror_in_place(view: np.ndarray) -> None:
    """Exchange left and right of a view [S, S, 3]."""
    if cv2 := opencv():
        cv2.flip(view, 1, dst=view)
    else:
        x = torch.from_numpy(view)
        x.copy_(x.flip(1))


def central_crop(image: Decoded, S: int) -> np.ndarray:
    """Return the central S x S of an image whose shorter side is resized to S / 0.875. uint8 [S, S, 3]"""
    short, side = min(image.H, image.W), math.floor(S / CROP_RATIO)
    h, w = (side if x == short else int(side * x / short) for x in (image.H, image.W))
    resized = np.empty((h, w, 3), np.uint8)
    resize_into(resized, image.pixels)
    top, left = round((h - S) / 2), round((w - S) / 2)
    return resized[top : top + S, left : left + S]
