"""How fast do image files become batches? This loader against torchvision's ImageFolder, Pillow and torch's DataLoader.

    python -m benchmarks.loader --data FOLDER     holds train/CLASS/* and val/CLASS/*, real photographs; about 5 minutes

Both sides make the same augmentation (RandomResizedCrop, mirroring, normalising) with as many workers as there are
cores (torchvision's are processes, ours threads), and hand over float batches in this process's memory. The time runs
from the first batch to the last. From the originals, from mosaics of them as large as ImageNet's images and twice as
large, and from all of them prepared.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import augmentation
from benchmarks.common import conclude, quartiles_of, side_by_side
from mixtune.cli import Parser, parse_args, run_command
from mixtune.data import augment, crops, datasets, prepare_images, prepared_folder
from mixtune.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from mixtune.data.decode import decode, describe_decoder
from mixtune.data.file_issues import FileIssues
from mixtune.data.normalise import Normalise
from mixtune.data.sources import Files
from mixtune.regime import BatchShape, Schedule

SIZES = (96, 128, 160, 224, 288)
CORES = len(os.sched_getaffinity(0))
BATCH, MOSAICS = 64, {(500, 375): 200, (1000, 750): 100}  # width and height, and how many
FORMS = {"original": (2.0, 3.0), "jpeg": (5.0, 10.0), "ppm": (5.0, 10.0)}  # goal and aim at 128 px, over torchvision
MIXTURE = tuple(BatchShape(S, round(BATCH * 128**2 / S**2)) for S in (96, 128, 160, 224))


def loading_rate(batches: Iterable[Sequence[Any]]) -> float:
    """Images per second, from the arrival of the first batch to that of the last."""
    began, n = 0.0, 0
    for number, batch in enumerate(batches):
        if number == 0:
            began = time.perf_counter()
        else:
            n += len(batch[1])
    return n / (time.perf_counter() - began)


def torchvisions(folder: Path, S: int, images: int) -> float:
    """The usual loader's images per second."""
    from torch.utils.data import DataLoader, RandomSampler
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(S, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    dataset = ImageFolder(str(folder / "train"), transform)
    sampler = RandomSampler(dataset, replacement=True, num_samples=images)
    return loading_rate(DataLoader(dataset, BATCH, sampler=sampler, num_workers=CORES))


def ours(source: Files, schedule: Schedule, workers: int, issues: FileIssues | None = None) -> float:
    """This loader's images per second."""
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, augment.CPU)
    made = augment.file_batches(source, schedule, augment.Augment(), True, 0, 0, workers, issues=issues)
    return loading_rate((normalise(x), y) for x, y in made)


def steps(shape: BatchShape, images: int) -> Schedule:
    """A schedule of one shape."""
    return Schedule((shape,), np.zeros(max(4, images // shape.B), np.int16), np.ones(1))


def dimensions(source: Files) -> tuple[int, int]:
    """Width and height of the first image."""
    with Image.open(source.paths[0]) as image:
        return image.size


def mosaics(source: Files, out: Path, size: tuple[int, int], n: int) -> None:
    """Photographs tiled, at their own resolution, into images of this width and height."""
    rng = random.Random(0)  # noqa: S311
    for i in range(n):
        place = out / "train" / f"c{i % 2}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        canvas = Image.new("RGB", size)
        for y in range(0, size[1], 224):
            for x in range(0, size[0], 224):
                with Image.open(rng.choice(source.paths)) as image:
                    canvas.paste(image.convert("RGB"), (x, y))
        canvas.save(place, quality=95)
    (out / "val").symlink_to(out / "train")


def folders(photographs: Path, made: Path) -> list[tuple[str, Path, tuple[int, ...]]]:
    """Return name, folder and sizes of what is measured: the photographs, and mosaics of them, which are made."""
    original = datasets.load_dataset("folder", str(photographs)).train
    assert isinstance(original, Files)
    size = " x ".join(map(str, dimensions(original)))
    found: list[tuple[str, Path, tuple[int, ...]]] = [(f"{size} photographs", photographs, SIZES)]
    for (width, height), count in MOSAICS.items():
        place = made / f"mosaics{width}"
        mosaics(original, place, (width, height), count)
        found.append((f"{width} x {height} mosaics", place, (128, 224)))
    return found


def encoded(folder: Path, out: Path, target: prepared_folder.PrepareTarget) -> tuple[Files, dict[str, float]]:
    """The training images of a folder, prepared, and how fast that was."""
    names = [name for name in prepare_images.find_loose_images(folder) if name.startswith("train")]
    for parent in {(out / name).parent for name in names}:
        parent.mkdir(parents=True)
    began = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        list(threads.map(lambda name: prepare_images.prepare_file(str(folder), str(out), name, target), names))
    speed = len(names) / (time.perf_counter() - began)
    (out / "val").symlink_to(out / "train")
    found = datasets.load_dataset("folder", str(out)).train
    assert isinstance(found, Files)
    return found, {"bytes_per_image": size(found), "prepared_per_second": speed}


def size(source: Files) -> float:
    """Bytes of a file, on average."""
    return sum(Path(path).stat().st_size for path in source.paths) / len(source)


def likeness(originals: Files, others: Files, S: int) -> float:
    """Decibels (PSNR) of what is evaluated at S against the same of the originals; the median over fifty."""
    pairs = list(zip(originals.paths, others.paths, strict=True))[:: max(1, len(others) // 50)]
    found = [augmentation.decibels(*(crops.central_crop(decode(path), S) for path in pair)) for pair in pairs]
    return statistics.median(found)


def row(what: str, found: dict[str, list[float]], over: str, under: str, goal: tuple[float, float]) -> dict[str, Any]:
    """A ratio of two sides, by their medians."""
    both = {name: quartiles_of(found[name]) for name in (over, under)}
    ratio = both[over]["median"] / both[under]["median"]
    return {"what": what, "ratio": ratio, "at_least": goal[0], "aim": goal[1], "images_per_second": both}


def measured(name: str, folder: Path, S: int, args: argparse.Namespace, made: Path) -> list[dict[str, Any]]:
    """The rows of one folder at one size."""
    source = datasets.load_dataset("folder", str(folder)).train
    assert isinstance(source, Files)
    shares = 1.0, 128**2 / S**2, 224**2 / math.prod(dimensions(source))  # so that all take about as long
    n = max(16 * BATCH, round(args.images * min(shares)))
    sides: dict[str, Callable[[], float]] = {
        "torchvision": partial(torchvisions, folder, S, n),
        "original": partial(ours, source, steps(BatchShape(S, BATCH), n), CORES),
    }
    stored: dict[str, dict[str, float]] = {"original": {"bytes_per_image": size(source)}}
    for kind in FORMS:
        if kind == "original":
            continue
        target = prepared_folder.PrepareTarget(S, kind)  # type: ignore[arg-type]
        files, stored[kind] = encoded(folder, made / f"{folder.name}{S}{kind}", target)
        stored[kind]["decibels"] = likeness(source, files, S)
        sides[kind] = partial(ours, files, steps(BatchShape(S, BATCH), 3 * n), CORES)
    print(f"{name} at {S} px", flush=True)
    found = side_by_side(sides, args.repeats if S == 128 else max(1, args.repeats // 2 + 1))
    about = {"images": name, "S": S}
    return [
        about
        | {"form": form}
        | stored[form]
        | row(f"{name} ({form}), at {S} px", found, form, "torchvision", goal if S == 128 else (1.0, 1.0))
        for form, goal in FORMS.items()
        if form in found
    ]


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.loader", __doc__.split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*")
    p.add_argument("--repeats", type=int, default=9)
    p.add_argument("--images", type=int, default=1200, help="images of a measurement at 128 px")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    args = parse_args(parser(), argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        measured_folders = folders(Path(args.data).absolute(), Path(made))
        original, large = (datasets.load_dataset("folder", str(measured_folders[i][1])).train for i in (0, -1))
        assert isinstance(original, Files)
        assert isinstance(large, Files)
        for name, folder, sizes in measured_folders:
            for S in (128, *(S for S in sizes if S != 128)):
                rows += measured(name, folder, S, args, Path(made))
        index = np.repeat(np.arange(len(MIXTURE), dtype=np.int16), 12)
        mixed = Schedule(MIXTURE, np.random.default_rng(0).permutation(index), np.ones(len(MIXTURE)))
        ordered = Schedule(MIXTURE, index, np.ones(len(MIXTURE)))
        print("the mixture in random order, and sorted", flush=True)
        sides = {"random": partial(ours, original, mixed, CORES), "sorted": partial(ours, original, ordered, CORES)}
        found = side_by_side(sides, 2 * args.repeats)
        rows.append(row("a mixture in random order against sorted", found, "random", "sorted", (0.97, 0.99)))
        shape, issues = BatchShape(128, 32, 4), FileIssues()
        schedule = steps(shape, 320)
        ours(original, schedule, CORES, issues)
        ideal = issues.decodes / schedule.views * shape.D
        what = f"decodes per view at D = {shape.D}, over 1/D"
        rows.append({"what": what, "ratio": ideal, "at_least": 1.01, "aim": 1.0})
        rows += [augmentation.row(), augmentation.reduced_row(large.paths)]
    settings = {"batch": BATCH, "workers": CORES, "decoder": describe_decoder(), "images": args.images}
    conclude("loader", "How fast do image files become batches?", settings, rows)
    return 0


if __name__ == "__main__":
    run_command(main)
