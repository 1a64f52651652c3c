"""Image views: decode image files, cut and resize what the network sees of each, and write it into one array.

Decoding (simplejpeg, Pillow) and resizing (torch, OpenCV) release Python's global lock, so that threads share the work.
S, D as in ``regime.shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import torch

from mixtune.data import crops
from mixtune.data.decode import Decoded, DecodeRegion, UnreadableError, open_image

READ_AHEAD = 8  # files that are read before the first of them is decoded
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class RandomCrops:
    """The random crops of n images, D of each, drawn before the images' sizes are known.

    uniform: random numbers in [0, 1), [n, D, DRAWS]; mirrored: bool [n, D], None where nothing is mirrored;
    scale, ratio: as in ``Augment``.
    """

    uniform: np.ndarray
    mirrored: np.ndarray | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)

    def subset(self, images: slice | np.ndarray) -> RandomCrops:
        """Return the crops of some of the images."""
        mirrored = None if self.mirrored is None else self.mirrored[images]
        return replace(self, uniform=self.uniform[images], mirrored=mirrored)


@dataclass
class DecodeResult:
    """What became of some image files, by their position: the number of images decoded, why some cannot be read, and
    in what others differ from a plain RGB photograph.
    """

    decodes: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)
    conversions: dict[int, tuple[str, ...]] = field(default_factory=dict)


@torch.inference_mode()  # shortens each call of torch by a tenth
def make_views(paths: Sequence[str], random_crops: RandomCrops | None, out: np.ndarray) -> DecodeResult:
    """Write the views of n images into ``out``, uint8 [n, D, S, S, 3]; those of an unreadable image stay as they are.

    Without random crops the one view of each image is its central crop, as in an evaluation.
    """
    result, S = DecodeResult(), out.shape[2]
    # Reading takes a third of the time while no pixels have driven its code out of the processor's cache.
    for first in range(0, len(paths), READ_AHEAD):
        images = [_Image(i, S, random_crops) for i in range(first, min(first + READ_AHEAD, len(paths)))]
        opened = [_call(image.index, result, open_image, paths[image.index], image.region) for image in images]
        for image, decode in zip(images, opened, strict=True):
            if decode and (decoded := _call(image.index, result, decode)):
                image.write_views(decoded, out[image.index])
                result.decodes += 1
                if decoded.conversions:
                    result.conversions[image.index] = decoded.conversions
    return result


def _call(index: int, result: DecodeResult, function: Callable[..., T], *args: Any) -> T | None:
    """Return what the function returns, or None and a record of why the image cannot be read."""
    try:
        return function(*args)
    except UnreadableError as err:
        result.unreadable[index] = str(err)
        return None


@dataclass(eq=False)
class _Image:
    """One image, from when its size is known until its views are written."""

    index: int
    S: int
    random_crops: RandomCrops | None
    boxes: list[crops.Box] = field(default_factory=list)

    def region(self, H: int, W: int) -> DecodeRegion:
        """Draw the boxes in an image of H x W pixels, and return what has to be decoded for them."""
        if (draws := self.random_crops) is None:
            return crops.region_for_evaluation(H, W, self.S)
        self.boxes = [crops.random_box(H, W, x, draws.scale, draws.ratio) for x in draws.uniform[self.index].tolist()]
        return crops.region_for_boxes(self.boxes, self.S)

    def write_views(self, image: Decoded, views: np.ndarray) -> None:
        """Fill the views, uint8 [D, S, S, 3]."""
        if self.random_crops is None:
            views[0] = crops.central_crop(image, self.S)
            return
        mirrored = self.random_crops.mirrored
        flips = [False] * len(views) if mirrored is None else mirrored[self.index].tolist()
        for view, box, flip in zip(views, self.boxes, flips, strict=True):
            crops.resize_crop_into(view, image.crop(*box))
            if flip:  # here, where the view is in the cache, it costs a tenth of a pass over the batch
                crops.mirror_in_place(view)
