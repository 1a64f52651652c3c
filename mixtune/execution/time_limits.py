"""Tell which step a trial's worker is at, also after its death, and whether the trial exceeds its time limits."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mixtune.regime import Schedule
from mixtune.search.timeouts import Timeouts

POSITION_FILE = "position"  # in a trial's folder; of a fold that trains beside others, "position-FOLD"
_WIDTH = 64


class Position:
    """The step that a worker is at, written to a file of fixed size that outlives the worker, however it dies.

    A call costs one small write into the page cache (about a microsecond), so every step is recorded. fold: of those
    that train at the same time, each of which has a file until it is done.
    """

    def __init__(self, folder: Path, schedule: Schedule, fold: int | None = None) -> None:
        self._schedule, self._of_fold = schedule, "" if fold is None else f" of fold {fold}"
        self._path = folder / (POSITION_FILE if fold is None else f"{POSITION_FILE}-{fold}")
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        self._write(f"preparing{self._of_fold}")

    def __call__(self, step: int, views: int = 0) -> None:
        """Write that ``step`` steps are done (the form of ``train``'s ``on_step``): the worker is at the next one."""
        n, of_fold = len(self._schedule), self._of_fold
        if step < n:
            shape = self._schedule.shapes[self._schedule.index[step]]
            self._write(f"step {step + 1} of {n}{of_fold}, shape {shape}")
        else:
            self._write(f"after the last of {n} steps{of_fold}")

    def _write(self, text: str) -> None:
        os.pwrite(self._file, text.encode()[:_WIDTH].ljust(_WIDTH), 0)

    def __enter__(self) -> Position:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        os.close(self._file)
        if self._of_fold and kind is None:  # a fold that is done does not move any more, and that is no silence
            self._path.unlink(missing_ok=True)


def _positions(folder: Path) -> dict[Path, str]:
    """Return what each position file of a trial says."""
    texts = {}
    for path in sorted(folder.glob(f"{POSITION_FILE}*")):
        with contextlib.suppress(OSError):  # of a fold that is done just now
            texts[path] = path.read_text(encoding="utf-8").strip()
    return {path: text for path, text in texts.items() if text}


def read_position(folder: Path) -> str | None:
    """Return where the trial in ``folder`` is, or was when its worker died; None where that is not known."""
    return " and ".join(_positions(folder).values()) or None


def clear_position(folder: Path) -> None:
    """Remove the position files of a trial that no worker trains."""
    for path in _positions(folder):
        path.unlink(missing_ok=True)


class TrialClock:
    """One worker's time on one trial, against its limits; ``now`` is in seconds, of any steady clock."""

    def __init__(self, limits: Timeouts, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._began: float | None = None
        self._last_seen: dict[Path, tuple[str, int]] = {}  # of every part that moves by itself
        self._changed: dict[Path, float] = {}  # when that was new
        self._reports = 0

    def start(self, now: float) -> None:
        """Begin: the worker does."""
        self._began = now
        self._last_seen, self._changed = self._state(), {}

    def reported(self) -> None:
        """Count a report of the worker."""
        self._reports += 1

    def exceeded(self, now: float) -> str | None:
        """Return which limit is exceeded, in words; None while none is, or the worker has not begun."""
        if self._began is None:
            return None
        most, silence = self._limits.minutes, self._limits.silent_minutes
        if most is not None and now - self._began > 60 * most:
            return f"it took longer than {most:g} min (limits.minutes){self._where()}"
        if silence is None:
            return None
        before, self._last_seen = self._last_seen, self._state()
        self._changed |= {part: now for part, seen in self._last_seen.items() if before.get(part) != seen}
        if any(now - self._changed.get(part, self._began) > 60 * silence for part in self._last_seen):
            return f"nothing moved for {silence:g} min (limits.silent_minutes){self._where()}"
        return None

    def _state(self) -> dict[Path, tuple[str, int]]:
        positions = _positions(self._folder) or {self._folder: ""}
        return {part: (text, self._reports) for part, text in positions.items()}

    def _where(self) -> str:
        position = read_position(self._folder)
        return f", at {position}" if position else ""
