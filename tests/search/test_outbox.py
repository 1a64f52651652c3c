import json
import threading

import pytest

from mixtune.search.outbox import Outbox
from mixtune.search.spool import PermanentError


class Receiver:
    """Takes records, unless it is told to fail: ``away`` raises for every call, ``refuses`` for one kind of record."""

    def __init__(self):
        self.got, self.calls, self.away, self.refuses = [], 0, False, None
        self.tried = threading.Event()

    def __call__(self, record):
        self.calls += 1
        self.tried.set()
        if self.away:
            raise ConnectionError("gone\nwith a second line")
        if record == self.refuses:
            raise PermanentError("not this one")
        self.got.append(record)


@pytest.fixture
def receiver():
    return Receiver()


@pytest.fixture
def box(tmp_path, receiver):
    made = []

    def make():
        made.append(Outbox(tmp_path / "kept.jsonl", receiver, "MLflow", pause=0.01, longest=0.02))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_records_arrive_in_order_and_leave_no_file(box, receiver, tmp_path):
    out = box()
    for i in range(200):
        out.put({"i": i})
    assert out.flush(30)
    assert receiver.got == [{"i": i} for i in range(200)]
    assert list(tmp_path.iterdir()) == []


def test_putting_never_waits_for_the_receiver(tmp_path):
    stuck, go = threading.Event(), threading.Event()

    def hang(record):
        stuck.set()
        go.wait(30)

    out = Outbox(tmp_path / "kept.jsonl", hang, "MLflow")
    out.put({"i": 0})
    assert stuck.wait(30)
    for i in range(1, 50):  # with the thread inside the receiver: this would hang if putting waited for it
        out.put({"i": i})
    assert out.waiting == 50
    assert not out.flush(0)
    go.set()
    assert out.flush(30)
    out.close()


def test_what_a_receiver_that_was_away_missed_is_sent_later(box, receiver, caplog):
    out = box()
    receiver.away = True
    for i in range(5):
        out.put({"i": i})
    assert receiver.tried.wait(30)
    assert not out.flush(0.2)
    receiver.away = False
    assert out.flush(30)
    assert [r["i"] for r in receiver.got] == list(range(5))
    said = [r.message for r in caplog.records]
    assert said[0] == "MLflow does not answer (gone); what it misses is kept and sent later"
    assert said[1].startswith("MLflow answers again")
    assert len(said) == 2  # once per outage, not once per attempt


def test_a_killed_process_leaves_its_records_to_the_next(box, receiver, tmp_path):
    first = box()
    first.put({"i": 0})
    assert first.flush(30)
    receiver.away = True
    for i in range(1, 4):
        first.put({"i": i})
    first.close()
    with (tmp_path / "kept.jsonl").open("ab") as file:
        file.write(b'{"i": 4, "cut')  # killed while writing
    receiver.away = False
    second = box()
    second.put({"i": 5})
    assert second.flush(30)
    assert [r["i"] for r in receiver.got] == [0, 1, 2, 3, 5]


def test_what_was_delivered_before_the_end_is_not_sent_again(receiver, tmp_path):
    lines = [json.dumps({"i": i}) + "\n" for i in range(3)]
    (tmp_path / "kept.jsonl").write_text("".join(lines))
    (tmp_path / "kept.jsonl.sent").write_text(str(len(lines[0])))
    out = Outbox(tmp_path / "kept.jsonl", receiver, "MLflow")
    assert out.flush(30)
    out.close()
    assert [r["i"] for r in receiver.got] == [1, 2]


def test_a_record_that_is_never_accepted_does_not_hold_up_the_others(box, receiver, caplog):
    receiver.refuses = {"i": 1}
    out = box()
    for i in range(3):
        out.put({"i": i})
    assert out.flush(30)
    assert receiver.got == [{"i": 0}, {"i": 2}]
    assert "does not take a record (not this one), which is left out" in caplog.text
