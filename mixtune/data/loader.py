"""Loader: the batches of a schedule from image files, made ahead of time by one pool of readers for all sizes.

Every step is known before the run, so what is prefetched is counted in images, a large batch is divided among all
readers, and the memory it takes is known and stated. An image that cannot be read is replaced by the next one of its
step that can, so that the batches are the same for every number of readers and in every resumed run; an evaluation is
told which are, to leave them out.
S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixtune.data import crops
from mixtune.data.decode import decoder
from mixtune.data.file_issues import FileIssues
from mixtune.data.reader_pool import Inline
from mixtune.data.reader_process import Work
from mixtune.data.reader_tasks import Job, Region
from mixtune.data.ring_buffer import Ring
from mixtune.errors import InputError
from mixtune.regime import WHOLE, Schedule, Shard

MEMORY = 2**30  # bytes that views made ahead of time may take (more where two steps need more)
AHEAD = 512  # images made ahead of time, at least: small batches would have the readers wait for the trainer
CHUNK = 32  # images a reader takes at a time, at most


class Views(NamedTuple):
    """A step's views, before they are on the device.

    pixels: uint8 [n, S, S, 3], valid until the next ones are asked for; samples: [n], the images that they show; own:
    bool [n], whether each is the image that was asked for and not one that stands in.
    """

    pixels: Tensor
    samples: np.ndarray
    own: np.ndarray


@dataclass(frozen=True, eq=False)
class Step:
    """What a step needs. samples: its images [B]; mine: the places of those that are made here; numbers: uniform
    [len(mine), D, DRAWS] for random crops, None for an evaluation; mirrored: [len(mine), D], None for no mirroring.
    """

    samples: np.ndarray
    mine: np.ndarray
    S: int
    D: int = 1
    numbers: np.ndarray | None = None
    mirrored: np.ndarray | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)

    @property
    def size(self) -> int:
        """Bytes of its views."""
        return len(self.mine) * self.D * self.S**2 * 3


def training_steps(
    schedule: Schedule,
    n_samples: int,
    seed: int,
    start: int = 0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    shard: Shard = WHOLE,
) -> Iterator[Step]:
    """Every step from ``start`` on; its random numbers are those of the whole step, whoever makes which images."""
    batches = schedule.sample_batches(n_samples, seed, start)
    for step, samples in enumerate(batches, start=start):
        shape = schedule.shapes[schedule.index[step]]
        numbers, mirrored = crops.draw(seed, step, shape.views)
        mine = np.arange(shape.B)[shard.part(shape.B)]
        numbers = numbers.reshape(shape.B, shape.D, -1)[mine]
        flips = mirrored.reshape(shape.B, shape.D)[mine] if flip else None
        yield Step(samples, mine, shape.S, shape.D, numbers, flips, scale, ratio)


def evaluation_steps(n_samples: int, S: int, batch: int) -> Iterator[Step]:
    """All images in order, in batches."""
    for first in range(0, n_samples, batch):
        samples = np.arange(first, min(first + batch, n_samples))
        yield Step(samples, np.arange(len(samples)), S)


def memory_ahead(schedule: Schedule, readers: int, shard: Shard = WHOLE, limit: int = MEMORY) -> tuple[int, int]:
    """How far to work ahead: (images, bytes of all views at once).

    As many images as two of the largest batches, so that a run of them finds its images ready, or AHEAD; but no more
    than ``limit`` bytes, unless three steps (one in use, one on its way to the device, one in work) need more.
    """
    shapes = schedule.shapes
    parts = [len(range(s.B)[shard.part(s.B)]) for s in shapes]
    images = np.array(parts)[schedule.index]
    sizes = np.array([n * s.D * s.S**2 * 3 for n, s in zip(parts, shapes, strict=True)])[schedule.index]
    largest = int(sizes.max(initial=0))
    if not readers:
        return 0, largest
    ahead = max(AHEAD, 2 * int(images.max(initial=0)))
    before, spent = np.concatenate([[0], np.cumsum(images)]), np.concatenate([[0], np.cumsum(sizes)])
    ends = np.searchsorted(before, before[:-1] + ahead, side="right") - 1
    return ahead, max(3 * largest, min(limit, int((spent[ends] - spent[:-1]).max(initial=0)) + 2 * largest))


@dataclass(eq=False)
class _Ahead:
    """A step that is being made."""

    step: Step
    offset: int
    jobs: list[Job]
    standing: np.ndarray  # [len(mine)], the position in the step of the sample that is shown


def load(
    pool: Inline, paths: Sequence[str], steps: Iterator[Step], images: int, size: int, notes: FileIssues
) -> Iterator[Views]:
    """The views of these steps, in order, made at most ``images`` images and ``size`` bytes ahead.

    Raises InputError when no image of a training step can be read, and ReaderLostError when readers die again
    and again.
    """
    region, ring = pool.region(size), Ring(size)
    ahead: deque[_Ahead] = deque()
    reading: deque[torch.cuda.Event] = deque()  # until when the device copies from the blocks that were given out
    step = next(steps, None)
    try:
        while step is not None or ahead:
            while reading and reading[0].query():
                reading.popleft()
                ring.give_back()
            while step is not None and (not ahead or sum(len(a.step.mine) for a in ahead) < images):
                if (offset := ring.take(step.size)) is not None:
                    ahead.append(_begin(pool, paths, step, region, offset, notes))
                    step = next(steps, None)
                elif ahead:
                    break
                else:  # everything is on its way to the device
                    reading.popleft().synchronize()
                    ring.give_back()
            made = ahead.popleft()
            _complete(pool, paths, made, region, notes)
            yield _views(paths, made, region, notes)
            if region.pinned:
                event = torch.cuda.Event()
                event.record()
                reading.append(event)
            else:
                ring.give_back()
    finally:
        pool.drop([job for a in ahead for job in a.jobs])
        for event in reading:
            event.synchronize()
        pool.give_back(region)


def describe(schedule: Schedule, readers: int, shard: Shard = WHOLE) -> str:
    """Who reads, with what, and how far ahead, for people."""
    images, size = memory_ahead(schedule, readers, shard)
    who = f"{readers} reader{'s' if readers > 1 else ''}" if readers else "no readers: this process decodes"
    return f"{who}, {decoder()}; up to {images:,} images ahead, in {size / 2**20:,.0f} MiB"


def _begin(pool: Inline, paths: Sequence[str], step: Step, region: Region, offset: int, notes: FileIssues) -> _Ahead:
    """Hand a step's images out in pieces, so that all readers work on it; known bad ones are replaced at once."""
    good, standing = _good(paths, step, notes), step.mine.copy()
    for k in np.flatnonzero(~good[standing]):
        standing[k] = _next_good(good, standing[k])
    piece = max(1, min(CHUNK, -(-len(standing) // max(1, pool.processes))))
    jobs = [
        _job(paths, step, standing, slice(first, first + piece), region, offset)
        for first in range(0, len(standing), piece)
    ]
    pool.submit(jobs)
    return _Ahead(step, offset, jobs, standing)


def _job(paths: Sequence[str], step: Step, standing: np.ndarray, part: slice, region: Region, offset: int) -> Job:
    chosen = tuple(paths[i] for i in step.samples[standing[part]])
    numbers, mirrored = (None if x is None else x[part] for x in (step.numbers, step.mirrored))
    begin = offset + part.start * step.D * step.S**2 * 3
    return Job(Work(chosen, begin, step.S, step.D, numbers, step.scale, step.ratio, mirrored), region)


def _complete(pool: Inline, paths: Sequence[str], made: _Ahead, region: Region, notes: FileIssues) -> None:
    """Wait for a step; where an image could not be read, the next good one of the step is shown in its place."""
    step, jobs = made.step, made.jobs
    while jobs:
        pool.finish(jobs)
        for job in jobs:
            notes.add(job)
        good = _good(paths, step, notes)
        again = np.flatnonzero(~good[made.standing]).tolist()
        for k in again:
            made.standing[k] = _next_good(good, made.standing[k])
        jobs = [_job(paths, step, made.standing, slice(k, k + 1), region, made.offset) for k in again]
        if again and not good.any():
            if step.numbers is None:  # the last images of an evaluation, perhaps a single one
                region.pixels[made.offset : made.offset + step.size] = 0
                return
            first = paths[step.samples[0]]
            raise InputError(
                f"task.data: none of the {len(good)} images of a step can be read, the first being {first} "
                f"({notes.unreadable[first]}); is the storage there?"
            )
        pool.submit(jobs)


def _good(paths: Sequence[str], step: Step, notes: FileIssues) -> np.ndarray:
    """bool [B]: which images of the step are not known to be bad."""
    if not notes.unreadable:
        return np.ones(len(step.samples), bool)
    return np.array([paths[i] not in notes.unreadable for i in step.samples])


def _next_good(good: np.ndarray, place: int) -> int:
    """The place itself, or the first one after it, round the step, whose image is not known to be bad."""
    return next((k for k in ((place + i) % len(good) for i in range(len(good))) if good[k]), place)


def _views(paths: Sequence[str], made: _Ahead, region: Region, notes: FileIssues) -> Views:
    step = made.step
    n, S = len(step.mine) * step.D, step.S
    pixels = region.pixels[made.offset : made.offset + step.size].view(n, S, S, 3)
    own = (made.standing == step.mine) & _good(paths, step, notes)[step.mine]
    return Views(pixels, np.repeat(step.samples[made.standing], step.D), np.repeat(own, step.D))
