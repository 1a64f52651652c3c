"""A study's two books, Optuna's storage and MLflow's store: opened, put right after whatever came before, closed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtune.config import to_yaml
from mixtune.errors import InputError, NoRoomError
from mixtune.search import sqlite
from mixtune.search.ledger import Ledger, StorageAwayError
from mixtune.search.optuna_study import Trials
from mixtune.search.paths import StudyPaths, save
from mixtune.search.space import Space
from mixtune.search.storage import PATIENCE_SECONDS, holds, patiently
from mixtune.secrets import masked
from mixtune.tracking.mlflow_writer import MlflowWriter


@dataclass(frozen=True)
class Books:
    """An open study: ``ledger`` is ``trials`` with patience; ``stale``: trials that were cut off and start again."""

    trials: Trials
    ledger: Ledger
    tracker: MlflowWriter
    stale: int

    def settle(self) -> None:
        """Put the study's record right, as far as its storage lets; the next search does the rest."""
        with contextlib.suppress(StorageAwayError, NoRoomError):
            if self.ledger.flush(PATIENCE_SECONDS):
                self.trials.reconcile()


def begun(space: Space, places: StudyPaths) -> bool:
    """Whether the study is there already; nothing is made. Raises InputError when its storage cannot be used."""
    if places.storage is None and not places.folder.exists():
        return False
    with _in_one_sentence(places):
        return patiently(lambda: holds(places.storage_url, space.study))


@contextlib.contextmanager
def opened(
    space: Space, places: StudyPaths, stride: int, resume: bool, proxy: Mapping[str, float] | None = None
) -> Iterator[Books]:
    """Begin the study or go on with it; with ``resume``, only go on. proxy: see ``Trials``.

    Raises InputError, in here and for whatever the body meets, when a store cannot be used or does not answer.
    """
    with _in_one_sentence(places):
        if resume and not begun(space, places):
            where = masked(places.storage_url)
            raise InputError(f"--resume: {where} holds no study {space.study!r}; without --resume it is begun")
        trials = patiently(lambda: Trials(places.storage_url, space, stride, proxy))
        ledger, tracker = Ledger(trials, places.folder), None
        try:
            sqlite.with_log(places.storage_url)
            _deliver(ledger)
            tracker = MlflowWriter(places.tracking_uri, space, places.folder, trials)
            sqlite.with_log(places.tracking_uri)
            save(places.folder / "space.yaml", to_yaml(space))
            stale = trials.reconcile()
            tracker.start_resync()
            yield Books(trials, ledger, tracker, len(stale))
        finally:
            ledger.close()
            trials.close()
            if tracker is not None:
                tracker.close()
            sqlite.plain(places.storage_url)
            sqlite.plain(places.tracking_uri)


@contextlib.contextmanager
def opened_round(books: Books, folder: Path, make: Callable[[], Trials]) -> Iterator[Books]:
    """A study of its own beside an open one, in the same storage and tracked by the same runs.

    ``folder``: where it keeps what its storage has not taken yet. Raises StorageAwayError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trials = patiently(make)
    ledger = Ledger(trials, folder)
    try:
        _deliver(ledger)
        yield Books(trials, ledger, books.tracker, len(trials.reconcile()))
    finally:
        ledger.close()
        trials.close()


def _deliver(ledger: Ledger) -> None:
    if not ledger.flush(PATIENCE_SECONDS):
        raise StorageAwayError("what an earlier search left for it could not be sent")


@contextlib.contextmanager
def _in_one_sentence(places: StudyPaths) -> Iterator[None]:
    try:
        yield
    except StorageAwayError as err:
        raise InputError(
            f"--storage {masked(places.storage_url)}: does not answer ({err}); nothing that was finished is lost, and "
            "the same command goes on when it does"
        ) from None
