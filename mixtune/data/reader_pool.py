"""Pool: the reader processes of this training process, the memory they share with it, and what waits for them.

One pool serves training at all sizes and evaluation alike. A thread passes pieces of work on as readers become free;
it touches no pixels. Where a reader dies another takes its place and its work: views depend on nothing but that.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import mmap
import os
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection
from selectors import EVENT_READ, PollSelector
from socket import SHUT_RDWR
from socket import socket as Socket

import torch

from mixtune.data.reader_process import Work, perform, start
from mixtune.data.reader_tasks import Job, Region, Suspects, pin
from mixtune.errors import TrainingError

log = logging.getLogger(__name__)

IN_HAND = 2  # pieces of work a reader holds: it does one while the next is on its way
DEATHS = 30  # of readers of one pool that are put up with
STILLBORN = 2  # in a row, of readers that did not answer once: nothing is wrong with the files


NOTHING = Work((), 0, 1, 1, None)  # whoever answers to it is ready
NOWHERE = Region(torch.empty(0, dtype=torch.uint8))


class ReaderLostError(TrainingError):
    """Readers die whatever they are given; on another machine, or at another time, they may well not."""


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
        self._extent = 0  # bytes of shared memory
        self._spare: list[Region] = []
        self._waiting: deque[Job] = deque()
        self._held: dict[Connection, dict[int, Job]] = {}  # by reader, the one that it is at first
        self._numbers = itertools.count()
        self._news = threading.Condition()
        self._suspects = Suspects()
        self._failed = ""  # why nothing is read any more
        self._closed = False
        self._deaths = self._stillborn = 0  # readers that died; those in a row that had not done anything
        self._woken, self._wake = os.pipe()
        self._ready = PollSelector()  # one for all: ``multiprocessing.connection.wait`` makes one for each message
        self._ready.register(self._woken, EVENT_READ)
        self._launched: list[subprocess.Popen[bytes]] = []
        self._launch(processes)
        threading.Thread(target=self._pass_on, name="mixtune-pool", daemon=True).start()
        atexit.register(self.close)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take these on, in this order."""
        with self._news:
            self._waiting.extend(jobs)
        os.write(self._wake, b".")

    def finish(self, jobs: Sequence[Job]) -> None:
        """Return when these are done. Raises ReaderLostError when readers die again and again."""
        with self._news:
            self._news.wait_for(lambda: self._failed or all(j.done is not None for j in jobs))
            if self._failed:
                raise ReaderLostError(self._failed)

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget these; nothing is at work on them afterwards."""
        gone = set(map(id, jobs))
        with self._news:
            self._waiting = deque(j for j in self._waiting if id(j.whole or j) not in gone)
            held = [j for mine in self._held.values() for j in mine.values() if id(j.whole or j) in gone]
            self._news.wait_for(lambda: self._failed or all(j.done is not None for j in held))

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
        return Region(pixels, start, pin(pixels))

    def give_back(self, region: Region) -> None:
        """The region is not used any more."""
        self._spare.append(region)

    def close(self) -> None:
        """End the readers."""
        self._closed = True
        for socket in list(self._held):
            with contextlib.suppress(OSError):
                # A close alone would wait for the thread that listens to it: nothing would end.
                with Socket(fileno=os.dup(socket.fileno())) as same:
                    same.shutdown(SHUT_RDWR)
                socket.close()
        for process in self._launched:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)

    def _launch(self, count: int) -> None:
        process, sockets = start(self._memory, count)
        self._launched = [*(p for p in self._launched if p.poll() is None), process]
        for socket in sockets:
            self._ready.register(socket, EVENT_READ)
            with self._news, contextlib.suppress(OSError):  # dead already, noticed where its answer is awaited
                self._held[socket] = {}
                self._hand(socket, Job(NOTHING, NOWHERE))

    def _pass_on(self) -> None:
        """The thread: take what is done, hand out what waits, and replace readers that die."""
        try:
            while not self._failed:
                for source in [key.fileobj for key, _ in self._ready.select()]:
                    if isinstance(source, Connection):
                        self._take(source)
                    else:
                        os.read(self._woken, 4096)
                with self._news:
                    self._hand_out()
        except (OSError, ValueError) as err:  # this pool is closed, or no process can be started
            with self._news:
                self._failed = f"no process that reads images could be kept alive ({err})"
        with self._news:
            self._news.notify_all()
        for socket in self._held:  # the other readers end
            socket.close()

    def _take(self, socket: Connection) -> None:
        """What a reader has done; or its work, for others to do, where it has died."""
        try:
            number, done = socket.recv()
        except (EOFError, OSError):
            if self._closed:
                raise OSError("closed") from None
            self._replace(socket)
            return
        with self._news:
            job = self._held[socket].pop(number)
            job.finish(done)
            self._suspects.done(job)
            self._stillborn = 0
            self._news.notify_all()

    def _replace(self, socket: Connection) -> None:
        self._ready.unregister(socket)
        socket.close()
        with self._news:
            held = list(self._held.pop(socket).values())
            born = not held or held[0].work is not NOTHING
            self._deaths, self._stillborn = self._deaths + 1, 0 if born else self._stillborn + 1
            again = self._suspects.died_at(held[0]) if held and born else []
            self._waiting.extendleft(reversed([*again, *held[1:]]))
            if self._deaths > DEATHS or self._stillborn > STILLBORN:
                self._failed = (
                    f"processes that read images die again and again ({self._deaths} so far): killed for memory, or by "
                    "files that their decoder does not survive"
                )
                return
        paths = held[0].work.paths if held and born else ()
        at = f", at {paths[0]}" + (f" or the {len(paths) - 1} after it" if paths[1:] else "") if paths else ""
        log.warning("a process that reads images died%s; another takes its place", at)
        self._launch(1)

    def _hand_out(self) -> None:
        while self._waiting and self._held:
            if (instead := self._suspects.instead(self._waiting[0])) is not None:
                self._waiting.popleft()
                self._waiting.extendleft(reversed(instead))
                self._news.notify_all()
                continue
            socket = min(self._held, key=lambda s: len(self._held[s]))
            if len(self._held[socket]) == IN_HAND:
                return
            try:
                self._hand(socket, self._waiting.popleft())
            except OSError:  # it has died, which is noticed where its answer is awaited
                return

    def _hand(self, socket: Connection, job: Job) -> None:
        number = next(self._numbers)
        self._held[socket][number] = job
        socket.send((number, job.region.offset, job.region.offset + len(job.region.pixels), job.work))


_idle: dict[int, list[Processes]] = {}  # pools whose task is gone, for the next task of this process


def take(processes: int) -> Inline:
    """A pool of this many processes; 0 for none. ``release`` it when it is not needed any more."""
    if not processes:
        return Inline()
    idle = _idle.setdefault(processes, [])
    while idle:
        if not (pool := idle.pop())._failed:
            return pool
    return Processes(processes)


def release(pool: Inline) -> None:
    """Another task of this process may have it."""
    if isinstance(pool, Processes):
        _idle.setdefault(pool.processes, []).append(pool)
