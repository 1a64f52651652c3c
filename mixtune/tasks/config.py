"""TaskConfig: the ``task`` section of a search space or regime file, read as its kind of task has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixtune.data.datasets import data_folder
from mixtune.evaluation.metrics import Metrics
from mixtune.tasks.registry import DEFAULT, task_class


@dataclass(frozen=True)
class TaskConfig:
    """What every kind of task is told: what is trained on what, and which part of the training set judges it.

    kind: of task, a name that ``registry`` knows; a section without it is of classification. data: folder of the data
    set (default $MIXTUNE_DATA, else ./data). validation: share of the training images held out to judge trials; folds:
    cross-validation instead, judged on ``fold`` (from 0) of that many. samples: use only this many of the training
    images (for short searches). workers: decoding workers (default: one less than the trial's CPU threads). weights:
    where the network starts from, a file or "pretrained".

    A kind of task has a subclass, which says what else it may be told. ``kind`` has no default there, so that it
    is part of a run's and a study's identity; classification's has one, because older files do not name it.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    kind: str = field(kw_only=True)
    dataset: str
    network: str
    data: str | None = None
    validation: float = 0.1
    samples: int | None = None
    workers: int | None = None
    weights: str | None = None
    folds: int = 1
    fold: int = 0

    def __post_init__(self) -> None:
        if self.folds < 1 or not 0 <= self.fold < self.folds:
            raise ValueError(f"fold counts from 0 to below folds, not {self.fold} of {self.folds}")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation is the share of the training set held out, in (0, 1), not {self.validation!r}"
            )
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, not {self.workers}")

    @property
    def held_out(self) -> float | tuple[int, int]:
        """Return the share of the training images that is held out, or which fold of how many."""
        return (self.fold, self.folds) if self.folds > 1 else self.validation

    @property
    def in_memory(self) -> bool:
        """Return whether the images are held in memory; else they are files, which are read while training."""
        return False

    @property
    def needs_data(self) -> bool:
        """Return whether ``data`` names a folder that must be there; a data set that a library holds needs none."""
        return True

    def readers(self, threads: int) -> int:
        """Return how many decoding workers a run has that is given so many CPU threads."""
        return max(0, threads - 1) if self.workers is None else self.workers

    @property
    def metrics(self) -> Metrics:
        """Return what the task measures at every size."""
        return task_class(self.kind).metrics

    def with_absolute_paths(self) -> TaskConfig:
        """Return the same with absolute paths: other processes run in other folders."""
        data = str(data_folder(self.data)) if self.needs_data else self.data
        start = self.weights if self.weights in (None, "pretrained") else absolute_path(self.weights)
        return replace(self, data=data, weights=start)

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> type[TaskConfig]:
        """Return the class that reads such a section. Raise ValueError for a kind of task that is not known."""
        return task_class(section.get("kind", DEFAULT)).Config if cls is TaskConfig else cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Have pydantic read a field of this type as the class that the section's ``kind`` names."""
        if cls is not TaskConfig:
            return handler(source)
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_of_kind)


def absolute_path(path: str) -> str:
    """Return an absolute path."""
    return str(Path(path).expanduser().absolute())


def _of_kind(section: Any) -> TaskConfig:
    """Read a section. Raise ValidationError, whose keys pydantic puts below the section's, or ValueError."""
    from pydantic import TypeAdapter

    if not isinstance(section, Mapping):
        raise ValueError(f"must be a section with a dataset and a network, not {section!r}")
    config: TaskConfig = TypeAdapter(TaskConfig.of_section(section)).validate_json(json.dumps(section), strict=True)
    return config
