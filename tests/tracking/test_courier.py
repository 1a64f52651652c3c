"""The process that writes to MLflow, and what kills, locks and full disks do to it: nothing is lost or doubled."""

import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mixtune.config import parse
from mixtune.errors import NoRoomError
from mixtune.execution import janitor
from mixtune.search.space import Space
from mixtune.tracking import courier as courier_
from mixtune.tracking import deliverer
from mixtune.tracking.courier import Courier
from mixtune.tracking.mlflow_writer import MlflowWriter
from tests.accounts import assert_gone
from tests.search.test_optuna_study import CURVE
from tests.test_full_disk import room_for
from tests.tracking.test_mlflow_writer import REPORT, candidate

ROOT = Path(__file__).parents[2]
LOOK = 0.1  # seconds between looks into the store: each takes as much of a core as the process that writes there


@pytest.fixture
def tracker(tmp_path, tiny, empty_store):
    folder = tmp_path / "a folder"
    folder.mkdir()
    made = MlflowWriter(empty_store(folder), parse(tiny, Space, "f"), folder)
    yield made
    made.close()


def until(what, seconds=60, pause=0.01):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(pause)
    return found


def run_trial(tracker, number):
    trial = candidate(tracker, number)
    tracker.started(trial)
    for part in (0.5, 1.0):
        tracker.reported(trial, REPORT | {"progress": part}, 0.3 + part / 10)
    tracker.ended(trial, "COMPLETE", 0.4, "", CURVE)


def runs(tracker):
    found = MlflowClient(tracker.uri).search_runs([tracker.experiment], "tags.`mixtune.kind` = 'trial'")
    return sorted(found, key=lambda r: r.info.run_name)


def assert_whole(tracker, n):
    """Trials 0 to n - 1 are there, each once, with all that it did."""
    client, found = MlflowClient(tracker.uri), runs(tracker)
    assert [int(r.data.tags["mixtune.trial"]) for r in found] == list(range(n))
    for run in found:
        history = client.get_metric_history(run.info.run_id, "score")
        assert [(m.step, m.value) for m in history] == [(50, 0.35), (100, 0.4)]
        assert len(client.get_metric_history(run.info.run_id, "curve/top1")) == len(CURVE.points)
        assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["regime.yaml"]
        assert (run.info.status, run.data.tags["mixtune.state"]) == ("FINISHED", "COMPLETE")
        assert len(run.inputs.dataset_inputs) == 1


def process_of(tracker):
    return until(lambda: tracker.courier._process)


def test_a_study_is_delivered_whole_by_a_process_that_ends_then_and_not_before(
    tmp_path, tiny, empty_store, monkeypatch
):
    """Neither the janitor nor the terminal ends it: it is still needed when Ray and all that it started are gone."""
    monkeypatch.setenv(janitor.MARK, "a test of the courier")
    tracker = MlflowWriter(empty_store(tmp_path), parse(tiny, Space, "f"), tmp_path)
    for number in range(3):
        run_trial(tracker, number)
    process = process_of(tracker)
    janitor.sweep(janitor.Family("a test of the courier"))
    assert process.poll() is None
    assert os.getsid(process.pid) != os.getsid(0)
    assert tracker.finish("FINISHED", [])
    assert process.returncode == 0
    assert_whole(tracker, 3)
    (parent,) = (r for r in MlflowClient(tracker.uri).search_runs([tracker.experiment], "status = 'FINISHED'")
                 if r.data.tags["mixtune.kind"] == "study")  # fmt: skip
    assert parent.info.run_id == tracker.parent
    assert not list(tracker._folder.glob("unsent*"))


@pytest.mark.parametrize(("n", "kills"), [(10, (1, 5)), pytest.param(60, (1, 8, 9, 30, 50), marks=pytest.mark.slow)])
def test_killed_in_the_middle_it_is_started_again_and_nothing_is_lost_or_doubled(tracker, caplog, n, kills):
    """Killed as soon as so many runs are there: at the first, while they are being made, and again at once."""
    killed = []
    for number in range(n):
        run_trial(tracker, number)
    for there in kills:
        until(lambda there=there: len(runs(tracker)) >= there or None, pause=LOOK)
        process = until(lambda: p if (p := tracker.courier._process).poll() is None else None)
        assert tracker.courier.waiting
        os.kill(process.pid, signal.SIGKILL)
        killed.append(process.wait(10))
    assert tracker.flush(60)
    assert killed == [-signal.SIGKILL] * len(kills)
    assert_whole(tracker, n)
    assert "the process that writes to MLflow ended (exit code -9); it is started again" in caplog.text
    assert not list(tracker._folder.glob("unsent*"))


# A search that is killed with records on disk and in delivery.
SEARCH = """
import sys, time
from pathlib import Path
from mixtune.config import parse
from mixtune.search.space import Space
from mixtune.search.paths import default_uri
from mixtune.tracking.mlflow_writer import MlflowWriter
from tests.conftest import TINY
from tests.tracking.test_courier import run_trial
folder = Path(sys.argv[1])
tracker = MlflowWriter(default_uri(folder), parse(TINY, Space, "f"), folder)
print(tracker.parent, flush=True)
for number in range(12):
    run_trial(tracker, number)
print("put", flush=True)
time.sleep(600)
"""


def test_it_ends_with_a_search_that_is_killed_and_the_next_delivers_the_rest(tmp_path, tiny, empty_store):
    uri, mark = empty_store(tmp_path), f"courier {os.getpid()}"
    search = subprocess.Popen(
        [sys.executable, "-c", SEARCH, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MIXTUNE_MARK": mark},
    )
    parent = search.stdout.readline().strip()
    assert search.stdout.readline() == "put\n"
    client = MlflowClient(uri)
    (experiment,) = (e.experiment_id for e in client.search_experiments() if e.name == "mixtune")
    until(lambda: len(client.search_runs([experiment])) > 4, pause=LOOK)
    search.kill()
    search.wait()
    # The next one begins at once; it waits for the process of the first.
    again = MlflowWriter(uri, parse(tiny, Space, "f"), tmp_path, parent)
    assert again.parent == parent
    assert again.courier.waiting
    assert again.flush(60)
    again.close()
    assert_whole(again, 12)
    assert_gone(mark, deliverer.GRACE_SECONDS + 10)


def test_two_never_deliver_at_once_and_a_long_wait_is_told(tracker, monkeypatch, caplog):
    """As after a kill, when the first is not gone yet."""
    monkeypatch.setattr(courier_, "START_SECONDS", 5.0)
    monkeypatch.setattr(courier_, "SAY_AFTER", 0.0)
    with (tracker._folder / "delivery.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run_trial(tracker, 0)
        assert not tracker.flush(0.1)
        assert tracker.courier.waiting == 4
        assert runs(tracker) == []
    assert tracker.flush(60)
    assert "waiting for MLflow to take 4 records" in caplog.text
    assert_whole(tracker, 1)


def test_a_process_that_cannot_start_keeps_nobody_waiting_for_ever(tracker, monkeypatch, caplog):
    monkeypatch.setattr(courier_, "PAUSE", 0.01)
    with monkeypatch.context() as patch:
        patch.setattr(courier_.sys, "executable", "/bin/false")
        run_trial(tracker, 0)
        assert not tracker.flush(0.5)
        assert tracker.courier.waiting == 4
    assert caplog.text.count("the process that writes to MLflow ended (exit code 1); it is started again") == 1
    assert tracker.flush(60)
    assert_whole(tracker, 1)


def test_no_room_is_said_and_what_was_put_is_kept_once_there_is(tracker):
    trial = candidate(tracker, 0)
    tracker.started(trial)
    process_of(tracker)  # it is not without room
    with room_for(20):
        for part in (0.5, 1.0):
            with pytest.raises(NoRoomError, match=r"unsent.*is full"):
                tracker.reported(trial, REPORT | {"progress": part}, 0.3 + part / 10)
    tracker.ended(trial, "COMPLETE", 0.4, "", CURVE)
    assert tracker.flush(60)
    assert_whole(tracker, 1)


def test_what_it_has_to_say_of_the_store_is_logged_here(tmp_path, caplog):
    """A store that is nowhere, and a password that is nobody's business."""
    data = {"name": "digits", "digest": "0", "classes": 10, "train": 1, "validation": 1, "test": 1}
    uri = "http://me:hunter2@127.0.0.1:9"
    courier = Courier(tmp_path / "unsent.jsonl", uri, "1", data)
    courier.put({"do": "summary", "trial": -1, "parent": "0", "time": 1})
    until(lambda: "MLflow does not answer" in caplog.text)
    arguments = Path(f"/proc/{courier._process.pid}/cmdline").read_text()
    assert deliverer.__name__ in arguments
    assert "hunter2" not in arguments
    assert not courier.flush(0.1)
    courier.close()
    assert courier._process.returncode == 0
    assert courier.waiting == 1
    assert [r.levelno for r in caplog.records if "does not answer" in r.message] == [logging.WARNING]


def test_nothing_is_started_for_nothing(tracker):
    assert tracker.flush()
    assert tracker.courier._process is None
