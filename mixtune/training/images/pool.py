"""Pool: the reader processes of this training process, the memory they share with it, and what waits for them.

One pool serves training at all sizes and evaluation alike. A thread passes pieces of work on as readers become free;
it touches no pixels.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from selectors import EVENT_READ, PollSelector
from socket import SHUT_RDWR
from socket import socket as Socket

import torch
from torch import Tensor

from mixtune.errors import TrainingError
from mixtune.training.images.reader import Done, Work, perform

IN_HAND = 2  # pieces of work a reader holds: it does one while the next is on its way


@dataclass(eq=False)
class Region:
    """Memory for views, uint8 [bytes], which begins at ``offset`` of what the readers see."""

    pixels: Tensor
    offset: int = 0
    pinned: bool = False


@dataclass(eq=False)
class Job:
    """A piece of work, where its views go, and what came of it."""

    work: Work
    region: Region
    done: Done | None = None


class Inline:
    """No processes: work is done by whoever waits for it. What ``Processes`` gives is the same."""

    processes = 0

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take these on; nothing is done before it is waited for."""

    def finish(self, jobs: Sequence[Job]) -> None:
        """Return when these are done."""
        for job in jobs:
            if job.done is None:
                job.done = perform(job.work, job.region.pixels.numpy())

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget these; nothing is at work on them afterwards."""

    def region(self, size: int) -> Region:
        """Memory of at least ``size`` bytes, until it is given back."""
        return Region(torch.empty(size, dtype=torch.uint8))

    def give_back(self, region: Region) -> None:
        """The region is not used any more."""


class Processes(Inline):
    """Reader processes. They start while the caller goes on, and end with this process, however it ends."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        named = hasattr(os, "memfd_create")
        # Neither is bounded by /dev/shm, which containers keep small, and neither outlives the processes.
        self._memory = os.memfd_create("mixtune") if named else os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115
        self._sockets, theirs = zip(*(Pipe() for _ in range(processes)), strict=True)
        descriptors = [self._memory, *(s.fileno() for s in theirs)]
        code = f"from mixtune.training.images.reader import main; main({descriptors})"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # noqa: S603 (ourselves)
            [sys.executable, "-c", code], pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL
        )
        for socket in theirs:
            socket.close()
        self._extent = 0  # bytes of shared memory
        self._spare: list[Region] = []
        self._waiting: deque[Job] = deque()
        self._held: dict[Connection, dict[int, Job]] = {s: {} for s in self._sockets}
        self._numbers = itertools.count()
        self._news = threading.Condition()
        self._dead = False
        self._lost: list[Job] = []  # what a reader that died had in hand
        self._woken, self._wake = os.pipe()
        threading.Thread(target=self._pass_on, name="mixtune-pool", daemon=True).start()
        atexit.register(self.close)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take these on, in this order."""
        with self._news:
            self._waiting.extend(jobs)
        os.write(self._wake, b".")

    def finish(self, jobs: Sequence[Job]) -> None:
        """Return when these are done. Raises TrainingError when a reader died."""
        with self._news:
            self._news.wait_for(lambda: self._dead or all(j.done is not None for j in jobs))
            if self._dead:
                raise TrainingError(
                    "a process that reads images died (killed for memory, or by a file that its decoder does not "
                    f"survive); it was reading {self._suspects()}"
                )

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget these; nothing is at work on them afterwards."""
        gone = set(map(id, jobs))
        with self._news:
            self._waiting = deque(j for j in self._waiting if id(j) not in gone)
            held = [j for mine in self._held.values() for j in mine.values() if id(j) in gone]
            self._news.wait_for(lambda: self._dead or all(j.done is not None for j in held))

    def region(self, size: int) -> Region:
        """Shared memory of at least ``size`` bytes, pinned where there is a GPU, until it is given back."""
        fitting = [r for r in self._spare if len(r.pixels) >= size]
        if fitting:
            best = min(fitting, key=lambda r: len(r.pixels))
            self._spare.remove(best)
            return best
        size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        start, self._extent = self._extent, self._extent + size
        os.ftruncate(self._memory, self._extent)
        pixels = torch.frombuffer(mmap.mmap(self._memory, size, offset=start), dtype=torch.uint8)
        return Region(pixels, start, _pin(pixels))

    def give_back(self, region: Region) -> None:
        """The region is not used any more."""
        self._spare.append(region)

    def close(self) -> None:
        """End the readers."""
        for socket in self._sockets:
            with contextlib.suppress(OSError):
                # A close alone would wait for the thread that listens to it: nothing would end.
                with Socket(fileno=os.dup(socket.fileno())) as same:
                    same.shutdown(SHUT_RDWR)
                socket.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)

    def _suspects(self) -> str:
        paths = [p for job in self._lost for p in job.work.paths]
        return f"one of {len(paths)} files from {paths[0]} on" if paths else "nothing"

    def _pass_on(self) -> None:
        """The thread: take what is done, and hand out what waits."""
        sockets: list[Connection] = list(self._sockets)
        ready = PollSelector()  # one for all: ``multiprocessing.connection.wait`` makes one for each message
        ready.register(self._woken, EVENT_READ)
        for socket in sockets:
            ready.register(socket, EVENT_READ)
        while True:
            try:
                for source in [key.fileobj for key, _ in ready.select()]:
                    if not isinstance(source, Connection):
                        os.read(self._woken, 4096)
                        continue
                    number, done = self._received(source)
                    with self._news:
                        self._held[source].pop(number).done = done
                        self._news.notify_all()
                with self._news:
                    self._hand_out(sockets)
            except (OSError, ValueError):  # a reader is gone, or this pool is closed
                with self._news:
                    self._dead = True
                    self._news.notify_all()
                for socket in sockets:  # the other readers end
                    socket.close()
                return

    def _received(self, socket: Connection) -> tuple[int, Done]:
        try:
            number, done = socket.recv()
        except (EOFError, OSError):
            self._lost = list(self._held[socket].values())
            raise OSError from None
        return number, done

    def _hand_out(self, sockets: Sequence[Connection]) -> None:
        while self._waiting:
            socket = min(sockets, key=lambda s: len(self._held[s]))
            if len(self._held[socket]) == IN_HAND:
                return
            job, number = self._waiting.popleft(), next(self._numbers)
            self._held[socket][number] = job
            socket.send((number, job.region.offset, job.region.offset + len(job.region.pixels), job.work))


_idle: dict[int, list[Processes]] = {}  # pools whose task is gone, for the next task of this process


def take(processes: int) -> Inline:
    """A pool of this many processes; 0 for none. ``release`` it when it is not needed any more."""
    if not processes:
        return Inline()
    idle = _idle.setdefault(processes, [])
    while idle:
        if not (pool := idle.pop())._dead:
            return pool
    return Processes(processes)


def release(pool: Inline) -> None:
    """Another task of this process may have it."""
    if isinstance(pool, Processes):
        _idle.setdefault(pool.processes, []).append(pool)


def _pin(pixels: Tensor) -> bool:
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
