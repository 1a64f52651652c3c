"""Records in a file between two processes, and the patience with whom they are for."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mixtune.search.spool import PermanentError, Receiver, Spool

ROOT = Path(__file__).parents[2]


def taken(spool, most=None):
    return [record["i"] for record, _ in spool.take(most)]


def test_one_puts_another_takes_and_nothing_is_left(tmp_path):
    here, there = Spool(tmp_path / "spool.jsonl"), Spool(tmp_path / "spool.jsonl")
    for i in range(5):
        here.put({"i": i})
    assert here.count() == 5
    batch = there.take(2)
    assert [r["i"] for r, _ in batch] == [0, 1]
    there.done(sum(size for _, size in batch))
    assert (here.behind(), here.count(), taken(there)) == (True, 3, [2, 3, 4])
    assert taken(Spool(tmp_path / "spool.jsonl")) == [2, 3, 4]  # as the next process finds it
    there.done(sum(size for _, size in there.take()))
    assert (here.behind(), here.count(), taken(there)) == (False, 0, [])
    assert list(tmp_path.iterdir()) == []
    here.put({"i": 5})
    assert taken(there) == [5]


def test_a_line_that_is_being_written_is_not_taken_yet(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    spool.put({"i": 0})
    with spool.path.open("ab") as file:
        file.write(b'{"i": 1')
    assert taken(spool) == [0]
    with spool.path.open("ab") as file:
        file.write(b"}\n")
    assert taken(spool) == [0, 1]


def test_what_cannot_be_read_holds_nothing_up(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    spool.path.write_bytes(b'{"i": 0}\nnonsense\n{"i": 1}\nnonsense\n')
    assert taken(spool, 2) == [0]
    spool.done(sum(size for _, size in spool.take(1)))
    assert taken(spool) == [1]
    spool.done(sum(size for _, size in spool.take()))
    assert spool.take() == []
    assert list(tmp_path.iterdir()) == []


# Puts records and says so, until it is killed; takes records and says which, until it is killed.
PUTS = """
import sys
from pathlib import Path
from mixtune.search.spool import Spool
spool = Spool(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), 10**6):
    spool.put({"i": i})
    print(i, flush=True)
"""
TAKES = """
import sys, time
from pathlib import Path
from mixtune.search.spool import Spool
spool = Spool(Path(sys.argv[1]))
while True:
    for record, size in spool.take(7):
        print(record["i"], flush=True)
        spool.done(size)
"""


def test_nothing_is_lost_when_both_ends_are_killed_again_and_again(tmp_path):
    """What was put is taken in order, the record at hand of a killed taker once more."""
    path, put, took = tmp_path / "spool.jsonl", [], []
    for turn in range(3):
        puts = subprocess.Popen(
            [sys.executable, "-c", PUTS, path, str(len(put))], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        takes = subprocess.Popen([sys.executable, "-c", TAKES, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        took += [int(next(takes.stdout)) for _ in range(100 * (turn + 1))]
        for process in (puts, takes):
            process.send_signal(signal.SIGKILL)
        put += [int(line) for line in puts.communicate()[0].split()]
        took += [int(line) for line in takes.communicate()[0].split()]
        spool = Spool(path)
        left = taken(spool)
        if (last := max(took + left)) == len(put):  # it was on disk, perhaps taken already, and not said yet
            put.append(last)
    took += left
    again = [i for i, n in enumerate(took[1:]) if n <= took[i]]
    assert all(took[i + 1] == took[i] for i in again)
    assert len(again) <= 3
    assert sorted(set(took)) == put == list(range(len(put)))
    assert path.stat().st_size == sum(size for _, size in spool.take()) + spool._marked()


class Store:
    """Takes records, unless it is told to fail."""

    def __init__(self):
        self.got, self.away, self.refuses = [], False, None

    def __call__(self, record):
        if self.away:
            raise ConnectionError("gone\nwith a second line")
        if self.refuses is not None and self.refuses in record["i"]:
            raise PermanentError("not this one")
        self.got.append(record)


@pytest.fixture
def store():
    return Store()


def pairs(records):
    """Merges what has the same key."""
    for key in dict.fromkeys(r["key"] for r in records):
        parts = [r for r in records if r["key"] == key]
        yield {"key": key, "i": [i for r in parts for i in r["i"]]}, parts


TEN = [{"key": "ab"[i % 2], "i": [i]} for i in range(10)]


def test_what_waits_is_merged(store):
    assert Receiver(store, "MLflow", 0.5, 30.0, pairs).takes(TEN)
    assert store.got == [{"key": "a", "i": [0, 2, 4, 6, 8]}, {"key": "b", "i": [1, 3, 5, 7, 9]}]


def test_a_merged_record_that_is_refused_is_sent_in_its_parts(store, caplog):
    store.refuses = 3
    receiver = Receiver(store, "MLflow", 0.5, 30.0, pairs)
    assert receiver.takes(TEN)
    assert [r["i"] for r in store.got] == [[0, 2, 4, 6, 8], [1], [5], [7], [9]]
    assert receiver.takes(TEN)
    assert caplog.text.count("does not take a record (not this one), which is left out") == 1


def test_a_receiver_that_goes_away_between_two_merged_records_gets_all():
    calls = []

    def deliver(record):
        calls.append(record["key"])
        if len(calls) == 2:
            raise ConnectionError("gone")

    receiver = Receiver(deliver, "MLflow", 0.5, 30.0, pairs)
    assert not receiver.takes(TEN)
    assert receiver.takes(TEN)
    assert calls == ["a", "b", "a", "b"]


def test_a_receiver_that_is_away_is_asked_less_and_less_often_and_told_of_once(store, caplog):
    receiver, pauses = Receiver(store, "MLflow", 0.5, 3.0), []
    store.away = True
    for _ in range(5):
        assert not receiver.takes(TEN)
        pauses.append(receiver.pause)
    assert pauses == [0.5, 1.0, 2.0, 3.0, 3.0]
    store.away = False
    assert receiver.takes(TEN)
    assert receiver.pause == 0.5
    said = [r.message for r in caplog.records]
    assert said[0] == "MLflow does not answer (gone); what it misses is kept and sent later"
    assert said[1].startswith("MLflow answers again")
    assert len(said) == 2


def test_records_are_lines_that_anyone_can_read(tmp_path):
    spool = Spool(tmp_path / "spool.jsonl")
    spool.put({"name": "a\nb"})
    assert json.loads(spool.path.read_text()) == {"name": "a\nb"}
