"""The study's storage away in the middle: nothing finished is lost, nothing is counted twice."""

import sqlite3
import threading
from contextlib import contextmanager

import pytest

from mixtune.config import parse
from mixtune.errors import InputError, NoRoomError
from mixtune.execution.coordinator import Coordinator
from mixtune.search import ledger as ledger_
from mixtune.search import storage
from mixtune.search.callbacks import Callbacks
from mixtune.search.ledger import Ledger, StorageAwayError
from mixtune.search.optuna_study import Trials
from mixtune.search.space import Space
from tests.execution.test_coordinator import Recorder, report
from tests.search.test_optuna_study import CURVE


@contextmanager
def locked(path):
    """Another process's exclusive lock on an SQLite file."""
    other = sqlite3.connect(path, isolation_level=None, timeout=30)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.fixture
def study(tmp_path, tiny, monkeypatch):
    """Opens the study in tmp_path behind a ledger, as often as wanted; locks are waited for 0.05 s."""
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)  # between its own five attempts
    made = []

    def open_(**change):
        trials = Trials(f"sqlite:///{tmp_path}/study.db", parse(tiny | change, Space, "f"), 4)
        made.append(Ledger(trials, tmp_path, pause=0.02, longest=0.05))
        return trials, made[-1]

    yield open_
    for one in made:
        one.close()


def state(trials):
    return [(o.number, o.state, o.score) for o in trials.outcomes()]


def test_with_a_storage_that_answers_the_ledger_is_the_study(study, tmp_path):
    trials, ledger = study()
    trial, _ = ledger.ask()
    assert not ledger.report(trial, 1, 0.4, False)
    ledger.finish(trial, "COMPLETE", 0.5, "", CURVE)
    assert state(trials) == [(0, "COMPLETE", 0.5)]
    assert ledger.remaining() == 3
    assert not (tmp_path / ledger_.KEPT).exists()


def test_reports_and_ends_that_a_locked_storage_missed_are_recorded_once_it_is_free(study, tmp_path, caplog):
    trials, ledger = study()
    (first, _), (second, _) = ledger.ask(), ledger.ask()
    ledger.report(first, 1, 0.3, False)
    with locked(tmp_path / "study.db"):
        assert ledger.report(first, 2, 0.5, True) is False
        ledger.finish(first, "COMPLETE", 0.5, "", CURVE)
        ledger.report(second, 1, 0.2, False)
        with pytest.raises(StorageAwayError):
            ledger.ask()
        assert not ledger.flush(0.2)
        assert ledger.outbox.waiting == 3
    assert ledger.flush(30)
    ledger.finish(second, "PRUNED", 0.2, "pruned at 50 %", CURVE)
    assert state(trials) == [(0, "COMPLETE", 0.5), (1, "PRUNED", 0.2)]
    found = trials._study.trials
    assert found[0].intermediate_values == {1: 0.3, 2: 0.5}
    assert trials.outcomes()[0].curve == CURVE
    assert "the study's storage does not answer (database is locked)" in caplog.text


def test_ends_that_waited_when_the_process_died_are_recorded_by_the_next(study, tmp_path):
    _, ledger = study()
    (first, _), (second, _) = ledger.ask(), ledger.ask()
    with locked(tmp_path / "study.db"):
        ledger.report(first, 1, 0.5, True)
        ledger.finish(first, "COMPLETE", 0.5, "", CURVE)
        ledger.report(second, 1, 0.1, False)
        ledger.close()  # what a killed process leaves: the file
    trials, again = study()
    assert again.flush(30)
    assert len(trials.reconcile()) == 1  # the second, which ran
    assert state(trials) == [(0, "COMPLETE", 0.5)]
    assert trials.remaining() == 3


def test_what_was_recorded_already_is_not_recorded_twice(study, tmp_path):
    trials, ledger = study()
    trial, _ = ledger.ask()
    ledger.report(trial, 1, 0.5, True)
    ledger.finish(trial, "COMPLETE", 0.5, "", CURVE)
    with pytest.raises(ledger_.PermanentError):
        trials.finish_of(0, "FAIL", None, "again", None)
    with pytest.raises(ledger_.PermanentError):
        trials.report_of(0, 2, 0.7)
    assert state(trials) == [(0, "COMPLETE", 0.5)]
    assert trials._study.trials[0].intermediate_values == {1: 0.5}


def test_a_trial_that_was_half_taken_when_the_storage_went_away_is_taken_again(study, monkeypatch):
    """The published regime that was taken from the queue is not lost, and those that run are left alone."""
    trials, ledger = study()
    running, _ = ledger.ask()
    assert running.user_attrs["published"] == "fixed"
    suggest = trials.space.__class__.suggest

    def cut_off(self, trial):
        trial.suggest_float("w_4", 0.0, 1.0)
        raise storage.optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(trials.space.__class__, "suggest", cut_off)
    with pytest.raises(StorageAwayError):
        ledger.ask()
    monkeypatch.setattr(trials.space.__class__, "suggest", suggest)
    trial, params = ledger.ask()
    seen = [trial.user_attrs.get("published")]
    seen.append(ledger.ask()[0].user_attrs.get("published"))
    assert seen == ["multiscale", None]
    assert params == trials.space.published_params("multiscale", 4)
    ledger.finish(running, "COMPLETE", 0.5, "", CURVE)
    assert state(trials) == [(0, "COMPLETE", 0.5)]


def test_a_published_regime_survives_a_kill_before_anything_was_suggested(study):
    trials, _ = study()
    trials._study.ask()  # out of the queue, and killed
    again, _ = study()
    again.reconcile()
    seen = [again.ask()[0].user_attrs.get("published") for _ in range(3)]
    assert sorted(map(str, seen)) == ["None", "fixed", "multiscale"]


def test_the_bridge_goes_on_without_the_storage_and_begins_nothing(study, tmp_path):
    trials, ledger = study(pruner={"name": "none"})
    recorder = Recorder()
    bridge = Coordinator(ledger, trials.space.training(1), tmp_path, Callbacks([recorder]))
    bridge.suggest("a")
    with locked(tmp_path / "study.db"):
        assert not bridge.report("a", report(1, 0.4))
        assert bridge.suggest("b") is None
        assert not bridge.done
        assert not bridge.report("a", report(2, 0.6, last=True))
        bridge.end("a", error=False)
    assert ledger.flush(30)
    for name in "bcd":
        assert bridge.suggest(name)
        bridge.report(name, report(2, 0.5, last=True))
        bridge.end(name, error=False)
    assert bridge.suggest("e") is None
    assert bridge.done
    assert [s for _, s, _ in state(trials)] == ["COMPLETE"] * 4
    assert [e[0] for e in recorder.events].count("ended") == 4


def test_a_study_that_can_only_wait_ends_after_a_while(study, tmp_path, monkeypatch):
    trials, ledger = study()
    bridge = Coordinator(ledger, trials.space.training(1), tmp_path, Callbacks([]))
    monkeypatch.setattr("mixtune.execution.coordinator.PATIENCE_SECONDS", 0.1)
    with locked(tmp_path / "study.db"):
        stop = threading.Event()
        while not bridge.done and not stop.wait(0.02):
            assert bridge.suggest("a") is None
    assert "has not answered for 0.1 s (database is locked)" in bridge.halted


def test_a_database_without_room_is_a_full_disk(study, monkeypatch):
    trials, ledger = study()
    trial, _ = ledger.ask()
    trials._study._storage._backend.engine.dispose()

    def full(*arguments, **more):
        cause = sqlite3.OperationalError("database or disk is full")
        raise storage.optuna.exceptions.StorageInternalError("exceeding max length") from cause

    monkeypatch.setattr(trial, "report", full)
    with pytest.raises(NoRoomError, match=r"the disk .* is full"):
        ledger.report(trial, 1, 0.5, False)


def test_opening_waits_for_a_storage_that_is_locked(study, tmp_path):
    study()[1].close()
    free = threading.Event()

    def hold():
        with locked(tmp_path / "study.db"):
            held.set()
            free.wait(30)

    held = threading.Event()
    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    attempts = []

    def act():
        attempts.append(1)
        if len(attempts) == 3:
            free.set()
            other.join()
        return study()

    trials, _ = storage.patiently(act, seconds=30, pause=0.01)
    assert trials.resumed
    assert len(attempts) >= 3


def test_patience_ends(study, tmp_path):
    study()[1].close()
    with locked(tmp_path / "study.db"), pytest.raises(StorageAwayError, match="database is locked"):
        storage.patiently(study, seconds=0.05, pause=0.01)


def test_an_address_is_told_without_its_password(tiny):
    url = "postgresql://me:hunter2@127.0.0.1:9/db"
    with pytest.raises(InputError) as error:
        Trials(url, parse(tiny, Space, "f"), 4)
    assert "hunter2" not in str(error.value)
    assert "me:***@127.0.0.1" in str(error.value)
