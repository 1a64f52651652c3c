import json
import multiprocessing
import os
import signal
import time

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mixtune.config import parse
from mixtune.errors import InputError, NoRoomError
from mixtune.search.journal import Journal, Lines
from mixtune.search.optuna_study import Trials
from mixtune.search.paths import StudyPaths
from mixtune.search.space import Space
from mixtune.search.storage import holds, open_storage, reached
from tests.test_full_disk import room_for


def url(folder):
    return f"journal:///{folder}/study.journal"


def search(address, tiny, n=8):
    """What a study of n trials, some of them pruned, failed or cut off, holds in the end."""
    space = parse(tiny | {"trials": n}, Space, "f")
    for part in range(2):
        trials = Trials(address, space, 4)
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
    storage = open_storage(address)
    return optuna.load_study(study_name=space.study, storage=storage).trials


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
    study = optuna.create_study(study_name="s", storage=Journal(path))
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    study.tell(trial, 0.5)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        storage = Journal(path)
        lines = whole[:length].count(b"\n")
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:lines])
        again = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
        again.tell(again.ask(), 1.0)
        assert storage.get_all_trials(again._study_id)[-1].value == 1.0
        assert path.read_bytes().count(b"\n") > lines


@pytest.mark.parametrize("text", ["a: 1\n", "a note", '{"op_code":0}\nnot this\n{"op_code":0}\n', '{"op_code"}\n{"'])
def test_another_file_is_refused_and_stays_what_it_was(tmp_path, text):
    (tmp_path / "study.journal").write_text(text)
    with pytest.raises(InputError, match=r"line . is not of a journal of Optuna"):
        open_storage(url(tmp_path))
    assert (tmp_path / "study.journal").read_text() == text


def test_a_full_disk_leaves_whole_lines_and_the_study_goes_on(tmp_path):
    path = tmp_path / "study.journal"
    study = optuna.create_study(study_name="s", storage=Journal(path))
    trial, before = study.ask(), path.read_bytes()
    with room_for(len(before) + 20), pytest.raises(NoRoomError), reached():
        trial.report(0.5, 1)
    assert path.read_bytes() == before
    trial.report(0.5, 1)
    study.tell(trial, 0.5)
    (found,) = Journal(path).get_all_trials(study._study_id)
    assert (found.value, found.intermediate_values) == (0.5, {1: 0.5})


def add(path, n):
    lines = Lines(path)
    for i in range(n):
        lines.append_logs([{"pid": os.getpid(), "i": i, "long": 3000 * "x"}])


def test_processes_append_without_losing_a_line(tmp_path):
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    them = [context.Process(target=add, args=(path, 50)) for _ in range(3)]
    for process in them:
        process.start()
    for process in them:
        process.join()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert all([r["i"] for r in found if r["pid"] == p.pid] == list(range(50)) for p in them)
    assert [r["i"] for r in Lines(path).read_logs(100)] == [r["i"] for r in found[100:]]


def hold(path, ready):
    lines = Lines(path)
    with lines._alone():
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
    Lines(tmp_path / "lines").append_logs([{"i": 0}])
    assert (tmp_path / "lines").read_text() == '{"i":0}\n'


def test_an_end_is_on_the_disk_when_it_is_said_and_a_report_costs_no_wait(tmp_path, tiny, monkeypatch):
    synced, path = [], tmp_path / "study.journal"
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    trials = Trials(url(tmp_path), parse(tiny, Space, "f"), 4)
    synced.clear()
    trial, _ = trials.ask()
    assert synced == [path.stat().st_size]  # once, for all its parameters
    trials.report(trial, 2, 0.5, last=True)
    assert len(synced) == 1
    trials.finish(trial, "COMPLETE", 0.5, "", None)
    assert synced[1:] == [path.stat().st_size]


def test_a_journal_is_only_looked_into(tmp_path):
    assert not holds(url(tmp_path), "s")
    assert list(tmp_path.iterdir()) == []
    optuna.create_study(study_name="s", storage=Journal(tmp_path / "study.journal"))
    assert holds(url(tmp_path), "s")
    assert not holds(url(tmp_path), "t")
    assert not (tmp_path / "study.journal.lock").exists()


def test_a_study_that_was_begun_in_a_database_goes_on_there(tmp_path):
    assert StudyPaths(tmp_path).storage_url == url(tmp_path)
    (tmp_path / "study.db").touch()
    assert StudyPaths(tmp_path).storage_url == f"sqlite:///{tmp_path}/study.db"
    assert StudyPaths(tmp_path, storage="sqlite:///elsewhere.db").storage_url == "sqlite:///elsewhere.db"
