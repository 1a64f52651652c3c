"""Packing: train several trials in one process, so that together they fill a GPU; their steps are issued in turn.

Every trial has its own thread and, on a GPU, its own stream. One thread runs at a time, so that no trial issues work
while another captures its steps, and random numbers are those of a process of its own; the GPU works on all streams.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
YieldTurn = Callable[[], None]
TrialFunction = Callable[[YieldTurn, Callable[[T], None]], None]


class TurnLock:
    """A lock whose waiting threads get it in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Semaphore] = deque()
        self._held = False

    def acquire(self) -> None:
        """Wait for the lock."""
        with self._lock:
            if not self._held:
                self._held = True
                return
            ready = threading.Semaphore(0)
            self._waiting.append(ready)
        ready.acquire()

    def release(self) -> None:
        """Pass the lock to the next thread."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # the lock stays held
            else:
                self._held = False

    def yield_turn(self) -> None:
        """Let every waiting thread have its turn first."""
        if self._waiting:
            self.release()
            self.acquire()


class TrialDroppedError(BaseException):
    """Ends the thread of a trial that was dropped; not an error of the trial."""


class _Trial(Generic[T]):
    """What a trial's thread and the thread that asks for its reports share."""

    def __init__(self) -> None:
        self.resume, self.report_ready = threading.Semaphore(0), threading.Semaphore(0)
        self.reports: deque[T] = deque()
        self.error: BaseException | None = None
        self.dropped = False
        self.idle_since = time.monotonic()  # infinite while a report is awaited


class TrialPack(Generic[T]):
    """Trials by name. A trial works from the moment its next report is asked for until that report is ready.

    device: if it is a GPU, each trial gets its own stream of it. idle_timeout: a trial whose next report is not asked
    for in so many seconds is dropped when another one starts, since the process that asked may have died.
    """

    def __init__(self, device: torch.device, idle_timeout: float = 600.0) -> None:
        self._device, self._idle_timeout = device, idle_timeout
        self._turn = TurnLock()
        self._trials: dict[str, _Trial[T]] = {}
        self._free_streams: list[torch.cuda.Stream] = []

    def __len__(self) -> int:
        return len(self._trials)

    def start(self, name: str, function: TrialFunction[T]) -> None:
        """Start a trial, in place of an earlier one of this name.

        ``function(yield_turn, report)`` calls ``yield_turn()`` after every step, for the others to do theirs, and
        ``report(value)``, which returns when the next report is asked for.
        """
        self.drop(name)
        for other, trial in list(self._trials.items()):
            if time.monotonic() - trial.idle_since > self._idle_timeout and not trial.reports:
                self.drop(other)
        trial = self._trials[name] = _Trial()
        threading.Thread(target=self._run, args=(trial, function), daemon=True, name=name).start()

    def next(self, name: str) -> T | None:
        """Return the trial's next report, None after the last. Raise what it raised, and KeyError without a trial."""
        trial = self._trials[name]
        trial.idle_since = float("inf")
        trial.resume.release()
        trial.report_ready.acquire()
        trial.idle_since = time.monotonic()
        if trial.reports:
            return trial.reports.popleft()
        self._trials.pop(name, None)
        if trial.error is not None:
            raise trial.error
        return None

    def drop(self, name: str) -> None:
        """End a trial at its next step, if it is here."""
        trial = self._trials.pop(name, None)
        if trial is not None:
            trial.dropped = True
            trial.resume.release()
            trial.report_ready.release()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no trial work in the block. (Waiting for the whole device spoils a capture that another thread makes.)"""
        self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    def _run(self, trial: _Trial[T], function: TrialFunction[T]) -> None:
        def yield_turn() -> None:
            self._turn.yield_turn()
            if trial.dropped:
                raise TrialDroppedError

        def report(value: T) -> None:
            trial.reports.append(value)
            self._turn.release()
            trial.report_ready.release()
            trial.resume.acquire()
            self._turn.acquire()
            if trial.dropped:
                raise TrialDroppedError

        trial.resume.acquire()
        self._turn.acquire()
        try:
            if not trial.dropped:
                with self._own_stream():
                    function(yield_turn, report)
        except TrialDroppedError:
            pass
        except BaseException as err:
            trial.error = strip_tracebacks(err)
        finally:
            self._turn.release()
            trial.report_ready.release()

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Use a stream that no other trial has. (CUDA hands out 32 in rotation: a 33rd new one is another trial's.)"""
        if self._device.type != "cuda":
            yield
            return
        stream = self._free_streams.pop() if self._free_streams else torch.cuda.Stream(self._device)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._free_streams.append(stream)


def strip_tracebacks(err: BaseException) -> BaseException:
    """Return the error without its frames and those of its causes: they would keep all memory of a trial."""
    cause: BaseException | None = err
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return err
