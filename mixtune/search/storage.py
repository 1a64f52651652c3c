"""Optuna's storage as something that can be away: opened with patience, and told about later by a trial's number.

The default is a journal in the study's folder; a database is any that Optuna takes.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import optuna
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mixtune.errors import NO_ROOM, InputError, no_room
from mixtune.search import journal, sqlite
from mixtune.search.ledger import StorageAwayError
from mixtune.search.spool import PermanentError
from mixtune.secrets import masked

T = TypeVar("T")
log = logging.getLogger("mixtune")
# How long a statement waits for another process's lock on an SQLite file. Optuna repeats some statements five times,
# and whoever waits here keeps all trials waiting; what is longer is the ledger's business.
LOCK_SECONDS = 3.0
PATIENCE_SECONDS = 60.0  # before a search begins and after its last trial, when nothing else can be done
_FULL = ("disk is full", "disk i/o error")  # of the file system, and of a limit on file sizes


@contextlib.contextmanager
def reached(what: str = "the study's storage") -> Iterator[None]:
    """Turn what a storage that is away raises into StorageAwayError, and into NoRoomError on a full disk."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, OSError) as err:
        said = cause(err)
        if getattr(err, "errno", None) in NO_ROOM or any(word in said.lower() for word in _FULL):
            raise no_room(what) from err
        raise StorageAwayError(said) from err


def cause(err: BaseException) -> str:
    """What a database said, in one line: Optuna's own text speaks of something else."""
    while err.__cause__ is not None:
        err = err.__cause__
    return masked(str(err).split("\n")[0])


def patiently(act: Callable[[], T], seconds: float = PATIENCE_SECONDS, pause: float = 1.0) -> T:
    """``act``'s result; repeated while the storage is away, so long at most. Raises StorageAwayError after that."""
    end = time.monotonic() + seconds
    said = False
    while True:
        try:
            return act()
        except StorageAwayError as err:
            if time.monotonic() + pause > end:
                raise
            if not said:
                log.warning("the study's storage does not answer (%s); waiting for it, %g s at most", err, seconds)
            said = True
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


def open_storage(url: str) -> BaseStorage:
    """Open or create a journal or database. Raises InputError when it is unusable, StorageAwayError when locked."""
    try:
        if file := journal.path_of(url):
            return journal.Journal(file)
        # A pooled connection to a server that was restarted is found out before it is used.
        options = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
        return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except Exception as err:
        if getattr(err, "errno", None) in NO_ROOM:
            raise no_room(masked(url)) from None
        if "database is locked" in cause(err):
            raise StorageAwayError(cause(err)) from None
        raise InputError(f"--storage {masked(url)}: not a usable Optuna storage ({cause(err)})") from None


def at_once(storage: BaseStorage, durable: bool = True) -> contextlib.AbstractContextManager[None]:
    """What is written in the block waits for the disk once, or, if it need not outlive a power cut, with a later act.

    A database waits for every statement.
    """
    return storage.lines.at_once(durable) if isinstance(storage, journal.Journal) else contextlib.nullcontext()


def close(storage: BaseStorage) -> None:
    """Give the file or the database's connections back."""
    storage.remove_session()
    if isinstance(storage, journal.Journal):
        storage.lines.close()
    elif isinstance(storage, optuna.storages.RDBStorage):
        storage.engine.dispose()


def holds(url: str, name: str) -> bool:
    """Whether the storage holds a study of this name; nothing is made. Raises InputError when none could be there."""
    path = journal.path_of(url) or sqlite.path_of(url)
    if path is not None and not path.exists():
        if not path.parent.is_dir():
            raise InputError(f"--storage {url}: not a usable Optuna storage (there is no folder {path.parent})")
        return False
    storage = open_storage(url)
    try:
        with reached():
            return name in {found.study_name for found in storage.get_all_studies()}
    finally:
        close(storage)


def report_of(study: optuna.Study, number: int, step: int, score: float) -> None:
    """Record a report of a trial by its number; one that is there stays. Raises PermanentError when it has ended."""
    try:
        trial = _trial(study, number)
        if step not in study.get_trials(deepcopy=False)[number].intermediate_values:
            trial.report(score, step)
    except optuna.exceptions.UpdateFinishedTrialError:
        raise PermanentError(f"report {step} of #{number}: it has ended") from None


def attribute_of(study: optuna.Study, number: int, name: str, value: str) -> None:
    """Set a trial's user attribute by its number. Raises PermanentError when it has ended."""
    try:
        _trial(study, number).set_user_attr(name, value)
    except optuna.exceptions.UpdateFinishedTrialError:
        raise PermanentError(f"{name} of #{number}: it has ended") from None


def _trial(study: optuna.Study, number: int) -> Trial:
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials):
        raise PermanentError(f"#{number} is not in the study")
    if trials[number].state is not TrialState.RUNNING:
        raise PermanentError(f"#{number} has ended")
    return Trial(study, trials[number]._trial_id)
