"""Tells whether two runs saw the same images: name, digest and counts of a task's data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mixtune.data import datasets, sources, splits
from mixtune.tasks.config import TaskConfig


@dataclass(frozen=True)
class Identity:
    """The data of a task. ``digest``: 16 hexadecimal digits, of pixels and labels where the images are held in memory,
    of file names and labels where they are files (reading millions of files would take minutes). train, validation,
    test: images; with folds, those that one run trains on, and those that are judged over all folds.
    """

    name: str
    digest: str
    classes: int
    train: int
    validation: int
    test: int


def identity(task: TaskConfig) -> Identity:
    """Return the identity of the data that a trial of this task sees. Raises InputError for missing data."""
    dataset = datasets.load_dataset(task.dataset, task.data, task.classes)
    n = len(dataset.train)
    labels = dataset.train.labels
    if task.samples is not None and task.samples < n:
        _, sample = splits.stratified_split(labels, task.samples / n, seed=1)
        labels = labels[sample]
    if task.folds > 1:
        train, judged = len(splits.fold_split(labels, task.folds, 0, seed=0)[0]), len(labels)
    else:
        train, judged = map(len, splits.stratified_split(labels, task.validation, seed=0))
    digest = _digest(task.dataset, task.data, task.classes)
    return Identity(task.dataset, digest, dataset.classes, train, judged, len(dataset.test))


@lru_cache(maxsize=2)
def _digest(name: str, root: str | None, classes: int | None = None) -> str:
    dataset, digest = datasets.load_dataset(name, root, classes), hashlib.sha256()
    for part in (dataset.train, dataset.test):
        if isinstance(part, sources.Files):
            digest.update("\n".join("/".join(Path(p).parts[-3:]) for p in part.paths).encode())
        else:
            digest.update(part.images.contiguous().numpy().tobytes())
        digest.update(part.labels.numpy().tobytes())
    return digest.hexdigest()[:16]
