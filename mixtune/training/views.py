"""Views: what the network sees of an image. Random crops and flips for training, whole images for evaluation.

Randomness is keyed by (seed, step), so that a resumed run sees what an uninterrupted one would have seen.
S, B, D as in ``regime.shapes``; a batch is float [B*D, 3, S, S], the D views of an image side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from mixtune.errors import InputError
from mixtune.regime import WHOLE, BatchShape, Schedule, Shard
from mixtune.training.data import Files

Batch = tuple[Tensor, Tensor]  # uint8 or float [B*D, 3, S, S] with pixel values from 0 to 255; int64 [B*D]
CROP_RATIO = 0.875  # evaluation of image files: shorter side to S / 0.875, then the central S x S


@dataclass(frozen=True)
class Augment:
    """Training augmentation.

    In memory: ``pad`` pixels of zeros on each side, then a random crop of the native size, resized to S. Files: a
    random crop of ``scale`` (share of the area) and ``ratio`` (aspect), resized to S (Inception's, as in MixSize and
    Bag of Tricks). ``flip``: mirrored with probability 1/2; None leaves it to the data set (digits are not mirrored).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    pad: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool | None = None

    def __post_init__(self) -> None:
        if self.pad is not None and self.pad < 0:
            raise ValueError(f"pad must be at least 0 pixels, not {self.pad}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is two rising shares of the area in (0, 1], not {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is two rising positive aspect ratios, not {list(self.ratio)}")


def resize(images: Tensor, S: int) -> Tensor:
    """Float [N, 3, H, W] to [N, 3, S, S], bilinear; antialiased when it shrinks."""
    if images.shape[-2:] == (S, S):
        return images
    return F.interpolate(images, size=(S, S), mode="bilinear", antialias=min(images.shape[-2:]) > S)


class _FileViews(Dataset[Batch]):
    """Item (sample, S, D, seed, step) -> D random views uint8 [D, 3, S, S]; one decode serves all of them."""

    def __init__(self, source: Files, augment: Augment, flip: bool) -> None:
        self.source, self.augment, self.flip = source, augment, flip

    def __getitem__(self, key: tuple[int, int, int, int, int]) -> Batch:
        from torchvision.transforms import v2

        sample, S, D, seed, step = key
        image = _decode(self.source.paths[sample])
        transform = v2.Compose(
            [
                v2.RandomResizedCrop((S, S), self.augment.scale, self.augment.ratio, antialias=True),
                v2.RandomHorizontalFlip(0.5 if self.flip else 0.0),
                v2.PILToTensor(),
            ]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence((seed, step, sample)).generate_state(1)[0]))
            return torch.stack([transform(image) for _ in range(D)]), self.source.labels[sample].repeat(D)


class _FileEval(Dataset[Batch]):
    """Item i -> the image with its shorter side at S / 0.875 and the central S x S cut out, uint8 [1, 3, S, S]."""

    def __init__(self, source: Files, S: int) -> None:
        from torchvision.transforms import v2

        self.source = source
        self.transform = v2.Compose(
            [v2.Resize(math.floor(S / CROP_RATIO), antialias=True), v2.CenterCrop(S), v2.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Batch:
        return self.transform(_decode(self.source.paths[i]))[None], self.source.labels[i : i + 1]


def _decode(path: str):  # type: ignore[no-untyped-def]
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as err:
        raise InputError(f"task.data: {path} is not a readable image: {err}") from None


class _Steps:
    """Batch sampler: the keys of every step's samples, so that one loader and one worker pool serve all sizes."""

    def __init__(self, schedule: Schedule, n_samples: int, seed: int, start: int, shard: Shard) -> None:
        self.schedule, self.n_samples, self.seed, self.start = schedule, n_samples, seed, start
        self.shard = shard

    def __iter__(self) -> Iterator[list[tuple[int, int, int, int, int]]]:
        steps = range(self.start, len(self.schedule))
        batches = self.schedule.sample_batches(self.n_samples, self.seed, self.start)
        for step, samples in zip(steps, batches, strict=True):
            shape: BatchShape = self.schedule.shapes[self.schedule.index[step]]
            yield [(int(i), shape.S, shape.D, self.seed, step) for i in samples[self.shard.part(shape.B)]]


def _join(items: Sequence[Batch]) -> Batch:
    return torch.cat([x for x, _ in items]), torch.cat([y for _, y in items])


def file_batches(
    source: Files,
    schedule: Schedule,
    augment: Augment,
    flip: bool,
    seed: int,
    start: int,
    workers: int,
    shard: Shard = WHOLE,
) -> Iterator[Batch]:
    """Training batches of image files, decoded by ``workers`` processes, from step ``start`` on: the shard's images."""
    steps = _Steps(schedule, len(source), seed, start, shard)
    views = _FileViews(source, augment, flip)
    pinned = torch.cuda.is_available()
    yield from DataLoader(views, batch_sampler=steps, num_workers=workers, collate_fn=_join, pin_memory=pinned)  # type: ignore[arg-type]


def file_eval_batches(source: Files, S: int, batch: int, workers: int) -> Iterator[Batch]:
    """Image files as they are evaluated at S."""
    pinned = torch.cuda.is_available()
    yield from DataLoader(_FileEval(source, S), batch, num_workers=workers, collate_fn=_join, pin_memory=pinned)
