"""A real MLflow server with a database and an artifact store, killed and started again in the middle of a study."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient

from analysis.study_runs import read_study
from mixtune.config import parse
from mixtune.search.space import Space
from mixtune.tracking.mlflow_reader import check
from mixtune.tracking.mlflow_writer import MlflowWriter
from tests.search.test_optuna_study import CURVE
from tests.tracking.test_mlflow_writer import REPORT, candidate


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def server(folder, port):
    """`mlflow server` on loopback; killed with everything it started on leaving."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/store"]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True, cwd=folder
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow  # starting a server twice takes half a minute on two busy cores
def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path, tiny, empty_store):
    port = free_port()
    empty_store(tmp_path)
    (tmp_path / "study").mkdir()
    space = parse(tiny, Space, "f")
    with server(tmp_path, port) as uri:
        check(uri)
        tracker = MlflowWriter(uri, space, tmp_path / "study")
        first = candidate(tracker, 0)
        tracker.started(first)
        tracker.reported(first, REPORT, 0.4)
        assert tracker.flush(30)
    # The server is gone: the first trial ends, a second one runs as a whole, a third one starts.
    tracker.reported(first, REPORT | {"progress": 1.0}, 0.6)
    (first.folder / "weights.safetensors").write_bytes(b"weights")
    tracker.ended(first, "COMPLETE", 0.6, "", CURVE)
    second = candidate(tracker, 1)
    tracker.started(second)
    tracker.reported(second, REPORT | {"progress": 1.0}, 0.5)
    tracker.ended(second, "COMPLETE", 0.5, "", CURVE)
    third = candidate(tracker, 2)
    tracker.started(third)
    tracker.summarise({"score": 0.6})
    assert not tracker.finish("KILLED", [])
    assert tracker.courier.waiting == 8
    # The search's process ends, with everything on disk.

    with server(tmp_path, port) as uri:
        again = MlflowWriter(uri, space, tmp_path / "study", tracker.parent)
        again.discard_unfinished()
        assert again.flush(60)
        assert again.finish("FINISHED", [])
        study = read_study(uri, "tiny")
        assert study.states == {"COMPLETE": 2}  # the third is discarded, after its start was made up for
        assert [t.curve for t in study.trials] == [CURVE, CURVE]
        client = MlflowClient(uri)
        runs = {
            r.data.tags["mixtune.trial"]: r
            for r in client.search_runs([again.experiment])
            if r.data.tags["mixtune.kind"] == "trial"
        }
        history = client.get_metric_history(runs["0"].info.run_id, "score")
        assert [(m.step, m.value) for m in history] == [(50, 0.4), (100, 0.6)]
        files = {a.path for a in client.list_artifacts(runs["0"].info.run_id)}
        assert files == {"regime.yaml", "weights.safetensors"}
        assert runs["1"].info.status == "FINISHED"
        (parent,) = client.search_runs([again.experiment], "tags.`mixtune.kind` = 'study'")
        assert parent.info.status == "FINISHED"
        assert not list((tmp_path / "study").glob("unsent*"))
