"""A courier without a process: whoever waits for a delivery makes it."""

import time

from mixtune.study.durable.spool import Receiver
from mixtune.study.tracking.delivery import Sender, merged


class Direct:
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
