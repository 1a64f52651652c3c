"""Who should decode image files: this loader's threads, torch's DataLoader or SPDL?

    python -m benchmarks.loader_backends --data FOLDER     holds train/CLASS/* and val/CLASS/*, real photographs

All make the same views with the same decoder and hand over normalised float batches; they differ in who decodes and how
the views reach this process. Measured in turn at every size of the loader's table, with 1, 2 and 4 workers. SPDL
(``pip install spdl``) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks import loader as table
from benchmarks.common import conclude, quartiles_of
from mixtune.cli import Parser, parse_args, run_command
from mixtune.data import augment, datasets, loader, prepared_folder
from mixtune.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from mixtune.data.decode import describe_decoder
from mixtune.data.image_views import make_views
from mixtune.data.loader import StepImages
from mixtune.data.normalise import Normalise
from mixtune.data.sources import Files
from mixtune.regime import BatchShape, Schedule

WORKERS = (1, 2, 4)
FORMS = ("original", "ppm")  # the most and the least to decode
Make = Callable[[Files, Sequence[StepImages], int], Iterator[torch.Tensor]]


class StepDataset(Dataset[torch.Tensor]):
    """The views of a step, uint8 [B*D, S, S, 3]; its key is the step itself."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __getitem__(self, step: StepImages) -> torch.Tensor:  # type: ignore[override]
        return _views(self._paths, step, slice(None)).flatten(0, 1)


class StepSampler(Sampler[StepImages]):
    """The keys of given steps."""

    def __init__(self, steps: Sequence[StepImages]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[StepImages]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def _views(paths: Sequence[str], step: StepImages, rows: slice) -> torch.Tensor:
    assert step.random_crops is not None
    chosen = [paths[i] for i in step.samples[step.positions[rows]]]
    views = torch.empty(len(chosen), step.D, step.S, step.S, 3, dtype=torch.uint8)
    make_views(chosen, step.random_crops.subset(rows), views.numpy())
    return views


def from_dataloader(source: Files, steps: Sequence[StepImages], workers: int) -> Iterator[torch.Tensor]:
    """Yield the pixels of steps from torch's DataLoader; a worker makes a whole one."""
    yield from DataLoader(StepDataset(source.paths), batch_size=None, sampler=StepSampler(steps), num_workers=workers)


def from_spdl(source: Files, steps: Sequence[StepImages], workers: int) -> Iterator[torch.Tensor]:
    """Yield the pixels of steps from SPDL's pipeline of threads, which share each step."""
    from spdl.pipeline import PipelineBuilder

    def chunks() -> Iterator[tuple[StepImages, slice]]:
        for step in steps:
            size = max(1, min(loader.MAX_CHUNK, -(-len(step.positions) // workers)))
            yield from ((step, slice(first, first + size)) for first in range(0, len(step.positions), size))

    def make(chunk: tuple[StepImages, slice]) -> tuple[torch.Tensor, bool]:
        step, rows = chunk
        return _views(source.paths, step, rows), rows.stop >= len(step.positions)

    builder = PipelineBuilder().add_source(chunks()).pipe(make, concurrency=workers, output_order="input")
    pipeline = builder.add_sink(loader.MIN_IMAGES // loader.MAX_CHUNK).build(num_threads=workers)
    parts: list[torch.Tensor] = []
    with pipeline.auto_stop():
        for views, last in pipeline:
            parts.append(views)
            if last:
                yield torch.cat(parts).flatten(0, 1)
                parts.clear()


def images_per_second(make: Make, source: Files, schedule: Schedule, workers: int) -> float:
    """Return the images per second of what makes the pixels of steps."""
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, augment.CPU)
    steps = list(loader.training_steps(schedule, len(source), seed=0))
    batches = zip(make(source, steps, workers), steps, strict=True)
    return table.loading_rate((normalise(x.permute(0, 3, 1, 2)), step.samples.repeat(step.D)) for x, step in batches)


def backends(source: Files, schedule: Schedule, workers: int) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name, this loader first."""
    measures: dict[str, Callable[[], float]] = {
        "threads": partial(table.ours, source, schedule, workers),
        "DataLoader": partial(images_per_second, from_dataloader, source, schedule, workers),
    }
    with contextlib.suppress(ImportError):
        import spdl.pipeline  # noqa: F401

        measures["SPDL"] = partial(images_per_second, from_spdl, source, schedule, workers)
    return measures


def compare(measures: dict[str, Callable[[], float]], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the measurements of each, and the median over the repeats of each one's ratio to the first."""
    rates: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for i in range(repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            rates[name].append(measures[name]())
    base = rates[names[0]]
    paired = {name: statistics.median(r / b for r, b in zip(rates[name], base, strict=True)) for name in names}
    return rates, paired


def measured(name: str, folder: Path, S: int, args: argparse.Namespace, made: Path) -> list[dict[str, Any]]:
    """Return the rows of one folder at one size."""
    original = datasets.load_dataset("folder", str(folder)).train
    assert isinstance(original, Files)
    shares = 1.0, 128**2 / S**2, 224**2 / math.prod(table.dimensions(original))
    rows = []
    for form in FORMS:
        files, images = original, max(12 * table.BATCH, round(args.images * min(shares)))
        if form != "original":
            target = prepared_folder.PrepareTarget(S, form)  # type: ignore[arg-type]
            files, _ = table.encoded(folder, made / f"{folder.name}{S}{form}", target)
            images *= 2
        for workers in WORKERS:
            schedule = table.steps(BatchShape(S, table.BATCH), images)
            rates, paired = compare(backends(files, schedule, workers), args.repeats)
            row: dict[str, Any] = {
                "what": f"DataLoader over threads: {name} ({form}), at {S} px, {workers} workers",
                "images": name, "S": S, "form": form, "workers": workers,
                "ratio": paired["DataLoader"], "at_least": 1.0, "aim": 0.9,
                "ratios": paired, "load": os.getloadavg()[0],
                "images_per_second": {k: quartiles_of(v) for k, v in rates.items()},
            }  # fmt: skip
            rows.append(row)
            print(row["what"], {k: f"{statistics.median(v):.0f}" for k, v in rates.items()}, flush=True)
    return rows


def parser() -> Parser:
    """Return the command's flags."""
    p = Parser("benchmarks.loader_backends", (__doc__ or "").split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--images", type=int, default=1200, help="images of a measurement at 128 px")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    args = parse_args(parser(), argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        for name, folder, sizes in table.folders(Path(args.data).absolute(), Path(made)):
            for S in sizes:
                rows += measured(name, folder, S, args, Path(made))
    settings = {"batch": table.BATCH, "cores": table.CORES, "decoder": describe_decoder(), "images": args.images}
    conclude("loader_backends", "Who should decode image files?", settings, rows)
    return 0


if __name__ == "__main__":
    run_command(main)
