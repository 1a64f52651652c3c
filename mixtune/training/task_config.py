"""TaskConfig: the ``task`` section of a search space or regime file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixtune.training import views


@dataclass(frozen=True)
class TaskConfig:
    """The ``task`` section: what is trained on what.

    data: folder of the data set (default $MIXTUNE_DATA, else ./data; digits need none). samples: use only this
    many of the training images, evenly from all classes (for short searches). validation: share of them held out to
    judge trials. workers: processes that read image files (default: one less than the trial's CPU threads).
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

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the share of the training set held out, in (0, 1), not {self.validation!r}"
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")
