"""Reader: decodes images and writes their views into memory that it shares with the training process.

``main([MEMORY, SOCKET, ...])`` (file descriptors), in a process of its own, is one reader per socket, all forked from
that process once it has imported what they need. A reader ends when its socket does, so none outlives the training
process, however that ends.
"""

from __future__ import annotations

import mmap
import os
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import torch

from mixtune.training.images import crops
from mixtune.training.images.decode import UnreadableError, decode


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


@dataclass
class Done:
    """What came of it. decodes: images decoded; unreadable and notes: by position in ``paths``."""

    decodes: int = 0
    unreadable: dict[int, str] = field(default_factory=dict)
    notes: dict[int, tuple[str, ...]] = field(default_factory=dict)


@torch.inference_mode()  # each call of torch is shorter by a tenth
def perform(work: Work, region: np.ndarray) -> Done:
    """Do it, into uint8 [bytes]. Views are [S, S, 3]; those of an image are neighbours."""
    done, S, D = Done(), work.S, work.D
    size = S * S * 3
    block = region[work.offset : work.offset + len(work.paths) * D * size]
    views = torch.from_numpy(block).view(len(work.paths), D, S, S, 3)
    for i, path in enumerate(work.paths):
        try:
            if work.numbers is None:
                image = decode(path, lambda H, W: crops.needed_whole(H, W, S))
                views[i, 0] = crops.central(image, S)
            else:
                rows = work.numbers[i].tolist()
                boxes: list[crops.Box] = []

                def need(H: int, W: int, rows=rows, boxes=boxes):  # type: ignore[no-untyped-def]
                    boxes[:] = [crops.random_box(H, W, row, work.scale, work.ratio) for row in rows]
                    return crops.needed_for(boxes, S)

                image = decode(path, need)
                flips = [False] * D if work.mirrored is None else work.mirrored[i].tolist()
                for view, box, flip in zip(views[i], boxes, flips, strict=True):
                    crops.resize_into(view, image.crop(*box))
                    if flip:  # here, where the view is in the cache, it costs a tenth of a pass over the batch
                        view.copy_(view.flip(1))
        except UnreadableError as err:
            done.unreadable[i] = str(err)
        else:
            done.decodes += 1
            if image.notes:
                done.notes[i] = image.notes
    return done


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


def main(descriptors: list[int]) -> None:
    """One reader per socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training process
    torch.set_num_threads(1)
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
