"""Who should decode image files: processes over shared memory, threads, torch's DataLoader or SPDL?

    python -m benchmarks.loader_backends --data FOLDER     holds train/CLASS/* and val/CLASS/*, real photographs

All make the same views with the same decoder and hand over normalised float batches; they differ in who decodes and how
the views reach this process. Measured in turn at every size of the loader's table, with 1, 2 and 4 workers. SPDL
(``pip install spdl``) is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import loader as table
from benchmarks.common import conclude, spread
from mixtune.cli import Parser, parse_args, run
from mixtune.data import augment, convert, crops, datasets, loader, reader_pool
from mixtune.data.datasets import IMAGENET_MEAN, IMAGENET_STD
from mixtune.data.decode import decoder
from mixtune.data.loader import Step
from mixtune.data.normalise import Normalise
from mixtune.data.reader_process import Work, perform
from mixtune.data.reader_tasks import Job, Region
from mixtune.data.sources import Files
from mixtune.regime import BatchShape, Schedule

WORKERS = (1, 2, 4)
FORMS = ("original", "jpeg", "ppm")
CHUNK = 32
OPERATORS = 500  # of a step, of a network of a hundred layers


class Threads(reader_pool.Inline):
    """Decoding threads of this process, behind the interface of the pool."""

    def __init__(self, threads: int) -> None:
        self.processes = threads
        self._executor = ThreadPoolExecutor(threads, initializer=_one_thread)
        self._futures: dict[int, Future[Any]] = {}
        self._spare: list[Region] = []

    def submit(self, jobs: Sequence[Job]) -> None:
        """Begin these."""
        for job in jobs:
            self._futures[id(job)] = self._executor.submit(perform, job.work, job.region.pixels.numpy())

    def finish(self, jobs: Sequence[Job]) -> None:
        """Return when these are done."""
        for job in jobs:
            job.done = self._futures.pop(id(job)).result()

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget these."""
        for job in jobs:
            if (future := self._futures.pop(id(job), None)) and not future.cancel():
                future.result()

    def region(self, size: int) -> Region:
        """Memory of at least ``size`` bytes."""
        fitting = [r for r in self._spare if len(r.pixels) >= size]
        if fitting:
            self._spare.remove(fitting[0])
            return fitting[0]
        return Region(torch.empty(size, dtype=torch.uint8))

    def give_back(self, region: Region) -> None:
        """The region is not used any more."""
        self._spare.append(region)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()


def _one_thread(*_: Any) -> None:
    torch.set_num_threads(1)
    if cv2 := crops.opencv():
        cv2.setNumThreads(1)


class StepViews(Dataset[torch.Tensor]):
    """The views of a step, uint8 [B*D, S, S, 3]; its key is the step itself."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths

    def __getitem__(self, step: Step) -> torch.Tensor:  # type: ignore[override]
        pixels = torch.empty(len(step.mine) * step.D, step.S, step.S, 3, dtype=torch.uint8)
        perform(_work(self.paths, step, slice(None)), pixels.view(-1).numpy())
        return pixels


class Keys:
    """A sampler of given steps."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


def _work(paths: Sequence[str], step: Step, part: slice) -> Work:
    numbers, mirrored = (None if x is None else x[part] for x in (step.numbers, step.mirrored))
    chosen = tuple(paths[i] for i in step.samples[step.mine][part])
    return Work(chosen, 0, step.S, step.D, numbers, step.scale, step.ratio, mirrored)


def from_dataloader(source: Files, steps: Sequence[Step], workers: int) -> Iterator[torch.Tensor]:
    """Steps from torch's DataLoader; a worker makes a whole one."""
    yield from DataLoader(
        StepViews(source.paths), batch_size=None, sampler=Keys(steps), num_workers=workers, worker_init_fn=_one_thread
    )


def from_spdl(source: Files, steps: Sequence[Step], workers: int) -> Iterator[torch.Tensor]:
    """Steps from SPDL's pipeline of threads; each is divided among them."""
    from spdl.pipeline import PipelineBuilder

    def chunks() -> Iterator[tuple[Step, torch.Tensor, slice]]:
        for step in steps:
            n = len(step.mine)
            size = max(1, min(CHUNK, -(-n // workers)))
            pixels = torch.empty(n, step.D, step.S, step.S, 3, dtype=torch.uint8)
            yield from ((step, pixels, slice(first, min(first + size, n))) for first in range(0, n, size))

    def make(chunk: tuple[Step, torch.Tensor, slice]) -> tuple[torch.Tensor, bool]:
        step, pixels, part = chunk
        perform(_work(source.paths, step, part), pixels[part].view(-1).numpy())
        return pixels, part.stop == len(step.mine)

    pipeline = (
        PipelineBuilder()
        .add_source(chunks())
        .pipe(make, concurrency=workers, output_order="input")
        .add_sink(max(4, 512 // CHUNK))
        .build(num_threads=workers)
    )
    with pipeline.auto_stop():
        for pixels, last in pipeline:
            if last:
                yield pixels.flatten(0, 1)


def stepwise(
    make: Callable[[Files, Sequence[Step], int], Iterator[torch.Tensor]],
    source: Files,
    schedule: Schedule,
    workers: int,
) -> float:
    """Images per second of what makes pixels step by step."""
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD, augment.CPU)
    steps = list(loader.training_steps(schedule, len(source), seed=0))
    made = make(source, steps, workers)
    pairs = zip(made, steps, strict=True)
    return table.rate((normalise(x.permute(0, 3, 1, 2)), s.samples.repeat(s.D)) for x, s in pairs)


def dispatch(source: Files, schedule: Schedule, pool: reader_pool.Inline | None) -> float:
    """Operators per second that this thread begins while the next images are made, as one that launches kernels."""
    number = torch.zeros(1)
    seconds, n = 0.0, 0
    batches: Iterator[Any] = iter(range(len(schedule)))
    if pool is not None:
        batches = augment.file_batches(source, schedule, augment.Augment(), True, 0, 0, pool)
    for _ in batches:
        began = time.perf_counter()
        for _ in range(OPERATORS):
            number.add_(1)
        seconds += time.perf_counter() - began
        n += OPERATORS
    return n / seconds


def dispatch_rows(source: Files, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What a loader costs the thread that trains, in a network whose steps are launch-bound."""
    rows = []
    for S in (96, 224):
        for workers in args.workers:
            schedule = table.steps(BatchShape(S, table.BATCH), args.images)
            threads = Threads(workers)
            pools = {"processes": reader_pool.take(workers), "threads": threads}
            measures: dict[str, Callable[[], float]] = {
                name: partial(dispatch, source, schedule, pool) for name, pool in pools.items()
            }
            measures["no loader"] = partial(dispatch, source, schedule, None)
            try:
                rates, paired = ratios(measures, 3 * args.repeats)
            finally:
                reader_pool.release(pools["processes"])
                threads.close()
            row: dict[str, Any] = {
                "what": f"operators begun beside threads over beside processes, at {S} px, {workers} workers"
            }
            row |= {"S": S, "workers": workers, "ratio": paired["threads"], "at_least": 0.9, "aim": 1.0}
            rows.append(row | {"ratios": paired, "per_second": {k: spread(v) for k, v in rates.items()}})
            print(row["what"], {k: round(statistics.median(v)) for k, v in rates.items()}, paired, flush=True)
    return rows


def sides(source: Files, schedule: Schedule, pools: dict[str, reader_pool.Inline], workers: int) -> dict[str, Any]:
    """What is measured, by name."""
    made: dict[str, Callable[[], float]] = {
        name: partial(table.ours, source, schedule, pool) for name, pool in pools.items()
    }
    made["DataLoader"] = partial(stepwise, from_dataloader, source, schedule, workers)
    with contextlib.suppress(ImportError):
        import spdl.pipeline  # noqa: F401

        made["SPDL"] = partial(stepwise, from_spdl, source, schedule, workers)
    return made


def ratios(measures: dict[str, Callable[[], float]], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Images per second of each, and the median over the repeats of each one's ratio to the first, paired."""
    rates: dict[str, list[float]] = {name: [] for name in measures}
    names = list(measures)
    for i in range(repeats):
        for name in names if i % 2 == 0 else names[::-1]:
            rates[name].append(measures[name]())
    base = rates[names[0]]
    paired = {name: statistics.median(r / b for r, b in zip(rates[name], base, strict=True)) for name in names}
    return rates, paired


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.loader_backends", (__doc__ or "").split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds train/CLASS/* and val/CLASS/*")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--images", type=int, default=1200, help="images of a measurement at 128 px")
    p.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    return p


def measured(name: str, folder: Path, S: int, args: argparse.Namespace, made: Path) -> list[dict[str, Any]]:
    """The rows of one folder at one size."""
    source = datasets.load_dataset("folder", str(folder)).train
    assert isinstance(source, Files)
    area = table.dimensions(source)[0] * table.dimensions(source)[1]
    n = max(12 * table.BATCH, round(args.images * min(1.0, 128**2 / S**2, 224**2 / area)))
    rows = []
    for form in FORMS:
        files, scale = source, 1
        if form != "original":
            target = convert.Target(S, form)  # type: ignore[arg-type]
            files, _ = table.encoded(folder, made / f"{folder.name}{S}{form}", target)
            scale = 2
        for workers in args.workers:
            schedule = table.steps(BatchShape(S, table.BATCH), scale * n)
            threads = Threads(workers)
            pools = {"processes": reader_pool.take(workers), "threads": threads}
            try:
                rates, paired = ratios(sides(files, schedule, pools, workers), args.repeats)
            finally:
                reader_pool.release(pools["processes"])
                threads.close()
            row: dict[str, Any] = {"what": f"threads over processes: {name} ({form}), at {S} px, {workers} workers"}
            row |= {"images": name, "S": S, "form": form, "workers": workers, "ratio": paired["threads"]}
            row |= {"at_least": 0.9, "aim": 1.0, "ratios": paired, "load": os.getloadavg()[0]}
            row |= {"images_per_second": {k: spread(v) for k, v in rates.items()}}
            rows.append(row)
            print(
                f"{name:24} {S:4} {form:9} {workers}  "
                + "  ".join(f"{k} {statistics.median(v):6.0f} ({paired[k]:.2f})" for k, v in rates.items()),
                f" load {row['load']:.1f}",
                flush=True,
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print."""
    args = parse_args(parser(), argv)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        small = Path(args.data).absolute()
        original = datasets.load_dataset("folder", str(small)).train
        assert isinstance(original, Files)
        size = " x ".join(map(str, table.dimensions(original)))
        folders: list[tuple[str, Path, tuple[int, ...]]] = [(f"{size} photographs", small, table.SIZES)]
        for (width, height), count in table.MOSAICS.items():
            place = Path(made, f"mosaics{width}")
            table.mosaics(original, place, (width, height), count)
            folders.append((f"{width} x {height} mosaics", place, (128, 224)))
        for name, folder, sizes in folders:
            for S in sizes:
                rows += measured(name, folder, S, args, Path(made))
        rows += dispatch_rows(original, args)
    settings = {"batch": table.BATCH, "cores": table.CORES, "decoder": decoder(), "images": args.images}
    conclude("loader_backends", "Who should decode image files?", settings, rows)
    return 0


if __name__ == "__main__":
    run(main)
