"""Spool: records that are kept in a file until they are delivered, and the patience with whom they are delivered to.

Delivery must be idempotent: after a kill, what was delivered last is delivered once more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mixtune.errors import NO_ROOM, no_room

log = logging.getLogger("mixtune")
Record = Mapping[str, Any]
Merge = Callable[[Sequence[Record]], Iterable[tuple[Record, Sequence[Record]]]]


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


class Spool:
    """A file of records, one JSON line each; beside it PATH.sent counts the bytes that were delivered.

    Both vanish when nothing waits. One process puts and one takes, the same or another; each may be killed at any
    moment.
    """

    def __init__(self, path: Path) -> None:
        """A last line that is not whole, of a process that was killed, is taken away: what it said is not known."""
        self.path, self._sent = path, path.with_name(path.name + ".sent")
        with self._alone() as fd:
            if fd is not None:
                data = path.read_bytes()
                os.ftruncate(fd, data.rfind(b"\n") + 1)
            self._offset = self._marked()  # of whoever takes

    @contextlib.contextmanager
    def _alone(self, make: bool = False) -> Iterator[int | None]:
        """The file, locked and open for appending; None where there is none."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if make else 0), 0o644)
            except FileNotFoundError:
                yield None
                return
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:  # else it vanished meanwhile
                    yield fd
                    return
            finally:
                os.close(fd)

    def _marked(self) -> int:
        try:
            return int(self._sent.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _mark(self) -> None:
        fd = os.open(self._sent, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(fd, b"%020d\n" % self._offset, 0)  # over the last one, so that a kill leaves one of them
        finally:
            os.close(fd)

    def put(self, record: Record) -> int:
        """Append a record, whole or not at all; returns its size in bytes. Raises NoRoomError on a full disk."""
        line = json.dumps(record).encode() + b"\n"
        try:
            with self._alone(make=True) as fd:
                assert fd is not None
                append(fd, line)
        except OSError as err:
            raise no_room(self.path) if err.errno in NO_ROOM else err from None
        return len(line)

    def take(self, most: int | None = None) -> list[tuple[Record, int]]:
        """The first records that are not delivered yet, with their bytes in the file."""
        found: list[tuple[Record, int]] = []
        unreadable = 0
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                for line in islice(file, most):
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    try:
                        found.append((json.loads(line), len(line) + unreadable))
                        unreadable = 0
                    except ValueError:  # the disk was full in the middle of it
                        unreadable += len(line)
        except FileNotFoundError:
            return []
        if unreadable and not found:
            self.done(unreadable)
        return found

    def done(self, size: int) -> None:
        """So many bytes more are delivered."""
        # On a full disk there is no mark; they are delivered once more then, by the next process.
        with self._alone() as fd, contextlib.suppress(OSError):
            self._offset += size
            if fd is not None and self._offset < os.fstat(fd).st_size:
                self._mark()
                return
            self._offset = 0
            # In this order: a kill in between has everything delivered again, the other way records would be skipped.
            self._sent.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)

    def behind(self) -> bool:
        """Whether something waits, as the marks on disk tell whoever puts."""
        with self._alone() as fd:
            return fd is not None and self._marked() < os.fstat(fd).st_size

    def count(self) -> int:
        """How many records wait, as the marks on disk tell."""
        with self._alone() as fd:
            return 0 if fd is None else self.path.read_bytes()[self._marked() :].count(b"\n")


class Receiver:
    """Whom records are delivered to, with patience: it may be away, and it may refuse a record for good.

    ``deliver`` raises PermanentError for a record that is to be dropped, anything else to be called again after a
    pause that doubles from ``pause`` up to ``longest`` seconds. ``merge`` makes fewer records of some, each with those
    it is made from (all of them at once, should one be delivered again).
    """

    def __init__(
        self, deliver: Callable[[Record], None], what: str, pause: float, longest: float, merge: Merge | None = None
    ) -> None:
        self._deliver, self._what, self._merge = deliver, what, merge or (lambda records: ((r, (r,)) for r in records))
        self._first, self._longest, self.pause = pause, longest, pause
        self._away, self._dropped = False, 0

    def takes(self, records: Sequence[Record]) -> bool:
        """Deliver; False when it is away: all of them are to be delivered again, in ``pause`` seconds."""
        if self._away:
            self.pause = min(self._longest, 2 * self.pause)
        try:
            self._send(records)
        except Exception as err:
            if not self._away:
                said = str(err).split("\n")[0][:160]
                log.warning("%s does not answer (%s); what it misses is kept and sent later", self._what, said)
            self._away = True
            return False
        if self._away:
            log.warning("%s answers again; what waited is being sent", self._what)
        self._away, self.pause = False, self._first
        return True

    def _send(self, records: Sequence[Record]) -> None:
        for whole, parts in self._merge(records):
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
