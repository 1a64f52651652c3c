"""Reader: decodes images and writes their views into memory that it shares with the training process.

``main([MEMORY, SOCKET, ...])`` (file descriptors), in a process of its own, is one reader per socket, all forked from
that process once it has imported what they need. A reader ends when its socket does, so none outlives the training
process, however that ends.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

import numpy as np
import torch

from mixtune.data import crops
from mixtune.data.decode import Decoded, Needed, UnreadableError, begin

AT_ONCE = 8  # files of which a reader holds the content, at most
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Work:
    """Images to decode and views to make of them: D of each at S x S, written at ``offset`` of a region.

    numbers: uniform [len(paths), D, DRAWS] for random crops; None for the central crop of an evaluation.
    mirrored: [len(paths), D], which views are to be mirrored; None for none.
    """

    paths: tuple[str, ...]
    offset: int
    S: int
    D: int
    numbers: np.ndarray | None
    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (1.0, 1.0)
    mirrored: np.ndarray | None = None

    def one_by_one(self) -> list[Work]:
        """The same work, image by image."""
        size = self.D * self.S**2 * 3
        return [
            replace(
                self,
                paths=(path,),
                offset=self.offset + i * size,
                numbers=None if self.numbers is None else self.numbers[i : i + 1],
                mirrored=None if self.mirrored is None else self.mirrored[i : i + 1],
            )
            for i, path in enumerate(self.paths)
        ]


@dataclass
class Done:
    """What came of it. decodes: images decoded; unreadable and notes: by position in ``paths``."""

    decodes: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(eq=False)
class _Image:
    """An image of a piece of work, from when it is read until its views are made."""

    work: Work
    i: int
    boxes: list[crops.Box] = field(default_factory=list)

    def need(self, H: int, W: int) -> Needed:
        """What to decode."""
        work = self.work
        if work.numbers is None:
            return crops.needed_whole(H, W, work.S)
        self.boxes = [crops.random_box(H, W, x, work.scale, work.ratio) for x in work.numbers[self.i].tolist()]
        return crops.needed_for(self.boxes, work.S)

    def show(self, image: Decoded, views: np.ndarray) -> None:
        """Fill its views, uint8 [D, S, S, 3]."""
        if self.work.numbers is None:
            views[0] = crops.central(image, self.work.S)
            return
        mirrored = self.work.mirrored
        flips = [False] * self.work.D if mirrored is None else mirrored[self.i].tolist()
        for view, box, flip in zip(views, self.boxes, flips, strict=True):
            crops.crop_into(view, image.crop(*box))
            if flip:  # here, where the view is in the cache, it costs a tenth of a pass over the batch
                crops.mirror(view)


@torch.inference_mode()  # each call of torch is shorter by a tenth
def perform(work: Work, region: np.ndarray) -> Done:
    """Do it, into uint8 [bytes]. Views are [S, S, 3]; those of an image are neighbours.

    A few files are read before the first of them is decoded: that takes a third of the time while no pixels have driven
    its code out of the processor's cache.
    """
    done, S, D = Done(), work.S, work.D
    block = region[work.offset : work.offset + len(work.paths) * D * S * S * 3]
    views = block.reshape(len(work.paths), D, S, S, 3)
    for first in range(0, len(work.paths), AT_ONCE):
        images = [_Image(work, i) for i in range(first, min(first + AT_ONCE, len(work.paths)))]
        begun = [_tried(image, done, begin, work.paths[image.i], image.need) for image in images]
        for image, finish in zip(images, begun, strict=True):
            if finish and (decoded := _tried(image, done, finish)):
                image.show(decoded, views[image.i])
                done.decodes += 1
                if decoded.notes:
                    done.notes[image.i] = decoded.notes
    return done


def _tried(image: _Image, done: Done, act: Callable[..., T], *args: Any) -> T | None:
    """What is done, or None and a note of why not."""
    try:
        return act(*args)
    except UnreadableError as err:
        done.unreadable[image.i] = str(err)
        return None


def serve(socket: Connection, memory: int) -> None:
    """Do what comes through the socket, (number, first byte and end of its region, Work), until it closes."""
    shared = np.empty(0, np.uint8)
    while True:
        try:
            number, start, end, work = socket.recv()
            if end > len(shared):  # the shared memory has grown
                shared = np.frombuffer(mmap.mmap(memory, os.fstat(memory).st_size), np.uint8)
            socket.send((number, perform(work, shared[start:end])))
        except (EOFError, ConnectionError):
            return


def start(memory: int, count: int) -> tuple[subprocess.Popen[bytes], list[Connection]]:
    """So many readers of this memory: the process that they are forked from, and a socket to each."""
    sockets, theirs = zip(*(Pipe() for _ in range(count)), strict=True)
    descriptors = [memory, *(s.fileno() for s in theirs)]
    code = f"from mixtune.data.reader_process import main; main({descriptors})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(  # noqa: S603 (ourselves)
        [sys.executable, "-c", code], pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL
    )
    for socket in theirs:
        socket.close()
    return process, list(sockets)


def main(descriptors: list[int]) -> None:
    """One reader per socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process
    torch.set_num_threads(1)
    if cv2 := crops.opencv():
        cv2.setNumThreads(1)
    memory, *sockets = descriptors
    for own in sockets:
        if os.fork() == 0:
            for other in sockets:
                if other != own:
                    os.close(other)
            serve(Connection(own), memory)
            os._exit(0)
    for socket in sockets:
        os.close(socket)
    for _ in sockets:
        os.wait()
