"""Open a study's storage, Optuna's journal file by default or a database, and repeat calls while it does not answer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file
from sqlalchemy.exc import SQLAlchemyError
from tenacity import RetryCallState, retry_if_exception_type, stop_after_delay, wait_exponential
from tenacity import Retrying as TenacityRetrying

from mixtune.errors import DISK_FULL, InputError, StorageAwayError, disk_full_error
from mixtune.search import sqlite
from mixtune.search.paths import JOURNAL
from mixtune.secrets import masked

T = TypeVar("T")
log = logging.getLogger("mixtune")
# How long a statement waits for another process's lock on an SQLite file; Optuna repeats some statements five times.
LOCK_SECONDS = 3.0
# How long a call is repeated. Trials go on training meanwhile; one that reports waits for the call, with its GPU.
STORAGE_RETRY_SECONDS = 600.0
_FULL = ("disk is full", "disk i/o error")  # SQLite's words for a full disk and for a limit on file sizes
_FIRST = b'{"op_code":'  # what a journal begins with


class JournalLock(BaseJournalFileLock):
    """Lock a journal while a line is appended, and take back what a write that failed has left of a line.

    flock(2) ends with its holder; after a kill, Optuna's own locks keep the next process waiting for 30 s.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock; the file is made if it is not there. Raise OSError when it cannot be written."""
        self.file = self._path.open("ab+")
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self._size = os.fstat(self.file.fileno()).st_size
        return True

    def release(self) -> None:
        """Give the lock back."""
        with self.file:
            end = os.fstat(self.file.fileno()).st_size
            if end > self._size and os.pread(self.file.fileno(), 1, end - 1) != b"\n":
                self.file.truncate(self._size)


class _Journal(JournalFileBackend):
    line = 0  # the number of the last line that was read

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        for number, record in enumerate(super().read_logs(log_number_from), log_number_from + 1):
            self.line = number
            yield record


def open_journal(path: Path) -> JournalStorage:
    """Open or make a journal; a last line that a kill or a power cut left unfinished is cut off.

    Raises InputError, naming the line, when another line is damaged or the file is no journal; OSError when it cannot
    be written.
    """
    lock = JournalLock(path)
    with get_lock_file(lock):
        _cut_unfinished_line(path)
    journal = _Journal(str(path), lock)
    try:
        return JournalStorage(journal)
    except OSError:
        raise
    except Exception:  # Optuna's KeyError, AssertionError, ValueError for a record that is not one
        raise _damaged(path, journal.line) from None


def _cut_unfinished_line(path: Path) -> None:
    whole = 0
    with path.open("rb+") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and _is_record(line):
                whole += len(line)
            elif file.read(1) or (whole == 0 and not _FIRST.startswith(line[: len(_FIRST)])):
                raise _damaged(path, number)
        if whole < os.fstat(file.fileno()).st_size:
            file.truncate(whole)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _damaged(path: Path, line: int) -> InputError:
    return InputError(
        f"{path}: line {line} is not a record of an Optuna journal; restore the file from a copy, or begin the study "
        "in another folder (--out)"
    )


def open_storage(url: str) -> BaseStorage:
    """Open or create a journal or a database.

    Raises InputError when it is unusable, StorageAwayError when it is locked, DiskFullError on a full disk.
    """
    try:
        if path := journal_path(url):
            return open_journal(path)
        # A pooled connection to a server that was restarted is found out before it is used.
        options = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        return RDBStorage(url, engine_kwargs=options)
    except InputError:
        raise
    except Exception as err:
        if getattr(err, "errno", None) in DISK_FULL:
            raise disk_full_error(masked(url)) from None
        if "database is locked" in _cause(err):
            raise _away(url, err) from err
        raise InputError(f"--storage {masked(url)}: not a usable Optuna storage ({_cause(err)})") from None


def journal_path(url: str) -> Path | None:
    """Return the file of a journal's address; None for another storage's."""
    return Path(url.removeprefix(JOURNAL)) if url.startswith(JOURNAL) else None


def close_storage(storage: BaseStorage) -> None:
    """Give a database's connections back."""
    storage.remove_session()
    if isinstance(storage, RDBStorage):
        storage.engine.dispose()


def holds_study(url: str, name: str) -> bool:
    """Return whether the storage holds a study of this name; nothing is made.

    Raises InputError when none could be there, StorageAwayError when the storage does not answer.
    """
    path = journal_path(url) or sqlite.sqlite_path(url)
    if path is not None and not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"--storage {url}: not a usable Optuna storage (there is no folder {path.parent})")
        return False
    retry = Retry(url)
    storage = retry(open_storage, url)
    try:
        return name in {study.study_name for study in retry(storage.get_all_studies)}
    finally:
        close_storage(storage)


class Retry:
    """Call functions of the storage at ``url``, again and again while it does not answer.

    Each call takes ``STORAGE_RETRY_SECONDS`` at most. After one that took that long, calls are made once only, until
    the storage answers again.
    """

    def __init__(self, url: str) -> None:
        self._url, self._away = url, False

    def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Return what the function returns. Raises StorageAwayError after the last attempt, DiskFullError at once."""
        attempts = TenacityRetrying(
            retry=retry_if_exception_type(StorageAwayError),
            stop=stop_after_delay(0 if self._away else STORAGE_RETRY_SECONDS),
            wait=wait_exponential(0.5, max=10),
            before_sleep=_warn,
            reraise=True,
        )
        try:
            result: T = attempts(self._once, function, *args, **kwargs)
        except StorageAwayError:
            self._away = True
            raise
        if attempts.statistics["attempt_number"] > 1 or self._away:
            log.warning("the study's storage answers again")
        self._away = False
        return result

    def _once(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        with storage_errors(self._url):
            return function(*args, **kwargs)


def _warn(attempt: RetryCallState) -> None:
    if attempt.attempt_number == 1 and attempt.outcome and (err := attempt.outcome.exception()):
        said = "the study's storage does not answer (%s); it is asked again for %g s at most"
        log.warning(said, _cause(err), STORAGE_RETRY_SECONDS)


@contextlib.contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a storage that is away raises into StorageAwayError, and into DiskFullError on a full disk."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as err:
        full = any(words in _cause(err).lower() for words in _FULL)
        if full or getattr(err, "errno", None) in DISK_FULL:
            raise disk_full_error("the study's storage") from err
        raise _away(url, err) from err


def _away(url: str, err: BaseException) -> StorageAwayError:
    return StorageAwayError(
        f"--storage {masked(url)}: does not answer ({_cause(err)}); nothing that was finished is lost, and the same "
        "command goes on when it does"
    )


def _cause(err: BaseException) -> str:
    """Return what a database said, in one line: Optuna's own text speaks of something else."""
    while err.__cause__ is not None:
        err = err.__cause__
    return masked(str(err).split("\n")[0])
