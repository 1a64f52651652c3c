"""What is known of a classification data set without training on it: its identity, and how many images it will have."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from mixtune.cli import relative_to_cwd
from mixtune.data import datasets, sources, splits
from mixtune.data.datasets import IN_MEMORY
from mixtune.errors import InputError
from mixtune.tasks.base import DataIdentity
from mixtune.tasks.classification_config import ClassificationConfig

# Training images and classes of the data sets that a dry run may meet before they are there.
TRAINING_IMAGES = {"digits": 1438, "cifar10": 50_000, "cifar100": 50_000, "imagenet": 1_281_167}
CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000}


def identity(config: ClassificationConfig) -> DataIdentity:
    """Return the identity of the data that a run sees. Raise InputError for missing data."""
    dataset = datasets.load_dataset(config.dataset, config.data, config.classes)
    n, labels = len(dataset.train), dataset.train.labels
    if config.samples is not None and config.samples < n:
        _, subset = splits.stratified_split(labels, config.samples / n, seed=1)
        labels = labels[subset]
    if config.folds > 1:
        train, validation = len(splits.fold_split(labels, config.folds, 0, seed=0)[0]), len(labels)
    else:
        train, validation = map(len, splits.stratified_split(labels, config.validation, seed=0))
    digest = _digest(config.dataset, config.data, config.classes)
    return DataIdentity(config.dataset, digest, dataset.classes, train, validation, len(dataset.test))


@lru_cache(maxsize=2)
def _digest(name: str, root: str | None, classes: int | None = None) -> str:
    dataset, state = datasets.load_dataset(name, root, classes), hashlib.sha256()
    for part in (dataset.train, dataset.test):
        if isinstance(part, sources.Files):
            state.update("\n".join("/".join(Path(p).parts[-3:]) for p in part.paths).encode())
        else:
            state.update(part.images.contiguous().numpy().tobytes())
        state.update(part.labels.numpy().tobytes())
    return state.hexdigest()[:16]


def expected_training_images(config: ClassificationConfig) -> tuple[int, str] | None:
    """Return how many images would be trained on, and of what that is the number where the data are missing.

    None where they are there, or nothing is known of them. Raise InputError for more classes than there can be.
    """
    name, root = config.dataset, datasets.data_folder(config.data)
    present = not config.in_memory and any((root / part).exists() for part in ("train", "val"))
    if present or name not in TRAINING_IMAGES:
        return None
    n = TRAINING_IMAGES[name]
    if config.classes is not None:
        if config.classes > CLASSES[name]:
            raise InputError(f"task.classes: {name} has {CLASSES[name]} classes, not {config.classes}")
        n = n * config.classes // CLASSES[name]
    share = 1 - 1 / config.folds if config.folds > 1 else 1 - config.validation
    missing = (
        "" if name in IN_MEMORY else f" of the full ImageNet (nothing is at {relative_to_cwd(root / 'train')} yet)"
    )
    return round(min(n, config.samples or n) * share), missing
