"""In memory: views of images that are held in memory, chosen on the host and made on the device where they are trained.

On a GPU the images stay there as uint8, and a step needs a few numbers from the host. On a CPU a view is copied once.
S, B, D as in ``regime.shapes``; V = B*D views, the D of an image side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mixtune.data.augment import Augment, resize
from mixtune.data.sources import Pixels
from mixtune.regime import WHOLE, BatchShape, Schedule, Shard

T = TypeVar("T")
_CACHE: WeakKeyDictionary[Pixels, dict[Hashable, object]] = WeakKeyDictionary()


def cached(source: Pixels, key: Hashable, make: Callable[[], T]) -> T:
    """Return what ``make`` returned for these images and this key. All trials of a process share it: do not write."""
    values = _CACHE.setdefault(source, {})
    if key not in values:
        values[key] = make()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # other trials read it on their own streams
    return values[key]  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class ViewChoices:
    """The random choices of one step's views.

    shape: of the whole step. choices: int64 [4, V], on the host: the image, the row and the column where its crop
    begins in the padded image, and whether it is mirrored (1) or not (0).
    """

    shape: BatchShape
    choices: np.ndarray


class PixelViews:
    """A source of views of images held in memory, on the device where they are trained on.

    ``pad`` pixels of zeros surround each image; a view is a crop of the native size, mirrored or not, resized to S.
    """

    def __init__(self, source: Pixels, augment: Augment, flip: bool, device: torch.device) -> None:
        self._source, self._flip, self._device = source, flip, device
        _, self._H, self._W, _ = source.images.shape
        self._pad = self._H // 8 if augment.pad is None else augment.pad

        self._windows, self._labels = cached(source, ("windows", self._pad, device), self._resident)

    def _resident(self) -> tuple[Tensor, Tensor]:
        """Return all crops there are, uint8 [N, 2 pad + 1, 2 pad + 1, 3, H, W], and the labels, on the device.

        The crops are a view of the padded images, not copies.
        """
        p, H, W = self._pad, self._H, self._W
        images = self._source.images.to(self._device).permute(0, 3, 1, 2).contiguous()
        padded = F.pad(images, (p, p, p, p))
        n, c, y, x = padded.stride()
        windows = padded.as_strided((len(images), 2 * p + 1, 2 * p + 1, 3, H, W), (n, y, x, c, y, x))
        return windows, self._source.labels.to(self._device)

    def draw(self, schedule: Schedule, seed: int, start: int = 0, shard: Shard = WHOLE) -> Iterator[ViewChoices]:
        """Yield the choices of every step from ``start`` on, from (seed, step) alone: those of the shard's images."""
        samples_of = schedule.sample_batches(len(self._source), seed, start)
        for step, samples in zip(range(start, len(schedule)), samples_of, strict=True):
            shape = schedule.shapes[schedule.index[step]]
            rng = np.random.default_rng((seed, step))
            choices = np.zeros((4, shape.views), np.int64)
            choices[0] = samples.repeat(shape.D)
            choices[1:3] = rng.integers(0, 2 * self._pad + 1, size=(2, shape.views))
            if self._flip:
                choices[3] = rng.integers(0, 2, size=shape.views, dtype=bool)
            # The random numbers are those of the whole step, whoever makes which of its views.
            part = shard.part(shape.B)
            yield ViewChoices(shape, choices[:, part.start * shape.D : part.stop * shape.D])

    def make(self, view_choices: ViewChoices) -> tuple[Tensor, Tensor]:
        """Return float [V, 3, S, S] with pixel values from 0 to 255, and labels, int64 [V], on the device."""
        if self._device.type == "cpu":
            return self._make_on_cpu(view_choices)
        return self.make_at(
            view_choices.shape.S, torch.from_numpy(view_choices.choices).to(self._device, non_blocking=True)
        )

    def make_at(self, S: int, choices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from choices int64 [4, V] on the device. Nothing is read back, so it can be captured."""
        image, y, x, mirrored = choices
        crops = self._windows[image, y, x]
        crops = torch.where(mirrored.bool()[:, None, None, None], crops.flip(-1), crops)
        return resize(crops.float(), S), self._labels[image]

    def _make_on_cpu(self, view_choices: ViewChoices) -> tuple[Tensor, Tensor]:
        """Copy whole rows of a crop with numpy, which is several times as fast as torch's indexing."""
        image, y, x, mirrored = view_choices.choices
        crops = self._windows.numpy()[image, y, x]
        flips = mirrored.astype(bool)
        crops[flips] = crops[flips][..., ::-1]
        return resize(torch.from_numpy(crops).float(), view_choices.shape.S), self._labels[torch.from_numpy(image)]


def pixel_eval_batches(source: Pixels, S: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield whole images resized to S (unlike the MixSize authors' CIFAR evaluation, which crops below 32 px)."""
    for images, labels in zip(source.images.split(batch), source.labels.split(batch), strict=True):
        yield resize(images.permute(0, 3, 1, 2).float(), S), labels
