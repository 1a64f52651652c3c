"""Outbox: records that are kept on disk until a thread has delivered them, in order.

Whoever puts a record waits for one line to be written to a file, never for the receiver. While the receiver is away the
records stay; those that a killed process left are delivered by the next one. Delivery must be idempotent: the last
record may be delivered twice.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mixtune.errors import NO_ROOM, no_room

log = logging.getLogger("mixtune")
Record = Mapping[str, Any]
MOST = 256  # records that are merged at a time


class PermanentError(Exception):
    """A record that will never be accepted; it is dropped, so that it does not hold up those behind it."""


def append(fd: int, data: bytes) -> None:
    """Write at the end of an open file, whole or not at all. Raises OSError."""
    end = os.fstat(fd).st_size
    try:
        if os.write(fd, data) < len(data):  # as much as there was room for
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        os.ftruncate(fd, end)
        raise


class Outbox:
    """A queue with a file behind it and a thread in front.

    ``path``: one JSON record per line; beside it PATH.sent counts the bytes that were delivered. Both vanish when
    nothing waits. ``deliver`` raises PermanentError for a record that is to be dropped, anything else to be called
    again after a pause that doubles from ``pause`` up to ``longest`` seconds. ``merge`` makes fewer records of some
    that wait, each with those it is made from (all of them at once, should one be delivered again); they wait for
    ``linger`` seconds, so that there are some.
    """

    def __init__(
        self,
        path: Path,
        deliver: Callable[[Record], None],
        what: str,
        pause: float = 0.5,
        longest: float = 30.0,
        merge: Callable[[Sequence[Record]], Iterable[tuple[Record, Sequence[Record]]]] | None = None,
        linger: float = 0.0,
    ) -> None:
        self._merge, self._linger = merge, linger
        self.path, self._sent = path, path.with_name(path.name + ".sent")
        self._deliver, self._what, self._pause, self._longest = deliver, what, pause, longest
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Record, int]] = deque()  # record, bytes in the file
        self._away = self._closed = self._hurry = False
        self._dropped = self._flushing = 0
        self._offset = self._read()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def _read(self) -> int:
        """Queue what an earlier process left; returns the bytes delivered already."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        try:
            offset = int(self._sent.read_text())
        except (FileNotFoundError, ValueError):
            offset = 0
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):  # killed in the middle of a line: what it would have said is not known
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        unreadable = 0
        for line in whole[offset:].splitlines(keepends=True):
            try:
                self._waiting.append((json.loads(line), len(line) + unreadable))
                unreadable = 0
            except ValueError:  # the disk was full in the middle of it
                unreadable += len(line)
        return offset

    @property
    def waiting(self) -> int:
        """How many records are not delivered yet."""
        return len(self._waiting)

    def put(self, record: Record) -> None:
        """Keep a record and have it delivered.

        Raises NoRoomError on a full disk: the record is delivered all the same, unless this process ends before.
        """
        line = json.dumps(record).encode() + b"\n"
        with self._changed:
            failure = self._keep(line)
            self._waiting.append((record, 0 if failure else len(line)))
            self._changed.notify_all()
        if failure:
            raise no_room(self.path) if failure.errno in NO_ROOM else failure

    def _keep(self, line: bytes) -> OSError | None:
        """Append a line to the file, whole or not at all; returns what went wrong."""
        try:
            with self.path.open("ab", buffering=0) as file:
                append(file.fileno(), line)
        except OSError as err:
            return err
        return None

    def flush(self, seconds: float) -> bool:
        """Wait until everything is delivered, ``seconds`` at most; False when records are left.

        A receiver that was away is asked again at once.
        """
        end = time.monotonic() + seconds
        with self._changed:
            self._hurry = True
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not self._waiting, max(0.0, end - time.monotonic()))
            finally:
                self._flushing -= 1

    def close(self) -> None:
        """End the thread after the record that it is at. What waits stays on disk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        pause = self._pause
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                self._changed.wait_for(self._enough, self._linger)
                if self._closed:
                    return
                batch = list(islice(self._waiting, MOST if self._merge else 1))
            try:
                self._send([record for record, _ in batch])
            except Exception as err:
                if not self._away:
                    said = str(err).split("\n")[0][:160]
                    log.warning("%s does not answer (%s); what it misses is kept and sent later", self._what, said)
                self._away = True
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._hurry, pause)
                    self._hurry = False
                pause = min(self._longest, 2 * pause)
                continue
            if self._away:
                log.warning("%s answers again; %d records that waited are being sent", self._what, self.waiting)
            self._away, pause = False, self._pause
            self._done(batch)

    def _enough(self) -> bool:
        return self._closed or self._flushing > 0 or len(self._waiting) >= MOST

    def _send(self, records: Sequence[Record]) -> None:
        for whole, parts in self._merge(records) if self._merge else ((r, (r,)) for r in records):
            try:
                self._deliver(whole)
            except PermanentError as err:
                if len(parts) == 1:
                    self._drop(err)
                    continue
                for part in parts:  # one of them
                    try:
                        self._deliver(part)
                    except PermanentError as its:
                        self._drop(its)

    def _drop(self, err: PermanentError) -> None:
        self._dropped += 1
        if self._dropped == 1:
            log.warning("%s does not take a record (%s), which is left out", self._what, err)

    def _done(self, batch: Sequence[tuple[Record, int]]) -> None:
        with self._changed:
            for _, size in batch:
                self._waiting.popleft()
                self._offset += size
            with contextlib.suppress(OSError):  # a full disk: what was delivered is delivered once more, by the next
                if self._waiting:
                    self._sent.write_text(str(self._offset))
                else:
                    self.path.unlink(missing_ok=True)
                    self._sent.unlink(missing_ok=True)
                    self._offset = 0
            self._changed.notify_all()
