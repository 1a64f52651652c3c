"""A machine of a cluster that does not see the study's folder or its data is named before the first trial."""

import os
import signal
import subprocess
import sys
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from mixtune.config import parse
from mixtune.errors import InputError
from mixtune.execution import cluster_checks
from mixtune.search.space import Space
from tests.conftest import TINY
from tests.data.test_datasets import write
from tests.test_search import command

THEN = "put it on storage that every machine mounts, or copy it there"


def test_what_a_machine_sees_is_looked_at_where_it_runs(tmp_path, monkeypatch):
    mark, data = tmp_path / "out/.seen-1", tmp_path / "data"
    mark.parent.mkdir()
    mark.touch()
    write(data)
    wanted = {"task.data": cluster_checks.list_contents(str(data))}
    assert {str(data / "train"), str(data / "val/bee")} <= set(wanted["task.data"])
    assert cluster_checks.missing_on_machine(str(mark), wanted) is None
    (data / "val/bee").rename(tmp_path / "elsewhere")
    assert cluster_checks.missing_on_machine(str(mark), wanted) == ("task.data", f"has no {data}/val/bee; {THEN}")
    data.rename(tmp_path / "moved")
    assert cluster_checks.missing_on_machine(str(mark), wanted) == ("task.data", f"has no {data}; {THEN}")
    data.mkdir()  # a mount point without its storage
    assert cluster_checks.missing_on_machine(str(mark), wanted) == ("task.data", f"has no {data}/train; {THEN}")
    monkeypatch.setattr(cluster_checks.os, "access", lambda *_: False)
    assert "cannot write there as" in cluster_checks.missing_on_machine(str(mark), {})[1]
    mark.unlink()
    monkeypatch.setattr(cluster_checks, "FILE_VISIBLE_TIMEOUT", 0.3)
    assert cluster_checks.missing_on_machine(str(mark), {})[0] == f"--out {tmp_path / 'out'}"


def test_what_trials_read_is_named_by_its_key():
    task = TINY["task"] | {"dataset": "folder", "data": "/d", "weights": "/w"}
    recipe = {"distill": {"network": "cifar_resnet8", "weights": "/t"}}
    space = parse(TINY | {"task": task, "recipe": recipe}, Space, "f")
    assert cluster_checks.named_paths(space) == {
        "task.data": "/d",
        "task.weights": "/w",
        "recipe.distill.weights": "/t",
    }
    assert cluster_checks.named_paths(parse(TINY, Space, "f")) == {}


def own_mounts():
    """Whether a process may have mounts that others do not see."""
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def hidden(tmp_path, monkeypatch):
    """Starts a second node for which a folder is empty, as on a machine that does not mount it; gives the address."""
    if not own_mounts():
        pytest.skip("needs the right to mount (unshare -m)")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever token lies in the home folder
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    started = []

    def start(folder):
        folder.mkdir(exist_ok=True)
        ray_start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={cluster.address}", "--block"]
        shell = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
        node = subprocess.Popen(
            [*shell, *ray_start, "--num-cpus=1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        started.append(node)
        until = time.monotonic() + 60
        while sum(n["Alive"] for n in cluster.global_state.node_table()) < 2:
            assert time.monotonic() < until
            time.sleep(0.2)
        return cluster.address

    yield start
    for node in started:
        os.kill(node.pid, signal.SIGTERM)
        node.wait(30)
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["--out", "task.data"])
def test_a_node_without_the_folder_or_the_data_is_one_sentence(hidden, tmp_path, space_file, what):
    data = write(tmp_path / "data", n=16)
    out = tmp_path / "out"
    address = hidden(out if what == "--out" else data)
    task = {"dataset": "folder", "data": str(data), "network": "cifar_resnet8", "validation": 0.25}
    space = space_file(TINY | {"task": task, "base": {"S": 8, "B": 4}, "resources": {"cpus": 1}})
    done = command("mixtune.search", "--space", str(space), "--out", str(out), "--address", address)
    assert done.returncode == 2, done.stdout + done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    path = out if what == "--out" else data
    where = f"--out {path}" if what == "--out" else "task.data"
    assert f"{where}: machine " in sentence
    assert "that every machine mounts" in sentence
    assert "Traceback" not in done.stdout + done.stderr
    assert {p.name for p in out.iterdir()} <= {"lock"}  # nothing was begun


def test_a_machine_without_the_program_is_named_and_a_lost_one_is_not_waited_for(monkeypatch, caplog):
    def fail(error):
        monkeypatch.setattr(cluster_checks.ray, "get", lambda *_, **__: (_ for _ in ()).throw(error))

    missing = ray.exceptions.RayTaskError("lacking", "...", ModuleNotFoundError("No module named 'mixtune'"))
    fail(missing)
    with pytest.raises(InputError, match=r"machine node3 cannot run mixtune \(No module named 'mixtune'\); every"):
        cluster_checks._check_answer("node3", None, 1.0)
    fail(ray.exceptions.GetTimeoutError("late"))
    cluster_checks._check_answer("node3", None, 1.0)
    assert "machine node3 does not answer" in caplog.text
