"""Classes: a smaller task of some of a data set's classes, the same ones wherever that data set lies."""

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


def chosen(names: Sequence[str], n: int) -> list[int]:
    """The numbers of ``n`` of these classes, ascending: those whose names' SHA-256 digests are the smallest.

    So the choice follows from the names alone: it is the same from a folder that holds only some of the classes, and
    a smaller choice is part of a larger one.
    """
    ranked = sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i].encode(errors="surrogateescape")).digest())
    return sorted(ranked[:n])


def fewer(dataset: DataSet, n: int, name: str) -> DataSet:
    """The data set with ``n`` of its classes, numbered from 0 in their order. Raises InputError where it has fewer."""
    if n > dataset.classes:
        raise InputError(f"task.classes: {name} has {dataset.classes} classes, not {n}")
    kept = chosen(dataset.names, n)
    number = torch.full((dataset.classes,), -1)
    number[kept] = torch.arange(n)

    def part(source: Source) -> Source:
        new = number[source.labels]
        found = source.subset(np.flatnonzero(new.numpy() >= 0))
        return replace(found, labels=new[new >= 0])

    names = tuple(dataset.names[i] for i in kept)
    return replace(dataset, train=part(dataset.train), test=part(dataset.test), classes=n, names=names)
