"""Outbox: records that are kept on disk until a thread has delivered them, in order.

Whoever puts a record waits for one line to be written to a file, never for the receiver. While the receiver is away the
records stay; those that a killed process left are delivered by the next one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from mixtune.search.spool import Receiver, Record, Spool


class Outbox:
    """A queue with a file behind it (``Spool``) and a thread in front; the other arguments are ``Receiver``'s."""

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Record], None],
        what: str,
        pause: float = 0.5,
        longest: float = 30.0,
    ) -> None:
        self._spool, self._receiver = Spool(path), Receiver(deliver, what, pause, longest)
        self._changed = threading.Condition()
        self._waiting = deque(self._spool.take())  # record, bytes in the file
        self._closed = self._hurry = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many records are not delivered yet."""
        return len(self._waiting)

    def put(self, record: Record) -> None:
        """Keep a record and have it delivered.

        Raises NoRoomError on a full disk: the record is delivered all the same, unless this process ends before.
        """
        with self._changed:
            size = 0
            try:
                size = self._spool.put(record)
            finally:
                self._waiting.append((record, size))
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything is delivered, ``seconds`` at most; False when records are left.

        A receiver that was away is asked again at once.
        """
        end = time.monotonic() + seconds
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._waiting, max(0.0, end - time.monotonic()))

    def close(self) -> None:
        """End the thread after the record that it is at. What waits stays on disk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                record, size = self._waiting[0]
            taken = self._receiver.takes([record])
            with self._changed:
                if taken:
                    self._waiting.popleft()
                    self._spool.done(size)
                    self._changed.notify_all()
                    continue
                self._changed.wait_for(lambda: self._closed or self._hurry, self._receiver.pause)
                self._hurry = False
