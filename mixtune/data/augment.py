"""Augmentation: what the network sees of an image. Random crops and flips for training, whole images for evaluation.

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
from mixtune.data.loader import MemoryAhead
from mixtune.data.sources import Files
from mixtune.regime import WHOLE, Schedule, Shard

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
    """Resize float [N, 3, H, W] to [N, 3, S, S], bilinear; antialiased when it shrinks."""
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
    workers: int,
    device: torch.device = CPU,
    shard: Shard = WHOLE,
    issues: FileIssues | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield training batches of image files from step ``start`` on: of each step the images of the shard.

    A batch is uint8 [n*D, 3, S, S] on ``device``, and the labels, int64 [n*D]. On the CPU it is valid until the next
    one is asked for: its memory is used again. workers: see ``load_views``, which names what is raised.
    """
    ahead = loader.memory_ahead(schedule, workers, shard)
    steps = loader.training_steps(schedule, len(source), seed, start, augment.scale, augment.ratio, flip, shard)
    views = loader.load_views(source.paths, steps, workers, ahead, issues or FileIssues(), device)
    for pixels, samples, _ in views:
        yield _to_device(pixels, device), source.labels[torch.from_numpy(samples)]


def file_eval_batches(
    source: Files, S: int, batch: int, workers: int, device: torch.device = CPU, issues: FileIssues | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield image files as they are evaluated at S: the shorter side at S / 0.875, the central S x S cut out.

    Batches are as those of ``file_batches``. The label of an image that cannot be read is LEFT_OUT: another one of its
    batch is shown in its place.
    """
    at_once = 3 if workers else 1
    ahead = MemoryAhead(at_once, at_once * min(batch, len(source)) * S**2 * 3)
    steps = loader.evaluation_steps(len(source), S, batch)
    for pixels, samples, replaced in loader.load_views(
        source.paths, steps, workers, ahead, issues or FileIssues(), device
    ):
        labels = source.labels[torch.from_numpy(samples)]
        labels[torch.from_numpy(replaced)] = LEFT_OUT
        yield _to_device(pixels, device), labels


def _to_device(pixels: Tensor, device: torch.device) -> Tensor:
    """Return uint8 [N, S, S, 3] as [N, 3, S, S] on the device."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
