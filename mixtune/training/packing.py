"""Packing: several trials in one process share a GPU that one of them cannot fill; their steps are issued in turn.

Every trial has a thread and, on a GPU, a stream of its own. One thread runs at a time, so that no trial issues work
while another captures its steps, and random numbers are drawn as in a process of its own; the GPU works on all streams.
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
Turn = Callable[[], None]
Work = Callable[[Turn, Callable[[T], None]], None]


class Baton:
    """Whoever holds it runs. It goes to those who wait for it in the order in which they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Semaphore] = deque()
        self._held = False

    def take(self) -> None:
        """Wait for it."""
        with self._lock:
            if not self._held:
                self._held = True
                return
            mine = threading.Semaphore(0)
            self._waiting.append(mine)
        mine.acquire()

    def give(self) -> None:
        """Hand it to the next."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()  # it stays held
            else:
                self._held = False

    def turn(self) -> None:
        """Let the others have theirs."""
        if self._waiting:
            self.give()
            self.take()


class DroppedError(BaseException):
    """Ends a trial whose reports nobody wants any more; not an error of the trial."""


class _Trial(Generic[T]):
    """One trial's thread and what passes between it and the one who asks for its reports."""

    def __init__(self) -> None:
        self.go_on, self.there = threading.Semaphore(0), threading.Semaphore(0)
        self.reports: deque[T] = deque()
        self.error: BaseException | None = None
        self.dropped = False
        self.asked = time.monotonic()


class Pack(Generic[T]):
    """Trials by name. A trial works from the moment its next report is asked for until that report is there.

    ``device``: where they work; each gets a stream of its own if it is a GPU. A trial whose next report has not been
    asked for in ``patience`` seconds is dropped, since whoever asked may have died.
    """

    def __init__(self, device: torch.device, patience: float = 600.0) -> None:
        self._device, self._patience = device, patience
        self._baton = Baton()
        self._trials: dict[str, _Trial[T]] = {}
        self._streams: list[torch.cuda.Stream] = []  # those that no trial has

    def __len__(self) -> int:
        return len(self._trials)

    def start(self, name: str, work: Work[T]) -> None:
        """Begin a trial, in place of an earlier one of this name. ``work(turn, report)`` calls ``turn()`` after every
        step, which is where the others get theirs, and ``report(value)``, which returns when the next one is wanted.
        """
        self.drop(name)
        for other, trial in list(self._trials.items()):
            if time.monotonic() - trial.asked > self._patience and not trial.reports:
                self.drop(other)
        trial = self._trials[name] = _Trial()
        threading.Thread(target=self._run, args=(trial, work), daemon=True, name=name).start()

    def next(self, name: str) -> T | None:
        """The trial's next report; None when there are no more. Raises what the trial raised, and KeyError for a
        trial that is not here.
        """
        trial = self._trials[name]
        trial.asked = float("inf")
        trial.go_on.release()
        trial.there.acquire()
        trial.asked = time.monotonic()
        if trial.reports:
            return trial.reports.popleft()
        self._trials.pop(name, None)
        if trial.error is not None:
            raise trial.error
        return None

    def drop(self, name: str) -> None:
        """End a trial at its next step; nothing happens when it is not here."""
        trial = self._trials.pop(name, None)
        if trial is not None:
            trial.dropped = True
            trial.go_on.release()
            trial.there.release()

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """No trial works in the block. To wait for the whole device while one captures its steps would be an error of
        both.
        """
        self._baton.take()
        try:
            yield
        finally:
            self._baton.give()

    def _run(self, trial: _Trial[T], work: Work[T]) -> None:
        def turn() -> None:
            self._baton.turn()
            if trial.dropped:
                raise DroppedError

        def report(value: T) -> None:
            trial.reports.append(value)
            self._baton.give()
            trial.there.release()
            trial.go_on.acquire()
            self._baton.take()
            if trial.dropped:
                raise DroppedError

        trial.go_on.acquire()
        self._baton.take()
        try:
            if not trial.dropped:
                with self._own_stream():
                    work(turn, report)
        except DroppedError:
            pass
        except BaseException as err:
            trial.error = without_frames(err)
        finally:
            self._baton.give()
            trial.there.release()

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """A stream that no other trial has. CUDA hands out 32 by turns: new ones would soon be those of others."""
        if self._device.type != "cuda":
            yield
            return
        stream = self._streams.pop() if self._streams else torch.cuda.Stream(self._device)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._streams.append(stream)


def without_frames(err: BaseException) -> BaseException:
    """The error, and those that it came from, without their frames, which would keep all of a trial's memory."""
    one: BaseException | None = err
    while one is not None:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return err
