"""Task: what the loop needs of what is learnt, so that it knows nothing of classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from mixtune.regime import BatchShape, Schedule
from mixtune.training.curve import Curve
from mixtune.training.ranks import Ranks
from mixtune.training.recipe import Recipe


class Task(Protocol):
    """What the loop needs of a task."""

    n_train: int
    ranks: Ranks  # batches hold this rank's part of each step; evaluation is shared by all and the same on all

    def network(self, seed: int) -> nn.Module:
        """A fresh network on the task's device; the same seed gives the same weights."""

    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs and targets of every step from ``start`` on, on the task's device."""

    def blend(
        self, recipe: Recipe, inputs: Tensor, targets: Tensor, rng: np.random.Generator, shape: BatchShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch with the recipe's mixup or cutmix; ``shape``: of the whole step, of which it is a rank's part."""

    def loss(self, recipe: Recipe, outputs: Any, targets: Tensor) -> Tensor:
        """The scalar to minimise."""

    def evaluate(self, network: nn.Module, sizes: Sequence[int]) -> Curve:
        """The network's results at every size, on held-out images."""
