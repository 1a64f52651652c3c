"""Data sets: load a data set by its name, as pixels held in memory (small images) or as image files."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixtune.data import tar_index
from mixtune.data.class_subset import subset_classes
from mixtune.data.decode import UnreadableError, decode
from mixtune.data.prepared_folder import read_state
from mixtune.data.sources import DataSet, Files, Pixels
from mixtune.data.splits import stratified_split
from mixtune.errors import InputError

DATASETS = ("digits", "cifar10", "cifar100", "folder", "imagenet")
IN_MEMORY = DATASETS[:3]  # the others are files, read as they are needed
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@lru_cache(maxsize=2)
def load_dataset(name: str, root: str | None, classes: int | None = None) -> DataSet:
    """Return the data set of this name; ``root`` is the folder that holds it. It is cached for the next trial.

    classes: so many of its classes (``subset_classes``), else all. Raises InputError that says what is missing and
    where it is expected.
    """
    loaders: dict[str, Callable[[Path], DataSet]] = {
        "digits": lambda root: _digits(),
        "cifar10": lambda root: _cifar(root, "CIFAR10", 10),
        "cifar100": lambda root: _cifar(root, "CIFAR100", 100),
        "folder": lambda root: _folder(root, "folder"),
        "imagenet": lambda root: _folder(root, "imagenet"),
    }
    dataset = loaders[name](data_folder(root))
    return dataset if classes is None else subset_classes(dataset, classes, name)


def data_folder(root: str | None) -> Path:
    """Return the folder of a data set: ``root`` or, where that is None, MIXTUNE_DATA or data/."""
    return Path(root or os.environ.get("MIXTUNE_DATA", "data")).expanduser().absolute()


def _digits() -> DataSet:
    """Return 1,797 handwritten digits, 8 x 8, from scikit-learn; a fifth of each class is the test set."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))
    everything = Pixels(grey[..., None].expand(-1, -1, -1, 3).contiguous(), torch.from_numpy(raw.target).long())
    train, test = stratified_split(everything.labels, 0.2, seed=0)
    parts, names = (everything.subset(train), everything.subset(test)), tuple("0123456789")
    return DataSet(*parts, 10, (0.305,) * 3, (0.376,) * 3, flips=False, names=names)


def _cifar(root: Path, kind: str, classes: int) -> DataSet:
    import torchvision

    dataset_class = getattr(torchvision.datasets, kind)

    def load(download: bool) -> list[Any]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return [dataset_class(str(root), train=train, download=download) for train in (True, False)]

    folder = f"{root}/{dataset_class.base_folder}"
    try:
        parts = load(download=False)
    except RuntimeError:  # torchvision's "not found or corrupted"
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(20)
        try:
            root.mkdir(parents=True, exist_ok=True)
            parts = load(download=True)
        except Exception as err:
            raise InputError(
                f"task.data: no intact {kind} in {folder}, and it could not be downloaded ({type(err).__name__}); "
                f"unpack {dataset_class.filename} there, or point to the folder above it with --set task.data=FOLDER"
            ) from None
        finally:
            socket.setdefaulttimeout(timeout)
    train, test = (Pixels(torch.from_numpy(part.data), torch.tensor(part.targets)) for part in parts)
    mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    if kind == "CIFAR10":
        mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return DataSet(train, test, classes, mean, std, names=tuple(parts[0].classes))


def _folder(root: Path, name: str) -> DataSet:
    """Return the images in ``root/train/CLASS/*`` and ``root/val/CLASS/*``, the layout of torchvision's ImageFolder and
    of ImageNet, or in ``root/train/*.tar`` and ``root/val/*.tar``.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    if (state := read_state(root)) and not state.get("complete"):
        raise InputError(f"task.data: {root} is prepared only in part; run the same mixtune.prepare command again")
    parts: list[Files] = []
    names: list[tuple[str, ...]] = []
    for part in ("train", "val"):
        folder = root / part
        if not folder.is_dir():
            raise InputError(
                f"task.data: no {name} images in {root}: the folder {part}/ with one folder per class is missing; "
                "point to the folder that holds train/ and val/ with --set task.data=FOLDER"
            )
        try:
            if tar_index.list_archives(folder):
                classes, pairs = tar_index.list_images(folder, IMG_EXTENSIONS)
            else:
                classes, index = find_classes(str(folder))
                pairs = make_dataset(str(folder), index, extensions=IMG_EXTENSIONS)
        except InputError as err:
            raise InputError(f"task.data: {err}") from None
        except OSError as err:  # includes FileNotFoundError for a class without images
            raise InputError(f"task.data: {folder} is not a readable image folder: {err}") from None
        parts.append(Files(tuple(p for p, _ in pairs), torch.tensor([label for _, label in pairs])))
        names.append(tuple(classes))
    if names[0] != names[1]:
        one = sorted(set(names[0]) ^ set(names[1]))[0]
        raise InputError(f"task.data: {root}/train and {root}/val must hold the same classes; {one!r} is in only one")
    for files in parts:
        _check_some(files.paths[:16])
    size = int(state["size"]) if state else None
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    return DataSet(parts[0], parts[1], len(names[0]), mean, std, prepared_for=size, names=names[0])


def _check_some(paths: Sequence[str]) -> None:
    """Raise InputError when none of these is an image: the folder holds something else.

    A bad one among them is left out while training.
    """
    reason = ""
    for path in paths:
        try:
            decode(path)
        except UnreadableError as err:
            reason = reason or str(err)
        else:
            return
    raise InputError(f"task.data: {paths[0]} is not a readable image ({reason}), nor are the files after it")
