"""Task: what the loop needs of what is learnt, so that it knows nothing of classification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mixtune.data.file_issues import FileIssues
from mixtune.data.in_memory import ViewChoices
from mixtune.evaluation.curve import Curve
from mixtune.optim.mixup import Blend
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.process_group import ProcessGroup


class Task(Protocol):
    """What the loop needs of a task."""

    n_train: int
    notes: FileIssues  # on the files that were read
    group: ProcessGroup  # batches hold this rank's part of each step; evaluation is shared by all and the same on all

    def network(self, seed: int) -> nn.Module:
        """A fresh network on the task's device; the same seed gives the same weights."""

    def batches(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs and targets of every step from ``start`` on, on the task's device."""

    def drawn(self, schedule: Schedule, seed: int, start: int = 0) -> Iterator[ViewChoices] | None:
        """The same batches before they are made: None where that is not done on the device."""

    def made(self, S: int, choices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets of what was drawn, from choices on the device; reads nothing back from it."""

    def blend(
        self, blend: Blend, inputs: Tensor, targets: Tensor, shape: BatchShape | None = None
    ) -> tuple[Tensor, Tensor]:
        """The batch blended as drawn, without reading from the device; ``shape``: of the whole step, of which it is a
        rank's part.
        """

    def loss(self, recipe: Recipe, outputs: Any, targets: Tensor) -> Tensor:
        """The scalar to minimise."""

    def findings(self) -> dict[str, int]:
        """What is odd about the data that all ranks have read so far, counted by kind (unreadable files, greyscale
        ones). Called by all of them.
        """

    def evaluate(self, network: nn.Module, sizes: Sequence[int]) -> Curve:
        """The network's results at every size, on held-out images."""
