"""Normalise: turn pixel values into the inputs of a network, in memory that is used again."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MAX_SPARE = 4  # buffers that wait for the next batch, at most


class RecycledMemory:
    """Float tensors in memory that is used again once the tensor, and every view and graph that holds it, is gone.

    A batch is tens of megabytes; taken from the operating system anew, its pages would be zeroed one by one at their
    first touch, which takes several times as long as filling it.
    """

    def __init__(self) -> None:
        self._spare: deque[np.ndarray] = deque(maxlen=MAX_SPARE)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """Return uninitialised float32 on the CPU."""
        size = math.prod(shape)
        memory = self._spare.pop() if self._spare else np.empty(0, np.float32)
        if len(memory) < size:
            memory = torch.empty(size).numpy()
        part = memory[:size]
        weakref.finalize(part, self._spare.append, memory).atexit = False  # torch holds the part as long as its storage
        return torch.from_numpy(part).view(*shape)


class Normalise:
    """(pixels - mean) / std per channel. mean, std: of pixel values from 0 to 1; the pixels go from 0 to 255."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self._mean, self._std = (torch.tensor(x, device=device).view(1, 3, 1, 1) * 255.0 for x in (mean, std))
        self._memory = RecycledMemory()
        self._rows: dict[int, list[Tensor]] = {}  # by pixels of a row: mean and std, over and over

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return uint8 or float [N, 3, S, S] as float, channels last, on the same device; the pixels do not change."""
        if pixels.device.type != "cpu":
            x = pixels.float().contiguous(memory_format=torch.channels_last)
            x = x.clone(memory_format=torch.channels_last) if x is pixels else x
            return x.sub_(self._mean).div_(self._std)
        N, _, H, W = pixels.shape
        normalised = self._memory.empty((N, H, W, 3))
        if W not in self._rows:
            # The same numbers as by broadcasting, eight times as fast: the innermost loop is not over three values.
            self._rows[W] = [x.view(1, 3).expand(W, 3).reshape(3 * W) for x in (self._mean, self._std)]
        mean, std = self._rows[W]
        normalised.copy_(pixels.permute(0, 2, 3, 1))
        normalised.view(N * H, 3 * W).sub_(mean).div_(std)
        return normalised.permute(0, 3, 1, 2)
