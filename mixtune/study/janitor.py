"""Janitor: a small process that ends what a search has started when the search is gone, however it ended.

Ray's processes watch the one that started them, but some miss its death when it comes while they start. The janitor
needs Linux's /proc; elsewhere it does nothing.
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
QUIET_LOOKS = 20  # without any marked process, a tenth of a second apart


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


def marked(mark: str) -> list[int]:
    """Processes that were started with this mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def sweep(mark: str) -> None:
    """Leave the marked processes a little time to end by themselves, then kill what is left.

    Looked at again and again, because a process that is just being started cannot be read for a moment.
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
    sys.stdin.buffer.read()  # ends when the search closes its end, or dies
    sweep(sys.argv[1])
