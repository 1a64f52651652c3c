"""Open a study's two stores, Optuna's and MLflow's, put right what an earlier search left, and close them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mixtune.config import to_yaml
from mixtune.errors import InputError, NoRoomError, StorageAwayError
from mixtune.search import sqlite
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths, save
from mixtune.search.space import Space
from mixtune.search.storage import holds_study
from mixtune.secrets import masked
from mixtune.tracking.mlflow_writer import MlflowWriter


@dataclass(frozen=True)
class OpenStudy:
    """Trials in Optuna's storage and their tracking in MLflow; ``stale``: how many were cut off and start again."""

    trials: OptunaStudy
    tracker: MlflowWriter
    stale: int

    def reconcile(self) -> None:
        """Close what a search has left running, as far as the storage lets; the next search does the rest."""
        with contextlib.suppress(StorageAwayError, NoRoomError):
            self.trials.reconcile()


def begun(space: Space, places: StudyPaths) -> bool:
    """Return whether the study is there already; nothing is made. Raises InputError when its storage is unusable."""
    if places.storage is None and not places.folder.exists():
        return False
    return holds_study(places.storage_url, space.study)


@contextlib.contextmanager
def opened(
    space: Space, places: StudyPaths, stride: int, resume: bool, proxy: Mapping[str, float] | None = None
) -> Iterator[OpenStudy]:
    """Begin the study or go on with it; with ``resume``, only go on. proxy: see ``OptunaStudy``.

    Raises InputError when a store cannot be used or does not answer.
    """
    if resume and not begun(space, places):
        where = masked(places.storage_url)
        raise InputError(f"--resume: {where} holds no study {space.study!r}; without --resume it is begun")
    trials, tracker = OptunaStudy(places.storage_url, space, stride, proxy), None
    try:
        sqlite.with_log(places.storage_url)
        tracker = MlflowWriter(places.tracking_uri, space, places.folder, trials)
        sqlite.with_log(places.tracking_uri)
        save(places.folder / "space.yaml", to_yaml(space))
        stale = trials.reconcile()
        tracker.start_resync()
        yield OpenStudy(trials, tracker, stale)
    finally:
        trials.close()
        if tracker is not None:
            tracker.close()
        sqlite.plain(places.storage_url)
        sqlite.plain(places.tracking_uri)


@contextlib.contextmanager
def opened_round(study: OpenStudy, trials: OptunaStudy) -> Iterator[OpenStudy]:
    """Use a study of its own beside an open one, in the same storage and tracked by the same runs; close it."""
    try:
        yield OpenStudy(trials, study.tracker, trials.reconcile())
    finally:
        trials.close()
