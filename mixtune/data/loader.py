"""Loader: the views of a schedule's steps from image files, decoded ahead of time by threads of this process.

Every step is known before the run. So a step is divided among all threads, and the memory of the steps made ahead is
known and stated. An image that cannot be read is replaced by the next one of its step that can: batches are the same
for every number of threads and in every resumed run. An evaluation leaves out the images that are replaced.
S, B, D as in ``regime.shapes``; n is the number of a step's images that this rank makes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixtune.data import crops
from mixtune.data.decode import describe_decoder
from mixtune.data.file_issues import FileIssues
from mixtune.data.image_views import DecodeResult, RandomCrops, make_views
from mixtune.errors import InputError
from mixtune.regime import WHOLE, Schedule, Shard

MAX_BYTES = 2**30  # of views made ahead of time (more where three steps need more)
MIN_IMAGES = 512  # made ahead of time: with fewer, small batches would have the threads wait for the trainer
MAX_CHUNK = 32  # images that a thread takes at a time
THREAD_NAME = "mixtune-decode"


@dataclass(frozen=True, eq=False)
class StepImages:
    """The images of a step, and what is to be shown of them.

    samples: the step's images [B]; positions: those of them that this rank makes [n]; random_crops: of these n images,
    None for the central crops of an evaluation.
    """

    samples: np.ndarray
    positions: np.ndarray
    S: int
    D: int = 1
    random_crops: RandomCrops | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the views."""
        return len(self.positions) * self.D * self.S**2 * 3


class StepViews(NamedTuple):
    """The views of a step, on the CPU.

    pixels: uint8 [n*D, S, S, 3], valid until the next step is asked for; samples: the image that each view shows
    [n*D]; replaced: bool [n*D], whether that is another image than was asked for.
    """

    pixels: Tensor
    samples: np.ndarray
    replaced: np.ndarray


class MemoryAhead(NamedTuple):
    """How many steps are held in memory at once, and the bytes of their views together."""

    steps: int
    nbytes: int


def training_steps(
    schedule: Schedule,
    n_samples: int,
    seed: int,
    start: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    shard: Shard = WHOLE,
) -> Iterator[StepImages]:
    """Yield every step from ``start`` on. Its random numbers are those of the whole step, whatever the shard."""
    batches = schedule.sample_batches(n_samples, seed, start)
    for step, samples in enumerate(batches, start=start):
        shape = schedule.shapes[schedule.index[step]]
        uniform, mirrored = crops.draw_crops(seed, step, shape.views)
        uniform, mirrored = uniform.reshape(shape.B, shape.D, -1), mirrored.reshape(shape.B, shape.D)
        positions = np.arange(shape.B)[shard.part(shape.B)]
        random_crops = RandomCrops(uniform, mirrored if flip else None, scale, ratio).subset(positions)
        yield StepImages(samples, positions, shape.S, shape.D, random_crops)


def evaluation_steps(n_samples: int, S: int, batch: int) -> Iterator[StepImages]:
    """Yield all images in order, in batches."""
    for first in range(0, n_samples, batch):
        samples = np.arange(first, min(first + batch, n_samples))
        yield StepImages(samples, np.arange(len(samples)), S)


def memory_ahead(schedule: Schedule, workers: int, shard: Shard = WHOLE, limit: int = MAX_BYTES) -> MemoryAhead:
    """Return how far to work ahead: one step without workers, else enough steps that hold MIN_IMAGES images and twice
    the largest batch, wherever in the schedule they lie.

    They take no more than ``limit`` bytes, unless three steps (one in use, one on its way to the device, one being
    made) take more. Each step has the memory of the largest.
    """
    shapes = schedule.shapes
    rows = [len(range(shape.B)[shard.part(shape.B)]) for shape in shapes]
    step_bytes = [n * shape.D * shape.S**2 * 3 for n, shape in zip(rows, shapes, strict=True)]
    largest = max((step_bytes[i] for i in np.unique(schedule.index)), default=0)
    if not workers:
        return MemoryAhead(1, largest)
    images = np.array(rows)[schedule.index]
    wanted = max(MIN_IMAGES, 2 * int(images.max(initial=0)))
    before = np.concatenate([[0], np.cumsum(images)])
    ends = np.searchsorted(before, before[:-1] + wanted, side="right") - 1
    enough = int((ends - np.arange(len(ends))).max(initial=0)) + 2
    steps = max(3, min(enough, limit // max(1, largest)))
    return MemoryAhead(steps, steps * largest)


def describe_loader(schedule: Schedule, workers: int, shard: Shard = WHOLE) -> str:
    """Return one line for people: who decodes, with what, and how far ahead."""
    ahead = memory_ahead(schedule, workers, shard)
    threads = f"{max(1, workers)} decoding thread{'s' if workers > 1 else ''}"
    size = f"{ahead.nbytes / 2**20:,.0f} MiB"
    return f"{threads}, {describe_decoder()}; up to {ahead.steps:,} step{'s' * (ahead.steps > 1)} in memory, {size}"


def load_views(
    paths: Sequence[str],
    steps: Iterator[StepImages],
    workers: int,
    ahead: MemoryAhead,
    issues: FileIssues,
    device: torch.device | str = "cpu",
) -> Iterator[StepViews]:
    """Yield the views of these steps, in order, made by ``workers`` threads (by one thread, one step at a time, for 0).

    For a CUDA device they lie in page-locked memory where that can be had. The threads end with the generator, however
    it ends. Raises InputError when no image of a training step can be read.
    """
    cuda = torch.device(device).type == "cuda"
    memory = _allocate(ahead, cuda)
    copied: list[torch.cuda.Event | None] = [None] * ahead.steps  # of each part of the memory: the device has read it
    # torch's number of threads holds for the thread that sets it; the decoding threads are what runs in parallel.
    executor = ThreadPoolExecutor(max(1, workers), THREAD_NAME, torch.set_num_threads, (1,))
    maker = _StepMaker(executor, max(1, workers), paths, issues)
    pending: deque[tuple[int, _PendingStep]] = deque()
    started = 0
    try:
        step = next(steps, None)
        while step is not None or pending:
            while step is not None and len(pending) < ahead.steps:
                slot = started % ahead.steps
                if event := copied[slot]:
                    if pending and not event.query():
                        break
                    event.synchronize()
                pending.append((slot, maker.start(step, memory[slot])))
                step, started = next(steps, None), started + 1
            slot, oldest = pending.popleft()
            yield maker.finish(oldest)
            if cuda:
                event = copied[slot] = torch.cuda.Event()
                event.record()
    finally:
        executor.shutdown(cancel_futures=True)
        for event in filter(None, copied):
            event.synchronize()


def _allocate(ahead: MemoryAhead, page_locked: bool) -> Tensor:
    """Return uninitialised memory, uint8 [steps, bytes of a step]."""
    shape = ahead.steps, ahead.nbytes // ahead.steps
    if page_locked:
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # the system locks no more pages; copies to the device then wait for each other
            pass
    return torch.empty(shape, dtype=torch.uint8)


@dataclass(eq=False)
class _PendingStep:
    """A step that is being made.

    views: uint8 [n, D, S, S, 3]; shown: the position in the step of the image that each row shows [n]; chunks: rows,
    and what becomes of them.
    """

    step: StepImages
    views: Tensor
    shown: np.ndarray
    chunks: list[tuple[slice, Future[DecodeResult]]]


class _StepMaker:
    """Divides steps among threads, and replaces images that cannot be read."""

    def __init__(self, executor: ThreadPoolExecutor, workers: int, paths: Sequence[str], issues: FileIssues) -> None:
        self._executor, self._workers, self._paths, self._issues = executor, workers, paths, issues

    def start(self, step: StepImages, memory: Tensor) -> _PendingStep:
        """Begin a step; images that are known to be unreadable are replaced at once."""
        n = len(step.positions)
        views = memory[: step.nbytes].view(n, step.D, step.S, step.S, 3)
        readable = self._readable(step)
        shown = np.array([_next_readable(readable, position) for position in step.positions], np.int64)
        pending = _PendingStep(step, views, shown, [])
        size = max(1, min(MAX_CHUNK, -(-n // self._workers)))
        for first in range(0, n, size):
            self._submit(pending, slice(first, first + size))
        return pending

    def finish(self, pending: _PendingStep) -> StepViews:
        """Wait for a step, and return it. Raises InputError when no image of a training step can be read."""
        step, shown = pending.step, pending.shown
        readable = self._collect(pending)
        while len(unreadable := np.flatnonzero(~readable[shown])):
            if not readable.any():
                if step.random_crops is None:  # the last images of an evaluation, perhaps a single one
                    pending.views.zero_()
                    break
                first = self._paths[step.samples[0]]
                raise InputError(
                    f"task.data: none of the {len(readable)} images of a step can be read, the first being {first} "
                    f"({self._issues.unreadable[first]}); is the storage there?"
                )
            for row in unreadable.tolist():
                shown[row] = _next_readable(readable, shown[row])
                self._submit(pending, slice(row, row + 1))
            readable = self._collect(pending)
        replaced = (shown != step.positions) | ~readable[step.positions]
        return StepViews(pending.views.flatten(0, 1), step.samples[shown].repeat(step.D), replaced.repeat(step.D))

    def _submit(self, pending: _PendingStep, rows: slice) -> None:
        """Have a thread make some rows."""
        step = pending.step
        random_crops = None if step.random_crops is None else step.random_crops.subset(rows)
        paths = self._shown_paths(pending, rows)
        future = self._executor.submit(make_views, paths, random_crops, pending.views[rows].numpy())
        pending.chunks.append((rows, future))

    def _collect(self, pending: _PendingStep) -> np.ndarray:
        """Wait for what was submitted, and return which images of the step are readable, bool [B]."""
        for rows, future in pending.chunks:
            self._issues.add(self._shown_paths(pending, rows), future.result())
        pending.chunks.clear()
        return self._readable(pending.step)

    def _shown_paths(self, pending: _PendingStep, rows: slice) -> list[str]:
        return [self._paths[i] for i in pending.step.samples[pending.shown[rows]]]

    def _readable(self, step: StepImages) -> np.ndarray:
        """Return which images of the step are not known to be unreadable, bool [B]."""
        if not self._issues.unreadable:
            return np.ones(len(step.samples), bool)
        return np.array([self._paths[i] not in self._issues.unreadable for i in step.samples])


def _next_readable(readable: np.ndarray, position: int) -> int:
    """Return the position itself or the first readable one after it, round the step; itself where there is none."""
    following = ((position + i) % len(readable) for i in range(len(readable)))
    return next((p for p in following if readable[p]), position)
