"""Pieces: the work that readers take on, the memory it goes to, and what becomes of it when its reader dies."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mixtune.data.reader_process import Done, Work

BLAMED = 2  # deaths of readers that had one file alone in hand: it is at fault


@dataclass(eq=False)
class Region:
    """Memory for views, uint8 [bytes], which begins at ``offset`` of what the readers see."""

    pixels: Tensor
    offset: int = 0
    pinned: bool = False


@dataclass(eq=False)
class Job:
    """A piece of work, where its views go, and what came of it.

    parts: its images one by one, where it was split; whole: what it is a part of.
    """

    work: Work
    region: Region
    done: Done | None = None
    parts: list[Job] = field(default_factory=list)
    whole: Job | None = None

    def finish(self, done: Done) -> None:
        """This came of it."""
        self.done = done
        if self.whole is not None:
            self.whole._join()

    def _join(self) -> None:
        found = [part.done for part in self.parts if part.done is not None]
        if len(found) == len(self.parts):
            unreadable = {i: done.unreadable[0] for i, done in enumerate(found) if done.unreadable}
            notes = {i: done.notes[0] for i, done in enumerate(found) if done.notes}
            self.done = Done(sum(done.decodes for done in found), unreadable, notes)

    def split(self) -> list[Job]:
        """Its images one by one; it is done when they are."""
        self.parts = [Job(work, self.region, whole=self) for work in self.work.one_by_one()]
        return self.parts


class Suspects:
    """Files at which readers died. One that a reader has alone in hand at two deaths in a row counts as unreadable."""

    def __init__(self) -> None:
        self._deaths: Counter[str] = Counter()

    def died_at(self, job: Job) -> list[Job]:
        """A reader died at this: what is to be handed out instead."""
        if len(job.work.paths) > 1:
            return job.split()
        self._deaths[job.work.paths[0]] += 1
        return [job]

    def done(self, job: Job) -> None:
        """A reader survived this."""
        for path in job.work.paths if self._deaths else ():
            del self._deaths[path]

    def instead(self, job: Job) -> list[Job] | None:
        """What is to be handed out instead of this, so that no reader dies of what is known; None where nothing is."""
        if not any(self._deaths[path] >= BLAMED for path in job.work.paths if path in self._deaths):
            return None
        if len(job.work.paths) > 1:
            return job.split()
        job.finish(Done(unreadable={0: f"the process that decoded it died, {BLAMED} times"}))
        return []


def pin(pixels: Tensor) -> bool:
    """Make the memory page-locked, so that the GPU copies from it while this process goes on; False where it cannot."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return False
    status = torch.cuda.cudart().cudaHostRegister(pixels.data_ptr(), pixels.numel(), 0)
    if status == torch.cuda.cudart().cudaError.success:
        return True
    # CUDA keeps the error until it is asked for, which torch does at the next kernel, whatever that is: so one here.
    with contextlib.suppress(RuntimeError):
        torch.ones(1, device="cuda")
    return False
