"""Views: what the network sees of an image. Random crops and flips for training, whole images for evaluation.

Randomness is keyed by (seed, step), so that a resumed run sees what an uninterrupted one would have seen.
S, B, D as in ``regime.shapes``; a batch is float [B*D, 3, S, S], the D views of an image side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mixtune.data import loader
from mixtune.data.file_issues import LEFT_OUT, FileIssues
from mixtune.data.loader import Views
from mixtune.data.reader_pool import Inline
from mixtune.data.sources import Files
from mixtune.regime import WHOLE, Schedule, Shard

Batch = tuple[Tensor, Tensor]  # uint8 or float [B*D, 3, S, S] with pixel values from 0 to 255; int64 [B*D]
CPU = torch.device("cpu")


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


def file_batches(
    source: Files,
    schedule: Schedule,
    augment: Augment,
    flip: bool,
    seed: int,
    start: int,
    pool: Inline,
    device: torch.device = CPU,
    shard: Shard = WHOLE,
    notes: FileIssues | None = None,
) -> Iterator[Batch]:
    """Training batches of image files, uint8 on ``device``, from step ``start`` on: the shard's images of each.

    A batch on the CPU is valid until the next one is asked for: its memory is used again.
    """
    notes = notes or FileIssues()
    images, size = loader.memory_ahead(schedule, pool.processes, shard)
    steps = loader.training_steps(schedule, len(source), seed, start, augment.scale, augment.ratio, flip, shard)
    yield from _on_device(loader.load(pool, source.paths, steps, images, size, notes), source, device)


def file_eval_batches(
    source: Files, S: int, batch: int, pool: Inline, device: torch.device = CPU, notes: FileIssues | None = None
) -> Iterator[Batch]:
    """Image files as they are evaluated at S: the shorter side at S / 0.875, the central S x S cut out; uint8.

    The label of an image that cannot be read is LEFT_OUT: another one of its batch is shown in its place.
    A batch on the CPU is valid until the next one is asked for: its memory is used again.
    """
    notes = notes or FileIssues()
    steps = loader.evaluation_steps(len(source), S, batch)
    size = min(batch, len(source)) * S**2 * 3 * (3 if pool.processes else 1)
    yield from _on_device(loader.load(pool, source.paths, steps, 2 * batch, size, notes), source, device, LEFT_OUT)


def _on_device(
    made: Iterator[Views], source: Files, device: torch.device, stands_in: int | None = None
) -> Iterator[Batch]:
    """stands_in: the label of a view that shows another image than was asked for; None for that image's own."""
    for pixels, samples, own in made:
        labels = source.labels[torch.from_numpy(samples)]
        if stands_in is not None:
            labels[torch.from_numpy(~own)] = stands_in
        yield pixels.to(device, non_blocking=True).permute(0, 3, 1, 2), labels
