"""Limits: when a trial that does not end by itself is ended, and how often one whose worker died is begun again."""

from __future__ import annotations

import contextlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from mixtune.regime import Schedule

POSITION = "position"  # the file in a trial's folder that says which step its worker is at
_WIDTH = 64


@dataclass(frozen=True)
class Timeouts:
    """What is done about trials that hang or whose worker dies. Absent: trials may take as long as they like.

    minutes: that a worker may spend on a trial, its data and evaluation included; silent_minutes: that may pass without
    a step or a report (longer than an evaluation; reports alone count where a worker's folder is not the driver's);
    retries: how often a trial goes on from its checkpoint, in a new process, after its worker died (killed, out of host
    memory, its node lost) or lost a device or a file; a repeat of one also after a lack of memory.
    A trial that raises anything else, diverges or exceeds a limit is not tried again: it would do the same.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    minutes: float | None = None
    silent_minutes: float | None = None
    retries: int = 1

    def __post_init__(self) -> None:
        for name in ("minutes", "silent_minutes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a number of minutes above 0, not {value}")
        if self.retries < 0:
            raise ValueError(f"retries must be at least 0, not {self.retries}")


class Position:
    """The step that a worker is at, kept in a file of fixed size: it outlives the worker, however that dies.

    A call costs one small write into the page cache (about a microsecond), so every step is recorded. ``fold``: of
    those that train at the same time, each of which has a file, until it is done.
    """

    def __init__(self, folder: Path, schedule: Schedule, fold: int | None = None) -> None:
        self._schedule, self._of = schedule, "" if fold is None else f" of fold {fold}"
        self._path = folder / (POSITION if fold is None else f"{POSITION}-{fold}")
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
        self._write(f"preparing{self._of}")

    def __call__(self, step: int, views: int = 0) -> None:
        """``step`` steps are done (the form of ``train``'s ``on_step``): the next one is what the worker is at."""
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


def positions(folder: Path) -> dict[Path, str]:
    """Where the trial in ``folder`` is or was when its worker died, by the files that say so."""
    found = {}
    for path in sorted(folder.glob(f"{POSITION}*")):
        with contextlib.suppress(OSError):  # a fold that is done just now
            found[path] = path.read_text(encoding="utf-8").strip()
    return {path: text for path, text in found.items() if text}


def position(folder: Path) -> str | None:
    """The same in words; None where it is not known."""
    return " and ".join(positions(folder).values()) or None


def forget_position(folder: Path) -> None:
    """Remove what says where a trial is: nobody works at it."""
    for path in positions(folder):
        path.unlink(missing_ok=True)


class Clock:
    """One worker's time on one trial, for its limits; ``now`` is in seconds, of any steady clock."""

    def __init__(self, limits: Timeouts, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._began: float | None = None
        self._seen: dict[Path, tuple[str, int]] = {}  # what was last seen of every part that moves by itself
        self._changed: dict[Path, float] = {}  # and when it was new
        self._reports = 0

    def start(self, now: float) -> None:
        """The worker begins."""
        self._began = now
        self._seen, self._changed = self._now(), {}

    def reported(self) -> None:
        """The worker reported."""
        self._reports += 1

    def exceeded(self, now: float) -> str | None:
        """Which limit is exceeded, in words; None while all is well or the worker has not begun."""
        if self._began is None:
            return None
        most, silence = self._limits.minutes, self._limits.silent_minutes
        if most is not None and now - self._began > 60 * most:
            return f"it took longer than {most:g} min (limits.minutes){self._where()}"
        if silence is None:
            return None
        before, self._seen = self._seen, self._now()
        self._changed |= {part: now for part, what in self._seen.items() if before.get(part) != what}
        if any(now - self._changed.get(part, self._began) > 60 * silence for part in self._seen):
            return f"nothing moved for {silence:g} min (limits.silent_minutes){self._where()}"
        return None

    def _now(self) -> dict[Path, tuple[str, int]]:
        at = positions(self._folder) or {self._folder: ""}
        return {part: (text, self._reports) for part, text in at.items()}

    def _where(self) -> str:
        at = position(self._folder)
        return f", at {at}" if at else ""


def memory_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes this machine's kernel has killed for want of memory since it started; 0 where unknown."""
    try:
        found = re.search(r"^oom_kill (\d+)$", vmstat.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
