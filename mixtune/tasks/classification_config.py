"""ClassificationConfig: the ``task`` section of a file that has images classified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mixtune.data.augment import Augment
from mixtune.data.datasets import IN_MEMORY
from mixtune.tasks.config import TaskConfig


@dataclass(frozen=True)
class ClassificationConfig(TaskConfig):
    """The ``task`` section of classification.

    dataset: one that a library holds or downloads (digits are with scikit-learn), or a folder of image files, one
    folder per class. samples are taken evenly from all classes. classes: so many of the data set's classes
    (``class_subset.select_classes`` says which).
    """

    kind: Literal["classification"] = field(default="classification", kw_only=True)
    dataset: Literal["digits", "cifar10", "cifar100", "folder", "imagenet"]
    network: str
    augment: Augment = field(default_factory=Augment)
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"classes must be at least 2, not {self.classes}")

    @property
    def in_memory(self) -> bool:
        """Return whether the images are held in memory, which are those of 32 pixels or fewer."""
        return self.dataset in IN_MEMORY

    @property
    def needs_data(self) -> bool:
        """Return whether ``data`` names a folder: scikit-learn holds the digits."""
        return self.dataset != "digits"
