"""Deliverer: the process that takes a study's records from disk and writes them to MLflow; ``Courier`` starts it.

A process of its own, because writing to MLflow costs as much as conducting the search, and would hold up Ray's loop.
It may be killed at any moment: the next one goes on where the file's mark is.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

from mixtune.search.spool import Receiver, Record, Spool
from mixtune.tracking.delivery import Sender, merged

MOST = 256  # records that are merged at a time
LINGER_SECONDS = 0.25  # MLflow is so far behind at least; the records of a short trial are one by then
GRACE_SECONDS = 5.0  # for the record at hand, when the search is gone
READY, DELIVERED, SAID = "ready", "delivered", "say"  # what lines of the standard output begin with
SIGN_SECONDS = 0.5  # between signs that something was delivered


class Told:
    """What the search says on standard input: a line is "now", its end is the end, also when the search is killed."""

    def __init__(self) -> None:
        self.over = False
        self._now = threading.Event()
        threading.Thread(target=self._heed, daemon=True).start()

    def _heed(self) -> None:
        for _ in sys.stdin:
            self._now.set()
        self.over = True
        self._now.set()
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    def wait(self, seconds: float) -> None:
        """Until something is said, so long at most."""
        self._now.wait(seconds)
        self._now.clear()


def serve(spool: Spool, receiver: Receiver, told: Told) -> None:
    """Deliver what is there and what comes, until it is told to end."""
    while not told.over:
        looked = time.monotonic()
        batch = spool.take(MOST)
        if batch and not receiver.takes([record for record, _ in batch]):
            told.wait(receiver.pause)
            continue
        if batch:
            spool.done(sum(size for _, size in batch))
        if len(batch) < MOST:
            told.wait(max(0.0, looked + LINGER_SECONDS - time.monotonic()))


def main() -> None:
    """Serve the study that the first line of standard input describes; another deliverer there ends first."""
    study = json.loads(sys.stdin.readline())
    told, path = Told(), Path(study["records"])
    to_the_search = logging.StreamHandler(sys.stdout)
    to_the_search.setFormatter(logging.Formatter(f"{SAID} %(message)s"))
    logging.getLogger("mixtune").addHandler(to_the_search)
    sender: Sender | None = None
    sign = 0.0

    def deliver(record: Record) -> None:
        nonlocal sender, sign
        sender = sender or Sender(study["uri"], study["experiment"], study["data"])
        sender.deliver(record)
        if time.monotonic() > sign + SIGN_SECONDS:
            print(DELIVERED, flush=True)
            sign = time.monotonic()

    with path.with_name("delivery.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        print(READY, flush=True)
        serve(Spool(path), Receiver(deliver, "MLflow", 0.5, 30.0, merged), told)
        if sender is not None:
            sender.close()


if __name__ == "__main__":
    main()
