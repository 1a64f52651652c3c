"""Sources of labelled images, in memory or on disk, and a data set made of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images held in memory. images: uint8 [N, H, W, 3]; labels: int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Pixels:
        """Return the images at these indices."""
        chosen = torch.from_numpy(indices)
        return Pixels(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Files:
    """Images on disk. paths: N files; labels: int64 [N]."""

    paths: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Files:
        """Return the images at these indices."""
        return Files(tuple(self.paths[i] for i in indices), self.labels[torch.from_numpy(indices)])


Source = Pixels | Files


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training and test images of one data set; mean and std per channel are of pixel values from 0 to 1."""

    train: Source
    test: Source
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flips: bool = True  # whether a mirrored image still shows its class
    prepared_for: int | None = None  # the largest size that its image files are meant for (mixtune.prepare)
    names: tuple[str, ...] = ()  # of the classes, in the order of their labels
