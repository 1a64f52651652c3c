"""A study's storage: a journal that survives kills and damage, and a database that is away for a while."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mixtune.config import parse
from mixtune.errors import DiskFullError, InputError, StorageAwayError
from mixtune.evaluation.predictions import METRICS
from mixtune.search import storage
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.search.storage import JournalLock, Retry, holds_study, open_journal, open_storage, storage_errors
from mixtune.search.trial_result import TrialResult
from tests.search.test_optuna_study import CURVE
from tests.test_full_disk import room_for


def url(folder):
    return f"journal:///{folder}/study.journal"


def search(address, tiny, n=8):
    """What a study of n trials, some of them pruned, failed or cut off, holds in the end."""
    space = parse(tiny | {"trials": n}, Space, "f")
    for part in range(2):
        trials = OptunaStudy(address, space, 4)
        trials.reconcile()
        for i in range(n // 2):
            trial, params = trials.ask()
            score = sum(v for v in params.values() if isinstance(v, float)) / 10
            if trials.report(trial, 1, score, last=False):
                trials.finish(trial, "PRUNED", score, "pruned at 50 % of the budget", None)
            elif i == 2:
                trials.finish(trial, "FAIL", None, "it failed", None)
            elif part == 1 or i < 3:
                trials.report(trial, 2, score + 0.1, last=True)
                trials.finish(trial, "COMPLETE", score + 0.1, "", None)
        trials.close()
    return optuna.load_study(study_name=space.study, storage=open_storage(address)).trials


def content(trial):
    kept = {k: v for k, v in trial.system_attrs.items() if "relative_params" not in k}
    return trial.number, trial.state, trial.values, trial.params, trial.intermediate_values, trial.user_attrs, kept


def test_a_study_is_the_same_in_a_journal_as_in_a_database(tmp_path, tiny):
    kept, expected = search(url(tmp_path), tiny), search(f"sqlite:///{tmp_path}/study.db", tiny)
    assert [content(t) for t in kept] == [content(t) for t in expected]
    assert {t.state.name for t in kept} >= {"COMPLETE", "PRUNED", "FAIL"}
    theirs = JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))
    again = optuna.load_study(study_name="tiny", storage=theirs).trials
    assert [content(t) for t in again] == [content(t) for t in kept]


def test_every_length_of_the_file_that_a_kill_can_leave_is_a_study(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # hundreds of files
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(path))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        opened = open_journal(path)
        lines = whole[:length].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
        again = optuna.create_study(study_name="s", storage=opened, load_if_exists=True)
        again.tell(again.ask(), 1.0)
        assert opened.get_all_trials(again._study_id)[-1].value == 1.0
        assert path.read_bytes().count(b"\n") > lines


@pytest.mark.parametrize("end", [b"\0\0\0", b"\0\0\0\n", b'{"op_code":6,\n', b"\xff\xfe\n"])
def test_a_last_line_that_a_power_cut_spoiled_is_cut_off(tmp_path, end):
    path = tmp_path / "study.journal"
    optuna.create_study(study_name="s", storage=open_journal(path))
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    assert [s.study_name for s in open_journal(path).get_all_studies()] == ["s"]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"", b"not this", b"3", b"{}", b'{"op_code":99,"worker_id":"w"}', b'{"op_code":5}'])
def test_a_line_that_is_damaged_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(path))
    study.tell(study.ask(), 0.5)
    lines = path.read_bytes().splitlines()
    lines[1] = damage
    path.write_bytes(b"\n".join(lines) + b"\n")
    for use in (open_storage, lambda address: holds_study(address, "s")):
        with pytest.raises(InputError, match=r"study\.journal: line 2 "):
            use(url(tmp_path))
    assert path.read_bytes().splitlines() == lines


@pytest.mark.parametrize("text", ["a: 1\n", "a note", '{"op_code":0}\nnot this\n{"op_code":0}\n', '{"op_code"}\n{"'])
def test_another_file_is_refused_and_stays_what_it_was(tmp_path, text):
    (tmp_path / "study.journal").write_text(text)
    with pytest.raises(InputError, match=r"study\.journal: line [12] "):
        open_storage(url(tmp_path))
    assert (tmp_path / "study.journal").read_text() == text


def test_a_journal_that_an_earlier_version_wrote_opens(tmp_path):
    """Two trials of four, the second cut off after one report."""
    recorded = Path(__file__).parent / "recorded" / "study.journal"
    (tmp_path / "study.journal").write_bytes(recorded.read_bytes())
    study = optuna.load_study(study_name="tiny", storage=open_storage(url(tmp_path)))
    ended = [TrialResult.of(t, 0, METRICS) for t in study.get_trials() if t.state.is_finished()]
    assert [(t.number, t.state, t.score, t.published) for t in ended][:2] == [
        (0, "COMPLETE", 0.5, "fixed"),
        (1, "FAIL", 0.5, "multiscale"),
    ]
    assert ended[0].curve == CURVE
    assert study.user_attrs["interrupted"] == [1]
    assert (tmp_path / "study.journal").read_bytes() == recorded.read_bytes()


def test_a_full_disk_leaves_whole_lines_and_the_study_goes_on(tmp_path):
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=open_journal(path))
    trial, before = study.ask(), path.read_bytes()
    with room_for(len(before) + 20), pytest.raises(DiskFullError), storage_errors(url(tmp_path)):
        trial.report(0.5, 1)
    assert path.read_bytes() == before
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    (ended,) = open_journal(path).get_all_trials(study._study_id)
    assert (ended.value, ended.intermediate_values) == (0.5, {1: 0.5})


def add(path, n):
    journal = JournalFileBackend(str(path), JournalLock(path))
    for i in range(n):
        journal.append_logs([{"pid": os.getpid(), "i": i, "long": 3000 * "x"}])


def test_processes_append_without_losing_a_line(tmp_path):
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add, args=(path, 50)) for _ in range(3)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert all([r["i"] for r in records if r["pid"] == p.pid] == list(range(50)) for p in writers)


def hold(path, ready):
    JournalLock(path).acquire()
    ready.set()
    time.sleep(60)


def test_a_lock_ends_with_its_holder(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "lines", ready))
    process.start()
    assert ready.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    add(tmp_path / "lines", 1)
    assert (tmp_path / "lines").read_bytes().count(b"\n") == 1


def test_what_is_recorded_is_on_the_disk(tmp_path, tiny, monkeypatch):
    synced, path = [], tmp_path / "study.journal"
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    trials = OptunaStudy(url(tmp_path), parse(tiny, Space, "f"), 4)
    trial, _ = trials.ask()
    assert synced[-1] == path.stat().st_size
    trials.report(trial, 2, 0.5, last=True)
    assert synced[-1] == path.stat().st_size
    trials.finish(trial, "COMPLETE", 0.5, "", CURVE)
    assert synced[-1] == path.stat().st_size


def test_a_journal_is_only_looked_into(tmp_path):
    assert not holds_study(url(tmp_path), "s")
    assert list(tmp_path.iterdir()) == []
    optuna.create_study(study_name="s", storage=open_journal(tmp_path / "study.journal"))
    assert holds_study(url(tmp_path), "s")
    assert not holds_study(url(tmp_path), "t")
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_a_study_that_was_begun_in_a_database_goes_on_there(tmp_path, tiny):
    assert StudyPaths(tmp_path).storage_url == url(tmp_path)
    search(f"sqlite:///{tmp_path}/study.db", tiny)
    assert StudyPaths(tmp_path).storage_url == f"sqlite:///{tmp_path}/study.db"
    assert holds_study(StudyPaths(tmp_path).storage_url, "tiny")
    assert StudyPaths(tmp_path, storage="sqlite:///elsewhere.db").storage_url == "sqlite:///elsewhere.db"


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
def impatient(monkeypatch):
    """Locks are waited for 0.05 s, and calls are repeated for no more than 0.2 s, without pauses."""
    monkeypatch.setattr(storage, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(storage, "STORAGE_RETRY_SECONDS", 0.2)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda _: None)  # between its own five attempts
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


@pytest.fixture
def study(tmp_path, tiny, impatient):
    """Open the study in tmp_path/study.db, as often as wanted."""
    return lambda **change: OptunaStudy(f"sqlite:///{tmp_path}/study.db", parse(tiny | change, Space, "f"), 4)


def ended(trials):
    return [(o.number, o.state, o.score) for o in trials.outcomes()]


class Flaky:
    """A database that refuses every other statement, before or after it has carried it out."""

    def __init__(self, monkeypatch, after):
        self.calls, self.refused, self.after = 0, 0, after
        for name in ("create_new_trial", "set_trial_param", "set_trial_state_values", "set_trial_user_attr"):
            monkeypatch.setattr(storage.RDBStorage, name, self.refusing(getattr(storage.RDBStorage, name)))
        name = "set_trial_intermediate_value"
        monkeypatch.setattr(storage.RDBStorage, name, self.refusing(getattr(storage.RDBStorage, name)))

    def refusing(self, method):
        def call(*args, **kwargs):
            self.calls += 1
            refuse = self.calls % 7 == 3
            self.refused += refuse
            if refuse and not self.after:
                raise optuna.exceptions.StorageInternalError("gone")
            result = method(*args, **kwargs)
            if refuse:
                raise optuna.exceptions.StorageInternalError("gone")
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
def test_a_database_that_comes_and_goes_loses_and_doubles_nothing(study, monkeypatch, after):
    monkeypatch.setattr(storage, "STORAGE_RETRY_SECONDS", 60.0)
    trials = study(pruner={"name": "none"})
    flaky = Flaky(monkeypatch, after)
    for score in (0.2, 0.3, 0.4, 0.5):
        trial, _ = trials.ask()
        trials.report(trial, 1, score - 0.1, last=False)
        trials.report(trial, 2, score, last=True)
        trials.finish(trial, "COMPLETE", score, "", CURVE)
    assert flaky.refused >= 3
    assert [score for _, _, score in ended(trials)] == [0.2, 0.3, 0.4, 0.5]
    assert sorted(o.published for o in trials.outcomes()) == ["", "", "fixed", "multiscale"]
    assert all(o.curve == CURVE and sorted(o.reports) == [1, 2] for o in trials.outcomes())
    assert trials.remaining() == 0


def test_a_trial_that_was_half_taken_when_the_database_went_away_is_taken_again(study, monkeypatch):
    """The published regime that was taken from the queue is not lost, and those that run are left alone."""
    trials = study()
    running, _ = trials.ask()
    assert running.user_attrs["published"] == "fixed"
    suggest = trials.space.__class__.suggest

    def cut_off(self, trial):
        trial.suggest_float("w_4", 0.0, 1.0)
        monkeypatch.setattr(trials.space.__class__, "suggest", suggest)
        raise storage.optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(trials.space.__class__, "suggest", cut_off)
    trial, params = trials.ask()
    published = [trial.user_attrs.get("published"), trials.ask()[0].user_attrs.get("published")]
    assert published == ["multiscale", None]
    assert params == trials.space.published_params("multiscale", 4)
    trials.finish(running, "COMPLETE", 0.5, "", CURVE)
    assert ended(trials) == [(0, "COMPLETE", 0.5)]


def test_a_published_regime_survives_a_kill_before_anything_was_suggested(study):
    study()._study.ask()  # out of the queue, and killed
    again = study()
    again.reconcile()
    published = [again.ask()[0].user_attrs.get("published") for _ in range(3)]
    assert sorted(map(str, published)) == ["None", "fixed", "multiscale"]


def test_an_end_that_is_recorded_already_stays(study):
    trials = study()
    trial, _ = trials.ask()
    trials.finish(trial, "COMPLETE", 0.5, "", CURVE)
    trials.finish(trial, "FAIL", None, "again", None)
    assert ended(trials) == [(0, "COMPLETE", 0.5)]


def test_a_database_that_stays_away_is_one_sentence_and_the_study_goes_on_when_it_is_back(study, tmp_path, caplog):
    trials = study()
    trial, _ = trials.ask()
    away = pytest.raises(StorageAwayError, match=r"--storage sqlite:///.*study\.db: .*database is locked")
    with locked(tmp_path / "study.db"), away:
        trials.report(trial, 1, 0.5, last=False)
    assert "database is locked" in caplog.text
    trials.report(trial, 1, 0.5, last=False)
    trials.finish(trial, "COMPLETE", 0.5, "", CURVE)
    assert ended(trials) == [(0, "COMPLETE", 0.5)]


def test_after_the_limit_every_call_is_made_once_until_one_is_answered(impatient):
    retry, calls = Retry("sqlite:///study.db"), []

    def away():
        calls.append(1)
        raise storage.optuna.exceptions.StorageInternalError("gone")

    with pytest.raises(StorageAwayError):
        retry(away)
    assert len(calls) > 1
    for _ in range(2):
        calls.clear()
        with pytest.raises(StorageAwayError):
            retry(away)
        assert len(calls) == 1
    assert retry(lambda: 7) == 7
    with pytest.raises(StorageAwayError):
        retry(away)
    assert len(calls) > 1


def test_opening_waits_for_a_database_that_is_locked(study, tmp_path, monkeypatch):
    study().close()
    monkeypatch.setattr(storage, "STORAGE_RETRY_SECONDS", 60.0)
    lock = locked(tmp_path / "study.db")
    lock.__enter__()
    pauses = []
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: pauses.append(1) or lock.__exit__(None, None, None))
    assert study().resumed
    assert len(pauses) == 1


def test_a_database_without_room_is_a_full_disk(study, monkeypatch):
    trials = study()
    trial, _ = trials.ask()

    def full(*arguments, **more):
        cause = sqlite3.OperationalError("database or disk is full")
        raise storage.optuna.exceptions.StorageInternalError("exceeding max length") from cause

    monkeypatch.setattr(trial, "report", full)
    with pytest.raises(DiskFullError, match="full"):
        trials.report(trial, 1, 0.5, False)


def test_an_address_is_shown_without_its_password(tiny):
    with pytest.raises(InputError) as error:
        OptunaStudy("postgresql://me:hunter2@127.0.0.1:9/db", parse(tiny, Space, "f"), 4)
    assert "hunter2" not in str(error.value)
    assert "me:***@127.0.0.1" in str(error.value)
    with pytest.raises(StorageAwayError) as away, storage_errors("postgresql://me:hunter2@127.0.0.1:9/db"):
        raise OSError("no route to postgresql://me:hunter2@127.0.0.1:9/db")
    assert "hunter2" not in str(away.value)
