"""Record which step a worker is at, in a file that outlives it, and tell from it when a trial exceeds a time limit."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mixtune.regime import Schedule
from mixtune.search.timeouts import Timeouts

POSITION = "position"  # the file in a trial's folder that names the step its worker is at
_WIDTH = 64  # bytes in the file


class Position:
    """The step that a worker is at, kept in a file of fixed size: it outlives the worker, however that dies.

    A call costs one small write into the page cache (about a microsecond), so every step is recorded. ``fold``: of
    those that train at the same time, each of which has a file until it is done.
    """

    def __init__(self, folder: Path, schedule: Schedule, fold: int | None = None) -> None:
        self._schedule, self._of = schedule, "" if fold is None else f" of fold {fold}"
        self._path = folder / (POSITION if fold is None else f"{POSITION}-{fold}")
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        self._write(f"preparing{self._of}")

    def __call__(self, step: int, views: int = 0) -> None:
        """Record that ``step`` steps are done (the form of ``train``'s ``on_step``): the worker is at the next one."""
        n = len(self._schedule)
        if step < n:
            self._write(f"step {step + 1} of {n}{self._of}, shape {self._schedule.shapes[self._schedule.index[step]]}")
        else:
            self._write(f"after the last of {n} steps{self._of}")

    def _write(self, text: str) -> None:
        os.pwrite(self._file, text.encode()[:_WIDTH].ljust(_WIDTH), 0)

    def __enter__(self) -> Position:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        os.close(self._file)
        if self._of and kind is None:  # it does not move any more, and that is no silence
            self._path.unlink(missing_ok=True)


def read_positions(folder: Path) -> dict[Path, str]:
    """Return where the trial in ``folder`` is, or was when its worker died, by the files that say so."""
    positions = {}
    for path in sorted(folder.glob(f"{POSITION}*")):
        with contextlib.suppress(OSError):  # a fold that is done just now
            positions[path] = path.read_text(encoding="utf-8").strip()
    return {path: text for path, text in positions.items() if text}


def describe_position(folder: Path) -> str | None:
    """Return the same in words; None where it is not known."""
    return " and ".join(read_positions(folder).values()) or None


def remove_positions(folder: Path) -> None:
    """Remove the files that say where a trial is: no worker has it."""
    for path in read_positions(folder):
        path.unlink(missing_ok=True)


class TrialClock:
    """One worker's time on one trial, for its limits; ``now`` is in seconds, of any steady clock."""

    def __init__(self, limits: Timeouts, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._began: float | None = None
        self._positions: dict[Path, tuple[str, int]] = {}  # what was last seen of every part that moves by itself
        self._changed: dict[Path, float] = {}  # and when it was new
        self._reports = 0

    def start(self, now: float) -> None:
        """Start the clock: the worker begins."""
        self._began = now
        self._positions, self._changed = self._read(), {}

    def reported(self) -> None:
        """Count a report of the worker as a movement."""
        self._reports += 1

    def exceeded(self, now: float) -> str | None:
        """Return which limit is exceeded, in words; None while none is or the worker has not begun."""
        if self._began is None:
            return None
        minutes, silent_minutes = self._limits.minutes, self._limits.silent_minutes
        if minutes is not None and now - self._began > 60 * minutes:
            return f"it took longer than {minutes:g} min (limits.minutes){self._where()}"
        if silent_minutes is None:
            return None
        before, self._positions = self._positions, self._read()
        self._changed |= {part: now for part, state in self._positions.items() if before.get(part) != state}
        if any(now - self._changed.get(part, self._began) > 60 * silent_minutes for part in self._positions):
            return f"nothing moved for {silent_minutes:g} min (limits.silent_minutes){self._where()}"
        return None

    def _read(self) -> dict[Path, tuple[str, int]]:
        positions = read_positions(self._folder) or {self._folder: ""}
        return {part: (text, self._reports) for part, text in positions.items()}

    def _where(self) -> str:
        position = describe_position(self._folder)
        return f", at {position}" if position else ""
