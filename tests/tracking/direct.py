"""Couriers without a process: one that delivers when somebody waits for it, and one that does not."""

import time

from mixtune.search.spool import Receiver
from mixtune.tracking.delivery import Sender, merged


class Direct:
    """Whoever waits for a delivery makes it."""

    def __init__(self, path, uri, experiment, data):
        self.path, self.sender, self.records = path, Sender(uri, experiment, data), []
        self.receiver = Receiver(self.sender.deliver, "MLflow", 0.01, 0.02, merged)

    def put(self, record):
        self.records.append(record)

    @property
    def waiting(self):
        return len(self.records)

    def flush(self, seconds=10.0):
        end = time.monotonic() + seconds
        while self.records and not self.receiver.takes(self.records):
            if time.monotonic() > end:
                return False
            time.sleep(self.receiver.pause)
        self.records.clear()
        return True

    def close(self):
        self.sender.close()


class Idle:
    """Takes records and delivers none, for tests of a study that do not look into MLflow."""

    waiting = 0

    def __init__(self, path, uri, experiment, data):
        self.path = path

    def put(self, record):
        pass

    def flush(self, seconds=10.0):
        return True

    def close(self):
        pass
