"""Splits: divide a data set into images to train on, to evaluate on, and to choose batch-norm statistics on."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from mixtune.data.sources import DataSet, Source


def stratified_split(labels: Tensor, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices split into (rest, share), with the same share of every class and one image or more on both sides.

    The split depends on the labels, the share and the seed alone. Raises ValueError when a class has a single image.
    """
    y, rng = labels.numpy(), np.random.default_rng(seed)
    chosen = []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < 2:
            raise ValueError(f"class {label} has a single image, which cannot be divided into two parts")
        chosen.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    part = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(y)), part), part


def fold_split(labels: Tensor, folds: int, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices split into (rest, fold ``number`` of ``folds``), every class spread evenly over the folds.

    The folds of one (labels, folds, seed) are disjoint and cover everything. Raises ValueError when a class has fewer
    images than there are folds.
    """
    y, rng = labels.numpy(), np.random.default_rng((seed, folds))
    chosen = []
    for i, label in enumerate(np.unique(y)):
        members = rng.permutation(np.flatnonzero(y == label))
        if len(members) < folds:
            raise ValueError(f"class {label} has {len(members)} images, too few for {folds} folds")
        chosen.append(members[(number + i) % folds :: folds])  # by turns, so that remainders do not all go to one fold
    part = np.sort(np.concatenate(chosen))
    return np.setdiff1d(np.arange(len(y)), part), part


@lru_cache(maxsize=2)
def split_dataset(
    dataset: DataSet, samples: int | None, validation: float | tuple[int, int], judge: str, choosing: bool
) -> tuple[Source, Source, Source | None]:
    """Return (train, held out, images to choose on before the test set is evaluated).

    None of them depends on the seed, so that all runs of a study are evaluated alike. They are cached: the next trial
    gets the same ones, and what was made of them. validation: the share that is held out, or (fold, folds).
    """
    train, held_out, choice = dataset.train, dataset.test, None
    if samples is not None and samples < len(train):
        _, indices = stratified_split(train.labels, samples / len(train), seed=1)
        train = train.subset(indices)
    if judge == "validation":
        if isinstance(validation, tuple):
            rest, part = fold_split(train.labels, validation[1], validation[0], seed=0)
        else:
            rest, part = stratified_split(train.labels, validation, seed=0)
        train, held_out = train.subset(rest), train.subset(part)
    elif choosing:
        share = 1 / validation[1] if isinstance(validation, tuple) else validation
        rest, part = stratified_split(train.labels, min(share, 2048 / len(train)), seed=0)
        train, choice = train.subset(rest), train.subset(part)
    return train, held_out, choice
