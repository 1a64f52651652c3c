"""Class subset: a smaller task of some of a data set's classes, the same ones wherever that data set lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mixtune.errors import InputError

if TYPE_CHECKING:
    from mixtune.data.sources import DataSet, Source


def select_classes(names: Sequence[str], n: int) -> list[int]:
    """Return the indices of ``n`` of these classes, ascending: those whose names' SHA-256 digests are the smallest.

    The choice follows from the names alone: it is the same from a folder that holds only some of the classes, and a
    smaller choice is part of a larger one.
    """
    ranked = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode(errors="surrogateescape")).digest())
    return sorted(ranked[:n])


def subset_classes(dataset: DataSet, n: int, name: str) -> DataSet:
    """Return the data set with ``n`` of its classes, numbered from 0 in their order.

    Raises InputError where it has fewer.
    """
    if n > dataset.classes:
        raise InputError(f"task.classes: {name} has {dataset.classes} classes, not {n}")
    selected = select_classes(dataset.names, n)
    new_labels = torch.full((dataset.classes,), -1)
    new_labels[selected] = torch.arange(n)

    def subset(source: Source) -> Source:
        labels = new_labels[source.labels]
        images = source.subset(np.flatnonzero(labels.numpy() >= 0))
        return replace(images, labels=labels[labels >= 0])

    names = tuple(dataset.names[i] for i in selected)
    return replace(dataset, train=subset(dataset.train), test=subset(dataset.test), classes=n, names=names)
