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
from mixtune.search.callbacks import Callbacks
from mixtune.search.space import Space
from mixtune.tracking import resync
from mixtune.tracking.mlflow_reader import check
from tests.tracking.studies import MadeStudy, contents, curve_of
from tests.tracking.writers import open_writer


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
def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path, tiny, empty_store, caplog):
    port = free_port()
    empty_store(tmp_path)
    folder, space = tmp_path / "study", parse(tiny | {"trials": 3, "pruner": {"name": "none"}}, Space, "f")
    study = MadeStudy(folder, space)
    with server(tmp_path, port) as uri:
        check(uri)
        writer = open_writer(uri, space, folder, study.trials)
        study.callbacks = Callbacks([writer])
        first = study.begin()
        study.report(*first, 1, 0.4)
        assert writer.flush()
    # The server is gone: the first trial ends, a second one runs as a whole, a third one starts.
    study.report(*first, 2, 0.6)
    study.end(*first, 0.6)
    study.run(0.4, 0.5)
    study.begin()
    resync.note_summary(study.trials, {"score": 0.6})
    assert not writer.resync()
    writer.close()
    assert "MLflow lacks 2 of 2 runs" in caplog.text

    # The search's process has ended, and the same command goes on.
    with server(tmp_path, port) as uri:
        study.trials.reconcile()
        again = open_writer(uri, space, folder, study.trials)
        again.start_resync()
        assert again.resync()
        assert again.finish("FINISHED", [])
        again.close()
        read = read_study(uri, "tiny")
        assert read.states == {"COMPLETE": 2}  # the third is discarded
        assert [t.curve for t in read.trials] == [curve_of(0.6), curve_of(0.5)]
        held, parents = contents(uri)
        assert parents == 1
        run = held["trial", 0, None, "0"]
        assert run["metrics"]["score"] == [(54, 0.4), (100, 0.6)]
        assert run["files"] == ["curve.csv", "regime.yaml", "result.yaml", "weights.safetensors"]
        assert {run["status"] for run in held.values()} == {"FINISHED"}
        client = MlflowClient(uri)
        (parent,) = client.search_runs([again.experiment], "tags.`mixtune.kind` = 'study'")
        assert (parent.info.status, parent.data.metrics["score"]) == ("FINISHED", 0.6)
