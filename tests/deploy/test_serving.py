"""The MLflow model: sizes as a parameter, the accuracy of the run, an alias, and a real scoring server."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from mixtune import export
from mixtune.errors import InputError
from mixtune.models.weights import load_weights
from mixtune.tasks.classification import Classification
from mixtune.training.run_folder import FinishedRun
from tests.tracking.test_server import free_port

pytestmark = pytest.mark.arithmetic


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The run, the folder of its network, and what the command printed."""
    folder, said = tmp_path_factory.mktemp("net work"), io.StringIO()
    with contextlib.redirect_stdout(said):
        export.main(["--run", str(finished), "--network", str(folder), "--formats", "mlflow", "--at-least", "1 %"])
    return FinishedRun.read(finished), folder, said.getvalue()


def held_out(trained):
    source = Classification(trained.config.task)._held_out
    return source.images.numpy(), source.labels.numpy()


def test_it_has_the_runs_accuracy_at_every_size(exported):
    trained, folder, _ = exported
    images, labels = held_out(trained)
    model = mlflow.pyfunc.load_model(str(folder / "mlflow"))
    for point in trained.curve.points:
        found = model.predict(images, params={"size": point.S})
        assert found.sum(1) == pytest.approx(1, abs=1e-5)
        assert (found.argmax(1) == labels).mean() == pytest.approx(point.metrics["top1"])
    assert np.array_equal(model.predict(images), model.predict(images, params={"size": 8}))
    wide = np.zeros((2, 9, 31, 3), np.uint8)  # an image need not be square
    assert model.predict(wide).shape == (2, 10)


def test_every_size_is_served_with_its_own_statistics(finished, tmp_path, monkeypatch):
    from mixtune.tasks import classification

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    text = (run / "regime.yaml").read_text()
    assert text.count("  evaluate:\n") == 1
    recalibrate = "  evaluate:\n    recalibrate: {views: [test], images: 200}\n"
    (run / "regime.yaml").write_text(text.replace("  evaluate:\n", recalibrate))
    monkeypatch.setattr(classification.bn_recalibration, "choose", lambda predictions, part: "test")
    export.main(["--run", str(run), "--network", str(tmp_path / "net"), "--formats", "mlflow", "--at-most", "1 MMACs"])
    assert (tmp_path / "net" / "statistics.safetensors").exists()
    model = mlflow.pyfunc.load_model(str(tmp_path / "net" / "mlflow"))
    trained = FinishedRun.read(run)
    images, labels = held_out(trained)
    judged = Classification(trained.config.task, "validation", "cpu", trained.config.evaluate.recalibrate)
    network = judged.network(0)
    load_weights(network, trained.weights, trained.config.task.network)
    for point in judged.evaluate(network, [8, 12]).points:
        found = model.predict(images, params={"size": point.S})
        assert (found.argmax(1) == labels).mean() == pytest.approx(point.metrics["top1"])
        assert point.metrics["top1"] != trained.curve.at(point.S).metrics["top1"]  # others


def test_it_is_registered_under_an_alias(exported, finished, tmp_path, empty_store, capsys):
    uri = empty_store(tmp_path)
    MlflowClient(uri).create_experiment("mixtune", artifact_location=f"file://{tmp_path}/artifacts")
    arguments = ["--run", str(finished), "--network", str(tmp_path / "net"), "--formats", "torch"]
    export.main([*arguments, "--register", "digits-net", "--tracking-uri", uri])
    served = capsys.readouterr().out.splitlines()[-1]
    assert f"MLFLOW_TRACKING_URI={uri}" in served
    assert "mlflow models serve -m models:/digits-net@best --env-manager local" in served
    mlflow.set_tracking_uri(uri)
    model = mlflow.pyfunc.load_model("models:/digits-net@best")
    assert model.predict(held_out(exported[0])[0][:3]).shape == (3, 10)


def test_registering_needs_a_store(finished):
    with pytest.raises(InputError, match="--register NAME needs --network FOLDER"):
        export.main(["--run", str(finished), "--register", "x"])


@pytest.mark.slow
def test_the_printed_command_serves_it_from_a_fresh_shell(exported):
    trained, folder, said = exported
    port = free_port()
    command = said.split("serve it:\n")[1].strip()
    assert command.endswith("--port 5001")
    fresh = {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": "/usr/bin:/bin", "HOME": os.environ["HOME"]}
    shell = ["/bin/sh", "-c", command.replace("--port 5001", f"--port {port}")]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(shell, stdout=log, stderr=log, env=fresh, start_new_session=True)
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
