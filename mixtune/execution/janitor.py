"""Janitor: a small process that ends what a search has started when the search is gone, however it ended.

Ray's processes watch the one that started them, but some miss its death when it comes while they start. The janitor
needs Linux's /proc; elsewhere it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "MIXTUNE_SEARCH"  # in the environment of whatever is started after the janitor
GRACE_SECONDS = 3.0
QUIET_LOOKS = 20  # without any process of the search, a tenth of a second apart
LOOK_SECONDS = 2.0  # between looks while the search lives


class Janitor:
    """Watches this process from now on."""

    def __init__(self) -> None:
        mark = os.environ[MARK] = uuid.uuid4().hex
        # Run as a file, with nothing but the standard library, and out of the reach of the terminal's Ctrl-C.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", __file__, mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )

    def close(self) -> None:
        """What was started is to be gone; the janitor sees to it and goes."""
        os.environ.pop(MARK, None)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            self._process.wait(timeout=0.5)


class Family:
    """The living processes that were started with a mark, and what those have started.

    Seen while they live, because some write their title over the environment that the mark is in (Ray's agents), and
    an orphan does not tell whose it was.
    """

    def __init__(self, mark: str, since: int = 0) -> None:
        """``since``: none was started before this time (of ``_processes``), so older ones are not read."""
        self._mark, self._since = f"{MARK}={mark}".encode(), since
        self._known: dict[int, int] = {}  # by number, with the time it was started at: numbers are used again

    def look(self) -> list[int]:
        """Their numbers now."""
        there = _processes()
        known = {pid for pid, started in self._known.items() if pid in there and there[pid][1] == started}
        for pid in there.keys() - known:
            if there[pid][1] < self._since:
                continue
            with contextlib.suppress(OSError):  # it is gone, or another user's
                if self._mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    known.add(pid)
        while more := {pid for pid, (parent, _) in there.items() if parent in known} - known:
            known |= more
        self._known = {pid: there[pid][1] for pid in known}
        return sorted(known)


def _processes() -> dict[int, tuple[int, int]]:
    """Living processes: their parent and when they were started, in ticks since boot, from Linux's proc(5)."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, *rest = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if state not in "ZX":
                found[int(folder.name)] = int(parent), int(rest[17])
    return found


def sweep(family: Family) -> None:
    """Leave the processes a little time to end by themselves, then kill what is left.

    Looked at again and again, because a process that is just being started cannot be read for a moment.
    """
    end = time.monotonic() + GRACE_SECONDS
    while family.look() and time.monotonic() < end:
        time.sleep(0.1)
    quiet = 0
    while quiet < QUIET_LOOKS:
        left = family.look()
        quiet = 0 if left else quiet + 1
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    # The search starts this first, so what is older is not the search's.
    ours = Family(sys.argv[1], since=_processes().get(os.getpid(), (0, 0))[1])
    # Standard input ends when the search closes its end, or dies.
    while not select.select([sys.stdin], [], [], LOOK_SECONDS)[0]:
        ours.look()
    sweep(ours)
