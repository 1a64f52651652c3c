"""Open a study's two stores, Optuna's and MLflow's, put right what an earlier search left, and close them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixtune.config import to_yaml
from mixtune.errors import DiskFullError, InputError, StorageAwayError
from mixtune.search import sqlite
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths, save_text
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
        with contextlib.suppress(StorageAwayError, DiskFullError):
            self.trials.reconcile()


def study_exists(space: Space, paths: StudyPaths) -> bool:
    """Return whether the study is there already; nothing is made. Raises InputError when its storage is unusable."""
    if paths.storage is None and not paths.folder.exists():
        return False
    return holds_study(paths.storage_url, space.study)


@contextlib.contextmanager
def open_stores(
    space: Space, paths: StudyPaths, stride: int, resume: bool, proxy: Mapping[str, float] | None = None
) -> Iterator[OpenStudy]:
    """Begin the study or go on with it; with ``resume``, only go on. proxy: see ``OptunaStudy``.

    Raises InputError when a store cannot be used or does not answer.
    """
    if resume and not study_exists(space, paths):
        where = masked(paths.storage_url)
        raise InputError(f"--resume: {where} holds no study {space.study!r}; without --resume it is begun")
    _check_unsent(paths.folder)
    trials, tracker = OptunaStudy(paths.storage_url, space, stride, proxy), None
    try:
        sqlite.use_write_ahead_log(paths.storage_url)
        tracker = MlflowWriter(paths.tracking_uri, space, paths.folder, trials)
        sqlite.use_write_ahead_log(paths.tracking_uri)
        save_text(paths.folder / "space.yaml", to_yaml(space))
        stale = trials.reconcile()
        tracker.start_resync()
        yield OpenStudy(trials, tracker, stale)
    finally:
        trials.close()
        if tracker is not None:
            tracker.close()
        sqlite.leave_write_ahead_log(paths.storage_url)
        sqlite.leave_write_ahead_log(paths.tracking_uri)


def _check_unsent(folder: Path) -> None:
    """Raise InputError where an earlier version kept ends of trials that its database had not taken yet."""
    for pattern in ("unsent-study.jsonl", "*/unsent-study.jsonl"):
        for path in folder.glob(pattern):
            raise InputError(
                f"{path}: an earlier version of mixtune kept here what the study's database had not taken; continue "
                "the study once with that version, or delete the file to have those trials trained again"
            )


@contextlib.contextmanager
def open_round_stores(study: OpenStudy, trials: OptunaStudy) -> Iterator[OpenStudy]:
    """Use a study of its own beside an open one, in the same storage and tracked by the same runs; close it."""
    try:
        yield OpenStudy(trials, study.tracker, trials.reconcile())
    finally:
        trials.close()
