"""What the process that delivers does in turn, without the process: ``test_courier`` has that."""

import pytest

from mixtune.search.spool import Receiver, Spool
from mixtune.tracking.deliverer import LINGER_SECONDS, MOST, serve


class Scripted:
    """Stands for what the search says: each wait ends with the next of some acts, the last of which ends all."""

    def __init__(self, *acts):
        self.over, self.waits, self._acts = False, [], list(acts)

    def wait(self, seconds):
        self.waits.append(seconds)
        if self._acts:
            self._acts.pop(0)()
        else:
            self.over = True


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool.jsonl")


@pytest.fixture
def got():
    return []


def counted(got, fails=()):
    """A receiver that merges all it is given and notes how many that were; it is away at these attempts."""
    attempts = []

    def deliver(record):
        attempts.append(record)
        if len(attempts) in fails:
            raise ConnectionError("gone")
        got.append(record["n"])

    return Receiver(deliver, "MLflow", 0.5, 30.0, lambda records: [({"n": len(records)}, records)])


def put(spool, n):
    for i in range(n):
        spool.put({"i": i})


def test_records_linger_to_be_merged(spool, got, tmp_path):
    put(spool, 3)
    told = Scripted(lambda: put(spool, 5))
    serve(spool, counted(got), told)
    assert got == [3, 5]
    assert all(0 <= seconds <= LINGER_SECONDS for seconds in told.waits)
    assert list(tmp_path.iterdir()) == []


def test_nothing_lingers_when_many_wait(spool, got):
    put(spool, 2 * MOST + 1)
    told = Scripted()
    serve(spool, counted(got), told)
    assert got == [MOST, MOST, 1]
    assert len(told.waits) == 1


def test_a_store_that_is_away_gets_the_same_records_after_longer_and_longer_pauses(spool, got):
    put(spool, 3)
    told = Scripted(lambda: None, lambda: put(spool, 1))
    serve(spool, counted(got, fails=(1, 2)), told)
    assert got == [4]
    assert told.waits[:2] == [0.5, 1.0]


def test_what_waits_when_the_search_is_gone_stays_on_disk(spool, got):
    told = Scripted()
    told.over = True
    put(spool, 1)
    serve(spool, counted(got), told)
    assert got == []
    assert len(Spool(spool.path).take()) == 1
