"""MLflow is made equal to the study, whatever happened to it or to whoever wrote it."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mixtune.config import parse
from mixtune.errors import DiskFullError, InputError
from mixtune.search import sqlite
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.tracking import mlflow_writer, resync
from mixtune.tracking.mlflow_runs import ChildRuns
from tests.conftest import TINY
from tests.tracking.studies import MadeStudy, contents, essential
from tests.tracking.writers import open_writer

ROOT = Path(__file__).parents[2]
SETTINGS = {"trials": 6, "pruner": {"name": "none"}, "final": {"leaders": 1, "replicates": 1, "seeds": 2}}
SOME = [(1, 9), pytest.param(0, 1, marks=pytest.mark.slow)]  # of the writes, which are tried one after the other
WRITES = ("create_run", "log_batch", "log_inputs", "update_run_info", "delete_run", "set_tag")


@pytest.fixture
def space(tiny):
    return parse(tiny | SETTINGS, Space, "f")


@pytest.fixture
def open_study(tmp_path, space, empty_store):
    """Opens a study and its writer, in a folder of this name, as often as one likes."""
    opened = []

    def open_(name="study", store=True):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        uri = f"sqlite:///{folder}/mlflow.db"
        if store and not (folder / "mlflow.db").exists():
            empty_store(folder)
        study = MadeStudy(folder, space)
        writer = open_writer(uri, space, folder, study.trials)
        study.callbacks = type(study.callbacks)([writer])
        opened.append(writer)
        return study, writer

    yield open_
    for writer in opened:
        writer.close()


@pytest.fixture
def other(tmp_path, empty_store):
    """Another MLflow store."""
    (tmp_path / "other").mkdir()
    return empty_store(tmp_path / "other")


def fill(study):
    """Trials that end in every way, one that runs, and a repeat."""
    study.run(0.3, 0.4)
    study.run(0.2, state="PRUNED", reason="pruned at 50 %")
    study.run(state="FAIL", reason="no answer from http://me:hunter2@host/x")
    study.repeat(0, 1, 0.45)
    return study.begin()


def go_on(study, trial, candidate):
    """The trial that runs goes on to its end."""
    for number, score in enumerate((0.3, 0.4), 1):
        study.report(trial, candidate, number, score)
    study.end(trial, candidate, 0.4)


@contextmanager
def failing(monkeypatch, at, applied, error=ConnectionError):
    """The ``at``-th write of MLflow in this block fails, before or after it was ``applied``; counts writes."""
    counter = itertools.count()

    def faulty(method):
        def call(*arguments, **more):
            mine = next(counter) == at
            if mine and not applied:
                raise error("reset by peer")
            value = method(*arguments, **more)
            if mine:
                raise error("reset by peer")
            return value

        return call

    with monkeypatch.context() as patch:
        for name in WRITES:
            patch.setattr(SqlAlchemyStore, name, faulty(getattr(SqlAlchemyStore, name)))
        patch.setattr(LocalArtifactRepository, "log_artifact", faulty(LocalArtifactRepository.log_artifact))
        yield counter


def test_from_nothing_it_makes_what_the_writer_wrote(open_study, other, space):
    """Onto another server, or after the database was deleted."""
    study, writer = open_study()
    fill(study)
    assert writer.resync()
    written, parents = contents(writer.uri)
    assert parents == 1
    assert [(k[:2], r["tags"]["mixtune.state"]) for k, r in sorted(written.items(), key=str)] == [
        (("repeat", 0), "COMPLETE"),
        (("trial", 0), "COMPLETE"),
        (("trial", 1), "PRUNED"),
        (("trial", 2), "FAIL"),
        (("trial", 3), "RUNNING"),
    ]
    assert resync.resync(study.trials, space, study.folder, other) == 4  # the trial that runs is nobody's yet
    running = {k: written.pop(k) for k in list(written) if k[1] == 3}
    assert running
    made, parents = contents(other)
    assert parents == 1
    assert essential(made) == essential(written)
    best = made["trial", 0, None, "0"]
    assert best["metrics"]["score"] == [(50, 0.3), (100, 0.4)]
    assert best["metrics"]["seconds"] == [(100, 2.0)]
    assert best["metrics"]["curve/top1"] == [(8, 0.4 / 3), (12, 0.4)]
    assert resync.resync(study.trials, space, study.folder, other) == 0
    assert contents(other) == (made, 1)


def test_times_are_the_studys(open_study, other, space):
    study, _ = open_study()
    study.run(0.3, 0.4)
    resync.resync(study.trials, space, study.folder, other)
    client = MlflowClient(other)
    (run,) = client.search_runs([client.get_experiment_by_name("mixtune").experiment_id], "tags.`mixtune.trial` = '0'")
    (result,) = study.trials.outcomes()
    assert run.info.start_time == pytest.approx(1000 * result.began.timestamp(), abs=1)
    assert run.info.end_time == pytest.approx(1000 * result.ended.timestamp(), abs=1)


def test_a_database_that_is_deleted_under_a_search_is_made_again(open_study):
    study, writer = open_study()
    sqlite.use_write_ahead_log(writer.uri)
    fill(study)
    assert writer.resync()
    before, _ = contents(writer.uri)
    assert (study.folder / "mlflow.db-wal").exists()
    (study.folder / "mlflow.db").unlink()
    assert writer.resync()
    after, parents = contents(writer.uri)
    assert parents == 1
    assert set(before) - set(after) == {("trial", 3, None, "0")}  # it runs; its next report makes it
    assert essential(after) == essential({k: v for k, v in before.items() if k in after})


@pytest.mark.parametrize(("first", "apart"), SOME)
def test_a_write_that_fails_loses_and_doubles_nothing(open_study, monkeypatch, first, apart):
    """Every write of a study in turn, whether or not the store did it before the answer was lost."""
    monkeypatch.setattr(mlflow_writer, "PAUSE_SECONDS", 0.0)
    study, writer = open_study("oracle")
    with failing(monkeypatch, None, False) as counter:
        running = fill(study)
        assert writer.flush()
    writes = next(counter)
    assert writes > 10
    go_on(study, *running)
    assert writer.resync()
    oracle, _ = contents(writer.uri)
    for at, applied in itertools.product(range(first, writes, apart), (False, True)):
        study, writer = open_study(f"{at} {applied}")
        with failing(monkeypatch, at, applied):
            running = fill(study)
            writer.flush()
        assert writer.resync()
        go_on(study, *running)
        assert writer.resync()
        held, parents = contents(writer.uri)
        assert parents == 1
        assert essential(held) == essential(oracle), (at, applied)


@pytest.mark.parametrize(("first", "apart"), SOME)
def test_a_resync_that_is_cut_off_anywhere_is_completed_by_the_next(
    tmp_path, space, monkeypatch, empty_store, first, apart
):
    study = MadeStudy(tmp_path / "study", space)
    fill(study)
    (tmp_path / "oracle").mkdir()
    oracle = empty_store(tmp_path / "oracle")
    with failing(monkeypatch, None, False) as counter:
        resync.resync(study.trials, space, study.folder, oracle)
    writes = next(counter)
    wanted = contents(oracle)
    for at in range(first, writes, apart):
        folder = tmp_path / str(at)
        folder.mkdir()
        uri = empty_store(folder)
        with failing(monkeypatch, at, at % 2 == 0), pytest.raises(InputError):
            resync.resync(study.trials, space, study.folder, uri)
        resync.resync(study.trials, space, study.folder, uri)
        assert contents(uri) == wanted, at


SEARCH = """
import sys, time
from pathlib import Path
from mixtune.config import parse
from mixtune.search.space import Space
from tests.conftest import TINY
from tests.tracking.studies import MadeStudy
from tests.tracking.test_resync import SETTINGS
from tests.tracking.writers import open_writer
folder = Path(sys.argv[1])
space = parse(TINY | SETTINGS | {"trials": 30}, Space, "f")
study = MadeStudy(folder, space)
writer = open_writer(f"sqlite:///{folder}/mlflow.db", space, folder, study.trials)
study.callbacks = type(study.callbacks)([writer])
print("begun", flush=True)
while True:
    study.run(0.3, 0.4)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("runs", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_at_any_moment_leaves_nothing_lost_or_doubled(tmp_path, empty_store, runs):
    uri, folder = empty_store(tmp_path), tmp_path
    search = subprocess.Popen([sys.executable, "-c", SEARCH, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert search.stdout.readline() == "begun\n"
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("mixtune").experiment_id
        end = time.monotonic() + 60
        while len(client.search_runs([experiment])) <= runs:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        os.kill(search.pid, signal.SIGKILL)
        search.wait()
    space = parse(TINY | SETTINGS | {"trials": 30}, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    trials.reconcile()
    resync.resync(trials, space, folder, uri)
    held, parents = contents(uri)
    assert parents == 1
    assert sorted(k[1] for k in held) == [o.number for o in trials.outcomes()]
    for run in held.values():
        assert run["tags"]["mixtune.state"] == "COMPLETE"
        assert run["status"] == "FINISHED"
        assert [v for _, v in run["metrics"]["score"]] == [0.3, 0.4]
        assert run["metrics"]["curve/top1"] == [(8, 0.4 / 3), (12, 0.4)]
        assert run["files"] == ["curve.csv", "regime.yaml", "result.yaml", "weights.safetensors"]
        assert run["data"] == 1


def test_runs_that_the_study_does_not_have_are_discarded_and_others_are_not(open_study):
    """A trial that was cut off, one that a store made twice, a repeat that somebody recorded by hand."""
    study, writer = open_study()
    candidate = study.run(0.3, 0.4)
    client = MlflowClient(writer.uri)
    assert writer.flush()
    common = {"mlflow.parentRunId": writer.parent, "mixtune.study": "tiny", "mixtune.seed": "0"}
    for kind, trial, more in (
        ("trial", 77, {}),
        ("trial", candidate.number, {}),
        ("repeat", 0, {"mixtune.judge": "test"}),
        ("other", 0, {}),
    ):
        tags = common | more | {"mixtune.kind": kind, "mixtune.trial": str(trial), "mixtune.state": "RUNNING"}
        client.create_run(writer.experiment, tags=tags)
    assert writer.resync()
    held, _ = contents(writer.uri)
    assert sorted(k[:2] for k in held) == [("other", 0), ("repeat", 0), ("trial", 0)]
    assert held["trial", 0, None, "0"]["tags"]["mixtune.state"] == "COMPLETE"


def test_a_run_that_was_deleted_by_hand_is_made_again(open_study):
    study, writer = open_study()
    trial, candidate = study.begin()
    assert writer.flush()
    client = MlflowClient(writer.uri)
    client.delete_run(client.search_runs([writer.experiment], "tags.`mixtune.trial` = '0'")[0].info.run_id)
    study.report(trial, candidate, 1, 0.3)
    assert not writer.flush()
    study.report(trial, candidate, 2, 0.4)
    study.end(trial, candidate, 0.4)
    assert writer.resync()
    (run,) = contents(writer.uri)[0].values()
    assert [v for _, v in run["metrics"]["score"]] == [0.3, 0.4]
    assert run["status"] == "FINISHED"


@pytest.mark.parametrize("what", ["log_batch", "create_run"])
def test_what_is_refused_for_good_is_one_warning_and_the_rest_goes_on(open_study, monkeypatch, caplog, what):
    study, writer = open_study()
    original = getattr(SqlAlchemyStore, what)

    def refuse(self, *arguments, **more):
        mine = "000 fixed" in repr(more) if what == "create_run" else "train/lr" in [m.key for m in more["metrics"]]
        if mine:
            raise MlflowException("not this", error_code=INVALID_PARAMETER_VALUE)
        return original(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, what, refuse)
        for _ in range(3):
            study.run(0.3, 0.4)
        assert writer.resync() == (what == "log_batch")
    assert sum("does not take" in r.message for r in caplog.records) == 1
    held, _ = contents(writer.uri)
    assert len(held) == (3 if what == "log_batch" else 2)
    for run in held.values():
        assert run["status"] == "FINISHED"
        assert [v for _, v in run["metrics"]["score"]] == [0.3, 0.4]
        assert ("train/lr" in run["metrics"]) == (what == "create_run")


@contextmanager
def silent_store(monkeypatch):
    """MLflow takes a write and does not answer until this block is left."""
    go, writes = threading.Event(), SqlAlchemyStore.log_batch
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "log_batch", lambda *a, **k: (go.wait(60), writes(*a, **k))[1])
        try:
            yield
        finally:
            go.set()


def test_no_trial_waits_for_mlflow_and_a_closing_search_not_for_long(open_study, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_writer, "SILENT_SECONDS", 0.5)
    study, writer = open_study()
    study.run(0.3, 0.4)
    assert writer.resync()
    with silent_store(monkeypatch):
        for _ in range(3):
            study.run(0.3, 0.4)  # would not return
        assert not writer.resync()
    assert "MLflow lacks 3 of 4 runs" in caplog.text
    monkeypatch.setattr(mlflow_writer, "SILENT_SECONDS", 30.0)
    assert writer.resync()
    held, _ = contents(writer.uri)
    assert [r["status"] for r in held.values()] == ["FINISHED"] * 4
    assert all([v for _, v in r["metrics"]["score"]] == [0.3, 0.4] for r in held.values())


def test_what_does_not_fit_into_the_queue_is_made_again(open_study, monkeypatch):
    monkeypatch.setattr(mlflow_writer, "QUEUED", 3)
    study, writer = open_study()
    with silent_store(monkeypatch):
        for _ in range(4):
            study.run(0.3, 0.4)
        assert writer.behind
    assert writer.resync()
    assert not writer.behind
    held, _ = contents(writer.uri)
    assert [r["status"] for r in held.values()] == ["FINISHED"] * 4
    assert all([v for _, v in r["metrics"]["score"]] == [0.3, 0.4] for r in held.values())


def test_after_an_outage_the_next_trial_that_ends_has_mlflow_made_equal(open_study, monkeypatch, caplog):
    monkeypatch.setattr(mlflow_writer, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(mlflow_writer, "APART_SECONDS", 0.0)
    study, writer = open_study()

    def gone(*arguments, **more):
        raise ConnectionError("no answer from http://me:hunter2@host/x")

    with monkeypatch.context() as patch:
        for name in (*WRITES, "search_runs"):
            patch.setattr(SqlAlchemyStore, name, gone)
        study.run(0.3, 0.4)
        assert not writer.flush()
    study.run(0.3, 0.4)
    writer.flush()
    study.run(0.3, 0.4)  # the store is known to answer
    assert writer.flush()
    held, _ = contents(writer.uri)
    assert [r["status"] for r in held.values()] == ["FINISHED"] * 3
    assert caplog.text.count("MLflow is not written") == caplog.text.count("MLflow is written again") == 1
    assert "hunter2" not in caplog.text


def test_a_full_disk_is_one_sentence_and_made_up_for(open_study, monkeypatch):
    monkeypatch.setattr(mlflow_writer, "RESYNC_RETRY_SECONDS", 0.0)
    study, writer = open_study()

    def full(*arguments, **more):
        raise MlflowException("(sqlite3.OperationalError) database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "log_batch", full)
        study.run(0.3, 0.4)
        with pytest.raises(DiskFullError, match=r"mlflow\.db"):
            writer.resync()
    assert writer.resync()
    (run,) = contents(writer.uri)[0].values()
    assert run["status"] == "FINISHED"


def test_the_summary_and_the_artifacts_go_along_to_another_server(open_study, other, space):
    study, writer = open_study()
    study.run(0.3, 0.4)
    resync.note_summary(study.trials, {"score": 0.4, "trial": 0}, {"mixtune.more": "yes"}, [("ranks", 0.5, 11)])
    assert writer.resync()
    (study.folder / "figures").mkdir()
    for name in ("best.yaml", "figures/pareto.png"):
        (study.folder / name).write_text("x")
    for uri in (other, other):
        resync.resync(study.trials, space, study.folder, uri)
    client = MlflowClient(other)
    experiment = client.get_experiment_by_name("mixtune").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`mixtune.kind` = 'study'")
    assert parent.info.status == "KILLED"  # trials remain
    assert parent.data.metrics == {"score": 0.4, "ranks": 0.5}
    assert (parent.data.tags["mixtune.best.trial"], parent.data.tags["mixtune.more"]) == ("0", "yes")
    paths = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert paths == {"best.yaml", "environment.yaml", "figures", "space.yaml"}
    assert len(client.get_metric_history(parent.info.run_id, "score")) == 1


def test_a_parent_run_whose_maker_was_killed_is_completed(open_study, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "log_inputs", lambda *a, **k: 1 / 0)
        with pytest.raises(InputError):
            open_study()
    _, writer = open_study()
    (parent,) = MlflowClient(writer.uri).search_runs([writer.experiment])
    assert parent.data.params["data.digest"]
    assert len(parent.inputs.dataset_inputs) == 1


def test_a_study_of_an_earlier_version_keeps_its_parent_run_and_loses_its_file_of_records(tmp_path, space, empty_store):
    folder = tmp_path / "study"
    folder.mkdir()
    uri = empty_store(folder)
    study = MadeStudy(folder, space)
    client = MlflowClient(uri)
    tags = {"mixtune.kind": "study", "mixtune.study": "tiny"}
    parent = client.create_run(client.create_experiment("mixtune"), tags=tags).info.run_id
    client.log_param(parent, "data.digest", "x")
    study.trials.set_attribute(f"mlflow_parent {uri}", parent)
    records = folder / f"unsent-{resync.hashlib.sha256(uri.encode()).hexdigest()[:8]}.jsonl"
    records.write_text('{"do": "start"}\n')
    (folder / "unsent-study.jsonl").write_text("")  # not MLflow's
    study.run(0.3, 0.4)
    resync.resync(study.trials, space, folder, uri)
    held, parents = contents(uri)
    assert (len(held), parents) == (1, 1)
    assert client.get_run(parent).data.params == {"data.digest": "x"}
    assert [p.name for p in folder.glob("unsent*")] == ["unsent-study.jsonl"]


def test_no_password_reaches_the_store(open_study):
    """Of anything that is written: tags, parameters, the space file, names."""
    study, writer = open_study()
    fill(study)
    assert writer.resync()
    writer.close()
    for path in study.folder.rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path
    assert "me:***@host" in contents(writer.uri)[0]["trial", 2, None, "0"]["tags"]["mixtune.reason"]


def test_runs_are_looked_up_once(open_study, monkeypatch):
    lookups = []
    load = ChildRuns.load
    monkeypatch.setattr(ChildRuns, "load", lambda self: (lookups.append(1), load(self))[1])
    study, writer = open_study()
    for _ in range(3):
        study.run(0.3, 0.4)
        assert writer.flush()
    assert len(lookups) == 1
