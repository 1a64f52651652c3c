import errno
import json
import platform
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient

from mixtune.config import parse
from mixtune.data.datasets import load_dataset
from mixtune.data.sources import DataSet, Files, Pixels
from mixtune.errors import InputError
from mixtune.regime import published
from mixtune.regime.files import save_regime
from mixtune.search.callbacks import Candidate
from mixtune.search.space import Space
from mixtune.tasks.classification import Classification
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.tasks.classification_data import _digest, identity
from mixtune.tracking.mlflow_reader import check, stored
from mixtune.tracking.resync import note_summary
from mixtune.tracking.views import address
from tests.curves import curve_of, point
from tests.search.test_optuna_study import CURVE
from tests.tracking.writers import open_writer


@pytest.fixture
def tracker(tmp_path, tiny, empty_store):
    folder = tmp_path / "a folder"
    folder.mkdir()
    writer = open_writer(empty_store(folder), parse(tiny, Space, "f"), folder)
    yield writer
    writer.close()


def candidate(tracker, number=0):
    folder = tracker._folder / "trials" / f"{number:04d}"
    folder.mkdir(parents=True)
    space = tracker._study.projection.space
    regime = published("fixed", space.base, space.search.sizes, 4)
    save_regime(folder / "regime.yaml", regime)
    return Candidate(number, regime, space.published_params("fixed", 4), folder, "fixed")


def runs(tracker, kind):
    assert tracker.flush()
    found = MlflowClient(tracker.uri).search_runs([tracker.experiment], f"tags.`mixtune.kind` = '{kind}'")
    return sorted(found, key=lambda r: r.info.run_name)


REPORT = {"progress": 0.5, "loss": 1.5, "lr": 0.1, "views_per_second": 100.0, "seconds": 2.0, "curve": CURVE.rows()}


@pytest.mark.parametrize(("state", "status"), [("COMPLETE", "FINISHED"), ("PRUNED", "KILLED"), ("FAIL", "FAILED")])
def test_a_trial_is_a_child_run_whose_end_is_told_apart(tracker, state, status):
    trial = candidate(tracker)
    tracker.started(trial)
    findings = [("unreadable", 2), ("rotated by EXIF", 1)]
    tracker.reported(trial, REPORT | {"number": 1, "said": ["compiled", "greyscale"], "findings": findings}, 0.5)
    tracker.ended(trial, state, 0.5, "because", CURVE)
    (parent,), (child,) = runs(tracker, "study"), runs(tracker, "trial")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.status, child.data.tags["mixtune.state"]) == (status, state)
    assert child.data.params["family"] == "fixed"
    assert child.data.tags["mixtune.notes.1"] == "compiled; greyscale"
    assert child.data.params["w_08"] == "1"
    assert {k: v for k, v in child.data.metrics.items() if k.startswith("images/")} == {
        "images/unreadable": 2,
        "images/rotated by EXIF": 1,
    }
    client = MlflowClient(tracker.uri)
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "curve/top1")] == [(8, 0.5)]
    assert [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, "train/loss")] == [(50, 1.5)]
    assert "regime.yaml" in [a.path for a in client.list_artifacts(child.info.run_id)]


def test_every_fold_is_a_step_of_its_own(tmp_path, tiny, empty_store):
    folder = tmp_path / "folds"
    folder.mkdir()
    tracker = open_writer(empty_store(folder), parse(tiny | {"folds": 3}, Space, "f"), folder)
    trial = candidate(tracker)
    tracker.started(trial)
    for fold in range(3):
        tracker.reported(trial, REPORT | {"progress": 1.0, "fold": fold}, 0.5 + 0.1 * fold)
    tracker.ended(trial, "COMPLETE", 0.7, "", CURVE)
    (child,) = runs(tracker, "trial")
    history = MlflowClient(tracker.uri).get_metric_history(child.info.run_id, "score")
    assert [(m.step, m.value) for m in history] == [(100, 0.5), (200, 0.6), (300, 0.7)]
    assert child.data.metrics["score"] == 0.7


def test_reading_back_gives_tags_and_curves(tracker):
    trial = candidate(tracker)
    tracker.started(trial)
    tracker.ended(trial, "COMPLETE", 0.5, "", CURVE)
    assert tracker.flush()
    (run,) = stored(tracker.uri, "tiny")
    assert run.tags["mixtune.trial"] == "0"
    assert run.curve == {r.pop("S"): r for r in CURVE.rows()}


def test_interrupted_and_stale_runs_leave_no_trace(tracker, tiny):
    first, second = candidate(tracker, 0), candidate(tracker, 1)
    tracker.started(first)
    tracker.started(second)
    tracker.ended(first, "INTERRUPTED", None, "", None)
    assert len(runs(tracker, "trial")) == 1
    again = open_writer(tracker.uri, tracker._study.projection.space, tracker._folder)
    assert again.resync()
    assert runs(again, "trial") == []
    assert again.parent == tracker.parent
    again.close()


def test_the_parent_holds_the_space_the_best_and_the_figures(tracker):
    figure = tracker._folder / "pareto.png"
    figure.write_bytes(b"png")
    note_summary(tracker._trials, {"score": 0.9, "trial": 3})
    assert tracker.resync()
    tracker.finish("FINISHED", [figure])
    (parent,) = runs(tracker, "study")
    assert parent.data.params["task.network"] == "cifar_resnet8"
    assert parent.data.metrics["score"] == 0.9
    assert parent.data.tags["mixtune.best.trial"] == "3"
    paths = [a.path for a in MlflowClient(tracker.uri).list_artifacts(parent.info.run_id, "figures")]
    assert paths == ["figures/pareto.png"]


def test_the_parent_says_where_it_ran(tracker, tmp_path):
    (parent,) = runs(tracker, "study")
    path = MlflowClient(tracker.uri).download_artifacts(parent.info.run_id, "environment.yaml", str(tmp_path))
    said = yaml.safe_load(Path(path).read_text())
    assert said["torch"] == version("torch")
    assert said["mlflow"] == version("mlflow")
    assert said["python"] == platform.python_version()


def test_the_experiment_keeps_a_view_of_the_study(tracker):
    """Every column that the view names is one that trials have."""
    trial = candidate(tracker)
    tracker.started(trial)
    tracker.reported(trial, REPORT, 0.5)
    (child,) = runs(tracker, "trial")
    tags = MlflowClient(tracker.uri).get_experiment(tracker.experiment).tags
    state = json.loads(tags["mlflow.sharedViewState.mixtune-tiny"])
    assert state["orderByKey"] in state["selectedColumns"]
    known = {f"metrics.`{k}`" for k in child.data.metrics} | {"metrics.`top1/S12`", "attributes.`Duration`"}
    known |= {f"params.`{k}`" for k in child.data.params} | {f"tags.`{k}`" for k in child.data.tags}
    assert set(state["selectedColumns"]) <= known
    found = MlflowClient(tracker.uri).search_runs([tracker.experiment], state["searchFilter"])
    assert len(found) == 2  # the study and its trial
    url = address("http://127.0.0.1:5000", tracker.experiment, "tiny")
    assert url.endswith("/runs?workflowType=machine_learning&viewStateShareKey=mixtune-tiny")


def test_metrics_are_rounded_for_reading_and_the_curve_is_not(tracker):
    trial = candidate(tracker)
    tracker.started(trial)
    odd = curve_of(point(8, 0.1, 1 / 3, 2 / 3, 0.123456789))
    tracker.reported(trial, REPORT | {"curve": odd.rows()}, 1 / 3)
    tracker.ended(trial, "COMPLETE", 1 / 3, "", odd)
    (child,) = runs(tracker, "trial")
    assert (child.data.metrics["score"], child.data.metrics["top1/S08"]) == (0.33333, 0.33333)
    assert (child.data.metrics["curve/top1"], child.data.metrics["curve/loss"]) == (1 / 3, 0.123456789)


def test_the_machine_is_watched_when_mlflow_is_told_to(tmp_path, tiny, empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    watched = open_writer(empty_store(tmp_path), parse(tiny, Space, "f"), tmp_path)
    client = MlflowClient(watched.uri)
    for _ in range(600):
        if any(k.startswith("system/") for k in client.get_run(watched.parent).data.metrics):
            break
        time.sleep(0.05)
    watched.finish("FINISHED", [])
    assert client.get_run(watched.parent).data.metrics["system/system_memory_usage_percentage"] > 0
    assert not any(t.name == "SystemMetricsMonitor" for t in threading.enumerate())


def test_watching_without_its_library_is_one_sentence(tmp_path, tiny, empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setitem(sys.modules, "mlflow.system_metrics.system_metrics_monitor", None)
    with pytest.raises(InputError, match="MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING: needs psutil"):
        open_writer(empty_store(tmp_path), parse(tiny, Space, "f"), tmp_path)


def test_a_database_of_something_else_is_neither_written_nor_read(tmp_path, tiny):
    import sqlite3

    from mixtune.tracking.mlflow_reader import open_tracking

    path = tmp_path / "study.db"
    with sqlite3.connect(path) as db:
        db.execute("create table studies (name varchar(32))")
    db.close()
    before = path.read_bytes()
    for look in (check, open_tracking):
        with pytest.raises(InputError, match="MLflow did not write this"):
            look(f"sqlite:///{path}")
    assert path.read_bytes() == before
    path.write_bytes(b"no database at all")
    with pytest.raises(InputError, match="cannot be read"):
        open_tracking(f"sqlite:///{path}")


def test_a_database_of_another_mlflow_says_how_to_bring_it_up_to_date(tmp_path, empty_store):
    import sqlite3

    from mixtune.tracking.mlflow_reader import open_tracking

    uri = empty_store(tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("update alembic_version set version_num = 'f5a4f2784254'")
    db.close()
    with pytest.raises(InputError, match=f"another version of MLflow wrote this.* python -m mlflow db upgrade {uri}"):
        open_tracking(uri)


def test_a_server_that_does_not_answer_is_one_sentence():
    with pytest.raises(InputError, match="no MLflow tracking server answers there"):
        check("http://127.0.0.1:9")


def test_a_path_is_answered_with_the_address_that_was_meant(tmp_path, empty_store):
    from mixtune.tracking.mlflow_reader import open_tracking

    uri = empty_store(tmp_path)
    for look in (check, open_tracking):
        with pytest.raises(InputError, match=f"is no address of a database or a server; give {uri}"):
            look(uri.removeprefix("sqlite:///"))
        for folder in ("mlruns", f"file://{tmp_path}/mlruns"):
            with pytest.raises(InputError, match=r"give sqlite:////FOLDER/mlflow\.db or http://HOST:PORT"):
                look(folder)
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/mlflow.db"])
def test_a_missing_store_is_one_sentence(uri):
    with pytest.raises(InputError, match="there is no such file"):
        list(stored(uri, "x"))


def test_an_unknown_study_is_one_sentence(tracker):
    with pytest.raises(InputError, match="holds no trials of this study"):
        list(stored(tracker.uri, "other"))


def test_every_run_names_its_data_by_digest(tracker):
    trial = candidate(tracker)
    tracker.started(trial)
    for kind in ("study", "trial"):
        (run,) = runs(tracker, kind)
        (found,) = run.inputs.dataset_inputs
        assert found.dataset.name == "digits"
        assert found.dataset.digest == identity(tracker._study.projection.space.task).digest
        assert run.data.tags["mixtune.fold"] == "hold-out 25 %"
    (parent,) = runs(tracker, "study")
    counts = {k: int(parent.data.params[f"images.{k}"]) for k in ("train", "validation", "test")}
    task = Classification(tracker._study.projection.space.task)
    assert counts == {
        "train": task.n_train,
        "validation": len(task._held_out),
        "test": len(load_dataset("digits", None).test),
    }


def test_a_study_with_folds_says_so_and_counts_every_image_it_judges(tmp_path, tiny, empty_store):
    tracker = open_writer(empty_store(tmp_path), parse(tiny | {"folds": 4}, Space, "f"), tmp_path)
    (parent,) = runs(tracker, "study")
    assert parent.data.tags["mixtune.fold"] == "4 folds"
    task = [Classification(replace(tracker._study.projection.space.training().task, fold=i)) for i in range(4)]
    assert int(parent.data.params["images.validation"]) == sum(len(t._held_out) for t in task) == 400
    assert int(parent.data.params["images.train"]) == task[0].n_train
    assert parent.data.params["folds"] == "4"
    assert not {"task.fold", "task.folds"} & set(parent.data.params)


def test_the_digest_changes_with_pixels_labels_and_names(monkeypatch):
    pixels = Pixels(torch.zeros(4, 2, 2, 3, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    other = Pixels(pixels.images + 1, pixels.labels)
    relabelled = Pixels(pixels.images, 1 - pixels.labels)
    files = Files(tuple(f"/a/train/x/{i}.jpg" for i in range(4)), pixels.labels)
    moved = Files(tuple(f"/b/train/x/{i}.jpg" for i in range(4)), pixels.labels)
    renamed = Files(tuple(f"/a/train/y/{i}.jpg" for i in range(4)), pixels.labels)

    def digest(source):
        monkeypatch.setattr(
            "mixtune.data.datasets.load_dataset", lambda *_: DataSet(source, source, 2, (0,) * 3, (1,) * 3)
        )
        _digest.cache_clear()
        return _digest("x", None)

    found = [digest(s) for s in (pixels, other, relabelled, files, moved, renamed)]
    _digest.cache_clear()
    assert found[3] == found[4]  # the same files in another place
    assert len(set(found)) == 5


def test_a_task_with_fewer_classes_is_told_from_the_whole_one():
    tasks = [ClassificationConfig("digits", "cifar_resnet8", classes=n) for n in (None, 3, 4)]
    found = [identity(task) for task in tasks]
    assert [i.classes for i in found] == [10, 3, 4]
    assert len({i.digest for i in found}) == 3


def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    """One whose making is cut off could never be opened again."""
    from mixtune.tracking import mlflow_reader

    uri = f"sqlite:///{tmp_path}/mlflow.db"

    class CutOff:
        def __init__(self, uri):
            Path(uri.removeprefix("sqlite:///")).write_bytes(b"a part")
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_reader, "MlflowClient", CutOff)
        with pytest.raises(OSError, match="No space"):
            mlflow_reader.make(uri)
    assert list(tmp_path.iterdir()) == []
    mlflow_reader.make(uri)
    made = (tmp_path / "mlflow.db").read_bytes()
    mlflow_reader.make(uri)  # and left alone where it is
    assert (tmp_path / "mlflow.db").read_bytes() == made
    assert MlflowClient(uri).create_experiment("x")
    assert [p.name for p in tmp_path.iterdir()] == ["mlflow.db"]
