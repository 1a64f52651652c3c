"""Journal: the study's storage as one file of lines to which every act is appended, in Optuna's own journal format.

It costs a sixth of what a database does (`benchmarks.overhead`). Optuna's own backend writes the same lines, but a line
that a kill or a full disk cut in the middle spoils its file for good, its lock outlives whoever held it, and every line
waits for the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from mixtune.search.spool import append

PREFIX = "journal:///"
_BEGIN = b'{"op_code":'  # of every line


class Lines(BaseJournalBackend):
    """A file with one JSON object per line. Several processes may append to it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; a last line that is not whole is taken away. Raises OSError, ValueError."""
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._read = (0, 0)  # lines that were read, and bytes
        self._waits, self._unsynced, self._syncing = True, False, threading.Lock()
        try:
            with self._alone():
                self._mend(path)
        except BaseException:
            os.close(self._fd)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # so that a new file outlives a power cut; some file systems cannot
            os.fsync(folder)
        os.close(folder)

    def _mend(self, path: Path) -> None:
        whole = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not (line.endswith(b"\n") and _is_object(line)):
                    if file.readline() or (not _BEGIN.startswith(line[: len(_BEGIN)]) and whole == 0):
                        raise ValueError(f"line {number} is not of a journal of Optuna")
                    break
                whole += len(line)
        if whole < os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, whole)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock that ends with its holder."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The lines from this one on."""
        number, offset = self._read if self._read[0] <= log_number_from else (0, 0)
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, size - offset, offset)
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            number, offset = number + 1, offset + len(line)
            if number > log_number_from:
                self._read = number, offset
                yield json.loads(line)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, whole or not at all, and wait for the disk where that is not put off (``at_once``)."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        with self._alone():
            append(self._fd, data)
        self._unsynced = True
        if self._waits:
            self.sync()

    def sync(self) -> None:
        """Wait until the disk has every line."""
        with self._syncing:
            if self._unsynced:
                self._unsynced = False
                os.fsync(self._fd)

    @contextlib.contextmanager
    def at_once(self, durable: bool) -> Iterator[None]:
        """What is written in the block waits for the disk at its end, or, if it need not be ``durable``, with a later
        act: a power cut may take it then, the death of this process may not.
        """
        self._waits = False
        try:
            yield
            if durable:
                self.sync()
        finally:
            self._waits = True

    def close(self) -> None:
        """Give the file back."""
        os.close(self._fd)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


class Journal(JournalStorage):
    """Optuna's journal storage in one file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when the file cannot be used, ValueError when it holds something else."""
        self.lines = Lines(path)
        super().__init__(self.lines)


def path_of(url: str) -> Path | None:
    """The file of a journal's address; None for another storage's."""
    return Path(url.removeprefix(PREFIX)) if url.startswith(PREFIX) else None
