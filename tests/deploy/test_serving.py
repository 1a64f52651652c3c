"""The MLflow model: sizes as a parameter, the accuracy of the run, an alias, and a real scoring server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from mixtune import export
from mixtune.errors import InputError
from mixtune.training.task import Classification
from mixtune.training.trained import Trained
from tests.study.test_server import free_port


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    export.main(["--run", str(finished), "--network", str(folder), "--formats", "mlflow", "--at-least", "1 %"])
    return Trained.read(finished), folder


def held_out(trained):
    source = Classification(trained.config.task)._held_out
    return source.images.numpy(), source.labels.numpy()


def test_it_has_the_runs_accuracy_at_every_size(exported):
    trained, folder = exported
    images, labels = held_out(trained)
    model = mlflow.pyfunc.load_model(str(folder / "mlflow"))
    for point in trained.curve.points:
        found = model.predict(images, params={"size": point.S})
        assert found.sum(1) == pytest.approx(1, abs=1e-5)
        assert (found.argmax(1) == labels).mean() == pytest.approx(point.top1)
    assert np.array_equal(model.predict(images), model.predict(images, params={"size": 8}))
    wide = np.zeros((2, 9, 31, 3), np.uint8)  # an image need not be square
    assert model.predict(wide).shape == (2, 10)


def test_it_is_registered_under_an_alias(exported, finished, tmp_path, empty_store):
    uri = empty_store(tmp_path)
    MlflowClient(uri).create_experiment("mixtune", artifact_location=f"file://{tmp_path}/artifacts")
    arguments = ["--run", str(finished), "--network", str(tmp_path / "net"), "--formats", "torch"]
    export.main([*arguments, "--register", "digits-net", "--tracking-uri", uri])
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/digits-net@best")
    assert model.predict(held_out(exported[0])[0][:3]).shape == (3, 10)


def test_registering_needs_a_store(finished):
    with pytest.raises(InputError, match="--register NAME needs --network FOLDER"):
        export.main(["--run", str(finished), "--register", "x"])


@pytest.mark.slow
def test_mlflow_serves_it(exported):
    trained, folder = exported
    port = free_port()
    # MLflow looks for uvicorn on the PATH, as in an activated environment.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(folder / "mlflow"), "--env-manager"]
    command += ["local", "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
    try:
        for _ in range(900):
            assert process.poll() is None, (folder / "serve.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1):
                    break
            except OSError:
                time.sleep(0.1)
        images, _ = held_out(trained)
        body = json.dumps({"inputs": images[:4].tolist(), "params": {"size": 12}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            served = np.array(json.load(answer)["predictions"])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    model = mlflow.pyfunc.load_model(str(folder / "mlflow"))
    assert served == pytest.approx(model.predict(images[:4], params={"size": 12}), abs=1e-6)
