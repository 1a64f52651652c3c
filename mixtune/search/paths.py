"""Where a study's files lie: its folder, which one search at a time locks, and its two stores."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixtune.errors import InputError
from mixtune.files import atomic_write

JOURNAL = "journal:///"  # what the address of a journal begins with


@dataclass(frozen=True)
class StudyPaths:
    """Where a study's files lie. storage and tracking default to files in ``folder``; address: of a Ray cluster."""

    folder: Path
    storage: str | None = None
    tracking: str | None = None
    address: str | None = None

    @property
    def storage_url(self) -> str:
        """The address of Optuna's storage: a journal, or the database of a study from when that was the default."""
        old = self.folder / "study.db"
        return self.storage or (f"sqlite:///{old}" if old.exists() else f"{JOURNAL}{self.folder}/study.journal")

    @property
    def tracking_uri(self) -> str:
        """The address of MLflow's store."""
        return self.tracking or default_uri(self.folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the study's folder. Raises InputError when it cannot be written or another search has locked it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a+")
    except OSError as err:
        raise InputError(
            f"--out {folder}: cannot be written to ({err.strerror}); name another folder with --out"
        ) from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"--out {folder}: another search is running there; wait for it or name another folder"
            ) from None
        yield


def save_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises InputError, and the earlier one is intact then."""
    atomic_write(path, text.encode())


def default_uri(folder: Path) -> str:
    """Return the address of the tracking store inside a study's folder."""
    return f"sqlite:///{folder.absolute()}/mlflow.db"
