"""A search as a job of a Ray cluster, submitted as docs/cluster.md and KubeRay do: ended, stopped, killed, resumed."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
import yaml
from mlflow import MlflowClient

from mixtune.search.storage import open_storage
from tests.accounts import ROOT, assert_exact, assert_gone, marked, read_until
from tests.test_cluster import JOB, PAGE
from tests.tracking.test_server import free_port, server

pytest.importorskip("ray.dashboard.optional_deps", reason='needs pip install "ray[default]"', exc_type=ImportError)
pytestmark = pytest.mark.slow
(SUBMIT,) = (line for line in PAGE.splitlines() if line.startswith("ray job submit"))
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class Head:
    """A cluster of one machine, started as cluster/ray-cluster.yaml starts its head, and its command line."""

    def __init__(self, folder, settings):
        self.folder, self.mark, self.port = folder, uuid.uuid4().hex, free_port()
        # A user's machine: the token lies in the home folder, and the page's export is made.
        self.env = os.environ | {"HOME": str(folder), "RAY_AUTH_MODE": "token"}
        self.env.pop("RAY_ADDRESS", None)
        self.address = f"http://127.0.0.1:{self.port}"
        assert "export RAY_AUTH_MODE=token " in PAGE
        assert "ray get-auth-token --generate" in PAGE
        subprocess.run([*RAY, "get-auth-token", "--generate"], env=self.env, check=True, capture_output=True)
        ports = ["--port=0", f"--dashboard-port={self.port}", f"--dashboard-agent-listen-port={free_port()}"]
        self._temp = tempfile.mkdtemp(prefix="r")  # short, as names of sockets must be
        words = ["start", "--head", "--block", "--dashboard-host=127.0.0.1", "--num-cpus=2", *ports]
        words += [f"--temp-dir={self._temp}", f"--ray-client-server-port={free_port()}", "--disable-usage-stats"]
        own = {"PYTHONPATH": str(ROOT), "MIXTUNE_MARK": self.mark, **settings}
        with (folder / "head.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*RAY, *words], env=self.env | own, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 90
        while self.run("job", "list").returncode:
            assert time.monotonic() < until, (folder / "head.log").read_text()
            assert self._process.poll() is None, (folder / "head.log").read_text()
            time.sleep(1)

    def close(self):
        self._process.terminate()
        self._process.wait(60)
        assert_gone(self.mark)
        subprocess.run(["rm", "-rf", self._temp], check=True)

    def run(self, *words):
        """A command of Ray's, on a machine that has the token and no other setting of the cluster's."""
        words = [*words[:2], "--address", self.address, *words[2:]]
        return subprocess.run([*RAY, *words], env=self.env, capture_output=True, text=True, timeout=120)

    def submit(self, space, out, *more):
        """The page's command with its paths replaced; the job's id."""
        words = shlex.split(SUBMIT)
        command = words[words.index("--") + 1 :]
        command[0] = sys.executable
        command[command.index("--space") + 1], command[command.index("--out") + 1] = str(space), str(out)
        first, second = (i for i, word in enumerate(command) if word == "--set")
        command[first + 1], command[second + 1] = "resources.cpus=1", "resources.workers=1"
        assert words[:2] == ["ray", "job"]
        done = self.run(*words[1:3], "--no-wait", "--", *command, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.search(r"raysubmit_\w+", done.stdout)[0]

    @contextmanager
    def following(self, job):
        """``ray job logs --follow``."""
        words = [*RAY, "job", "logs", "--address", self.address, "--follow", job]
        process = subprocess.Popen(
            words, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def followed(self, job):
        """All that the job says, without the lines of Ray's command itself."""
        with self.following(job) as process:
            said = process.communicate(timeout=200)[0]
        return "".join(line for line in said.splitlines(True) if " cli.py:" not in line)

    def ended(self, job):
        """How the job ended."""
        until = time.monotonic() + 60
        while True:
            said = self.run("job", "status", job).stdout
            if found := re.search(r"' (?:was )?(succeeded|failed|stopped)", said):
                return found[1]
            assert time.monotonic() < until, said
            time.sleep(0.5)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """What the pods of cluster/rayjob.yaml have in their environment, and what stands behind it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    return {"MIXTUNE_STORAGE": f"sqlite:///{folder}/studies.db", "MIXTUNE_TRACKING_URI": f"http://127.0.0.1:{port}"}


@pytest.fixture(scope="module")
def head(tmp_path_factory, settings):
    """The cluster; nothing of it is left afterwards."""
    made = Head(tmp_path_factory.mktemp("home"), settings)
    yield made
    made.close()


def test_a_job_runs_to_its_end_and_its_log_can_be_read(head, tmp_path, space_file, tiny):
    out = tmp_path / "out"
    job = head.submit(space_file(tiny), out)
    said = head.followed(job)
    assert head.ended(job) == "succeeded", said
    lines = said.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith(" time  trial"))
    progress = [line for line in lines[heading + 1 :] if re.match(r" ?\d+:\d\d +#\d+ ", line)]
    assert sum(" start " in line for line in progress) == 4
    assert sum(" done " in line or " pruned " in line for line in progress) == 4
    assert not re.search(r"\x1b|\r|Traceback|WARNING", said)  # no colours, bars or noise in what is kept as a file
    assert_exact(out, 4)


def test_a_job_that_is_stopped_or_killed_continues_when_it_is_submitted_again(head, tmp_path, space_file, tiny):
    out = tmp_path / "out"
    space = space_file(tiny | {"trials": 6, "budget": {"epochs": 8}})
    job = head.submit(space, out)
    with head.following(job) as process:
        assert read_until(process, r" done | pruned ", [])
    assert head.run("job", "stop", job).returncode == 0
    assert head.ended(job) == "stopped"
    assert_idle(head)

    job = head.submit(space, out)
    with head.following(job) as process:
        assert read_until(process, r"goes on: \d of 6 trials are done", said := []), "".join(said)
        assert read_until(process, r" done | pruned ", said), "".join(said)
    driver = [pid for pid, name in marked(head.mark).items() if f"--out {out} " in name and " -m mixtune." in name]
    for pid in driver:
        os.kill(pid, signal.SIGKILL)
    assert driver
    assert head.ended(job) == "failed"
    assert_idle(head)

    job = head.submit(space, out)
    said = head.followed(job)
    assert head.ended(job) == "succeeded", said
    assert re.search(r"goes on: \d of 6 trials are done", said)
    assert_exact(out, 6)


def assert_idle(head, seconds=60):
    """No search, and no process of a trial, is left on the cluster: Ray's own and workers without work remain."""
    until = time.monotonic() + seconds
    while busy := [n for n in marked(head.mark).values() if "mixtune." in n or re.match(r"ray::(?!IDLE|\w+Agent)", n)]:
        assert time.monotonic() < until, busy
        time.sleep(0.3)


def test_kubernetes_hands_the_storage_and_the_tracking_server_to_the_search(head, settings, tmp_path, tiny):
    """KubeRay puts the entrypoint into a line of bash, in a pod that has none of the head's environment."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "imagenet.yaml").write_text(yaml.safe_dump(tiny))
    entrypoint = JOB["spec"]["entrypoint"].replace("/shared", str(shared)).replace("python -m", f"{sys.executable} -m")
    for theirs, ours in (("workers=8", "workers=1"), ("gpus=1", "gpus=0"), ("cpus=12", "cpus=1")):
        entrypoint = entrypoint.replace(f"resources.{theirs}", f"resources.{ours}")
    submit = shlex.join([*RAY, "job", "submit", "--address", head.address])
    bind = int(settings["MIXTUNE_TRACKING_URI"].rpartition(":")[2])
    folder = Path(settings["MIXTUNE_STORAGE"].removeprefix("sqlite:///")).parent
    with server(folder, bind) as uri:
        words = ["bash", "-ce", f"{submit} -- {entrypoint} ;"]
        done = subprocess.run(words, env=head.env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        runs = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("mixtune").experiment_id])
        assert sorted(r.data.tags["mixtune.kind"] for r in runs) == ["study", *["trial"] * 4]
    study = optuna.load_study(study_name="tiny", storage=open_storage(settings["MIXTUNE_STORAGE"]))
    assert {t.state.name for t in study.trials} <= {"COMPLETE", "PRUNED"}
    assert len(study.trials) == 4
    names = {path.name for path in (shared / "studies/imagenet").iterdir()}
    assert "best.yaml" in names
    assert not names & {"study.journal", "mlflow.db"}
