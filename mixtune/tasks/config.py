"""TaskConfig: the ``task`` section of a search space or regime file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixtune.data import augment as views


@dataclass(frozen=True)
class TaskConfig:
    """The ``task`` section: what is trained on what.

    data: folder of the data set (default $MIXTUNE_DATA, else ./data; digits need none). samples: use only this
    many of the training images, evenly from all classes (for short searches). validation: share of them held out to
    judge trials; folds: cross-validation instead, judged on ``fold`` (from 0) of that many. workers: threads that
    decode image files (default: one less than the trial's CPU threads). classes: so many of the data set's classes
    (``class_subset.select_classes`` says which).
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    dataset: Literal["digits", "cifar10", "cifar100", "folder", "imagenet"]
    network: str
    data: str | None = None
    validation: float = 0.1
    samples: int | None = None
    augment: views.Augment = field(default_factory=views.Augment)
    workers: int | None = None
    weights: str | None = None
    folds: int = 1
    fold: int = 0
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold counts from 0 to below folds, not {self.fold} of {self.folds}")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the share of the training set held out, in (0, 1), not {self.validation!r}"
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes must be at least 2, not {self.classes}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")

    @property
    def held_out(self) -> float | tuple[int, int]:
        """The share of the training images that is held out, or which fold of how many."""
        return (self.fold, self.folds) if self.folds > 1 else self.validation

    def readers(self, threads: int) -> int:
        """Return the number of decoding threads of a process that has so many CPU threads."""
        return max(0, threads - 1) if self.workers is None else self.workers
