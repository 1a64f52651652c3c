"""Views of images together with their targets: crops and flips that boxes and masks follow, for dense tasks.

A sample is an image and its targets as torchvision's tv_tensors, which every transform of torchvision.transforms.v2
changes together. Randomness is keyed by (seed, step, view), so that it is the same whoever makes which views, in
whatever order. S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from mixtune.data.crops import DRAWS, random_box
from mixtune.regime import WHOLE, Schedule, Shard

Sample = Mapping[str, Any]  # "image": tv_tensors.Image [3, H, W]; targets: tv_tensors, or anything else, which stays
Augment = Callable[[Sample, int, np.random.Generator], Sample]  # (sample, S, randomness of this view) -> its view


def target_views(
    load: Callable[[int], Sample],
    n: int,
    augment: Augment,
    schedule: Schedule,
    seed: int,
    start: int = 0,
    shard: Shard = WHOLE,
) -> Iterator[list[Sample]]:
    """Yield the shard's views of every step from ``start`` on, the D copies of an image side by side.

    load: the sample of this number, of ``n``; called once for all copies of an image.
    """
    for step, numbers in enumerate(schedule.sample_batches(n, seed, start), start=start):
        shape = schedule.shapes[schedule.index[step]]
        views = []
        for place in range(shape.B)[shard.part(shape.B)]:
            sample = load(int(numbers[place]))
            for copy in range(shape.D):
                rng = np.random.default_rng((seed, step, place * shape.D + copy))
                views.append(augment(sample, shape.S, rng))
        yield views


def crop_and_flip(
    sample: Sample,
    S: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> dict[str, Any]:
    """Return a random crop of a sample (as ``crops.random_box``) at S x S, mirrored with probability 1/2.

    Masks take the nearest value, images are antialiased; boxes are cut at the crop, also to nothing.
    """
    H, W = F.get_size(sample["image"])
    top, left, height, width = random_box(H, W, rng.random(DRAWS).tolist(), scale, ratio)
    mirrored = flip and rng.random() < 0.5

    def change(value: Any) -> Any:
        if not isinstance(value, tv_tensors.TVTensor):
            return value
        value = F.resized_crop(value, top, left, height, width, [S, S], antialias=True)
        return F.horizontal_flip(value) if mirrored else value

    return {name: change(value) for name, value in sample.items()}


def seeded(transform: v2.Transform) -> Augment:
    """Return a transform of torchvision as an augmentation, its randomness that of the view.

    torchvision draws from torch's global generator, which is put back; so not from several threads at once. The
    transform has to make the sample's size S itself.
    """

    def augment(sample: Sample, S: int, rng: np.random.Generator) -> Sample:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            view: Sample = transform(dict(sample))
        return view

    return augment
