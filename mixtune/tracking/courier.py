"""Courier: keeps a study's records on disk and has them delivered by a process of its own (``deliverer``).

Whoever puts a record waits for one line to be written to a file, never for MLflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mixtune
from mixtune.errors import NoRoomError
from mixtune.execution.janitor import MARK
from mixtune.search.spool import Record, Spool
from mixtune.tracking import deliverer

log = logging.getLogger("mixtune")
START_SECONDS = 60.0  # for the process to import MLflow, and for an earlier one to end
STARTS = 2  # in a row without anything delivered that are waited for
PAUSE, LONGEST = 0.5, 30.0  # seconds between starts of a process that dies again and again
SAY_AFTER = 3.0  # seconds of waiting that go unmentioned
LOOK_SECONDS = 0.02  # between looks at the file while someone waits


class Courier:
    """Records on their way to MLflow. What is not delivered when it closes stays on disk for the next one."""

    def __init__(self, path: Path, uri: str, experiment: str, data: Mapping[str, Any]) -> None:
        """path: where the records are kept, perhaps with what a killed search left; uri, experiment, data: see
        ``Sender``. The process starts when there is something to deliver.
        """
        self._spool = Spool(path)
        # On its standard input, because an address may hold a password, and arguments are everybody's to see.
        self._study = json.dumps({"records": str(path), "uri": uri, "experiment": experiment, "data": dict(data)})
        self._unkept: deque[Record] = deque()  # there was no room for them
        self._changed, self._closed = threading.Condition(), False
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._sign = 0.0  # of life: when the process gave the last one, or has to give the first
        self._deaths = 0  # in a row, without anything delivered

    @property
    def path(self) -> Path:
        """Where records are kept."""
        return self._spool.path

    @property
    def waiting(self) -> int:
        """How many records are not delivered yet."""
        return self._spool.count() + len(self._unkept)

    @property
    def pid(self) -> int | None:
        """The process that delivers; None before there is something to deliver."""
        return self._process.pid if self._process is not None else None

    def put(self, record: Record) -> None:
        """Keep a record and have it delivered.

        Raises NoRoomError on a full disk: the record is kept once there is room, unless this process ends before.
        """
        self._unkept.append(record)
        self._keep()

    def _keep(self) -> None:
        with self._changed:
            while self._unkept:
                self._spool.put(self._unkept[0])
                self._unkept.popleft()
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._attend, name="courier", daemon=True)
                self._thread.start()

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until everything is delivered; False once nothing was for so many seconds and records are left.

        A store that was away is asked again at once.
        """
        if not (self._unkept or self._spool.behind()):
            return True
        with contextlib.suppress(NoRoomError):
            self._keep()
        with self._changed, contextlib.suppress(OSError):
            self._tell("now")
        began, said = time.monotonic(), False
        while self._spool.behind():
            now = time.monotonic()
            if now > max(self._sign, began) + seconds:
                return False
            if now > began + SAY_AFTER and not said:
                log.warning("waiting for MLflow to take %d records", self.waiting)
                said = True
            time.sleep(LOOK_SECONDS)
        return not self._unkept

    def close(self) -> None:
        """End the process after the records that it is at. What waits stays on disk."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            try:
                self._process.wait(deliverer.GRACE_SECONDS + 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _tell(self, word: str) -> None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def _start(self) -> subprocess.Popen[str]:
        # The janitor is not to end it with what Ray started, nor the terminal's Ctrl-C: the end of its input does.
        kept = {k: v for k, v in os.environ.items() if k != MARK}
        root = str(Path(mixtune.__file__).parents[1])
        return subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", deliverer.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env=kept | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [kept.get("PYTHONPATH")])])},
        )

    def _attend(self) -> None:
        """Have the records delivered, by one process after another should they die."""
        while (why := self._deliver()) is not None:
            with self._changed:
                self._deaths += 1
                if self._deaths == STARTS:  # no longer waited for
                    self._sign = time.monotonic()
                if self._deaths == 1:
                    log.warning("the process that writes to MLflow ended (%s); it is started again", why[:160])
                self._changed.wait_for(lambda: self._closed, min(LONGEST, PAUSE * 2 ** (self._deaths - 1)))

    def _deliver(self) -> str | None:
        """Start a process and listen to it until it ends; why it did, None when it was to."""
        with self._changed:
            if self._closed:
                return None
            try:
                process = self._process = self._start()
            except OSError as err:
                return str(err)
            with contextlib.suppress(OSError):  # dead already
                self._tell(self._study)
            if self._deaths < STARTS:
                self._sign = time.monotonic() + START_SECONDS
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            word = line.split(" ", 1)[0].strip()
            if word == deliverer.SAID:
                log.warning("%s", line.removeprefix(deliverer.SAID).strip())
            elif word in (deliverer.READY, deliverer.DELIVERED):
                self._deaths = 0 if word == deliverer.DELIVERED else self._deaths
                if self._deaths < STARTS:
                    self._sign = time.monotonic()
            else:
                last = line.strip() or last
        code = process.wait()
        return None if self._closed else last or f"exit code {code}"
