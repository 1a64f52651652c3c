"""End every process that a search has started when the search is gone, also after kill -9 (Linux only).

Ray 2.60 ends its servers and workers with the driver by itself. Its two agents go on for a minute, looking for a server
that is dead, and a process that was just being started when the driver died stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "MIXTUNE_SEARCH"  # in the environment of whatever is started after the janitor
GRACE_SECONDS = 3.0
QUIET_LOOKS = 20  # without any process of the search, a tenth of a second apart


class Janitor:
    """A process beside this one that ends what this one starts from now on, once this one is gone."""

    def __init__(self) -> None:
        mark = os.environ[MARK] = uuid.uuid4().hex
        os.environ["SPT_NOENV"] = "1"  # Ray's processes would write their titles over the environment in /proc
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
        """End all processes that the search started, now; then the janitor exits."""
        os.environ.pop(MARK, None)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on by itself
            self._process.wait(timeout=0.5)


def marked(mark: str) -> list[int]:
    """Return the ids of the processes that were started with this mark, and of what those started."""
    entry, pids = f"{MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                pids.append(int(folder.name))
    return pids


def sweep(mark: str) -> None:
    """Leave the marked processes a little time to end by themselves, then kill what is left.

    Looked for again and again, because a process that is just being started cannot be read for a moment.
    """
    end = time.monotonic() + GRACE_SECONDS
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.1)
    quiet = 0
    while quiet < QUIET_LOOKS:
        left = marked(mark)
        quiet = 0 if left else quiet + 1
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.read()  # ends when the search closes its end, or dies
    sweep(sys.argv[1])
