"""Faults of real Ray workers."""

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from mixtune.config import parse
from mixtune.execution import ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import Concurrency
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.study.console import Console
from mixtune.training.run import Run
from tests.accounts import assert_ended
from tests.conftest import TINY
from tests.execution import faulty
from tests.execution.test_coordinator import Recorder
from tests.tracking.writers import open_writer


@pytest.fixture(scope="module")
def faulty_ray(cluster, tmp_path_factory):
    """One real Ray Tune run whose workers fail in every way that a worker can."""
    folder = tmp_path_factory.mktemp("a folder")
    settings = {"trials": 8, "published": ["fixed"], "pruner": {"name": "none"}, "limits": {"minutes": 0.1}}
    space = parse(TINY | settings, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    recorder = Recorder()
    coordinator = Coordinator(trials, space.training(1), folder, Callbacks([recorder]))
    ray_tune.run(coordinator, Concurrency(1, 0, 2), folder, faulty.trial)
    return trials, recorder, folder


@pytest.fixture(scope="module")
def listening(cluster):
    """(address, port) of every TCP socket on which this process or one that it started listens."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    inodes = set()
    for pid in family:
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                inodes.add(str(fd.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for kind, name in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and inode in inodes:
                words, port = local.split(":")
                packed = b"".join(bytes.fromhex(words[i : i + 8])[::-1] for i in range(0, len(words), 8))
                found.add((socket.inet_ntop(kind, packed), int(port, 16)))
    return found


def _outside():
    """This machine's address as others see it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: asks which address would be used
        return probe.getsockname()[0]


def _connects(host, port):
    with socket.socket() as s:
        s.settimeout(2)
        return s.connect_ex((host, port)) == 0


def test_workers_that_die_raise_or_return_early_are_failures_and_the_study_goes_on(faulty_ray):
    trials, recorder, _ = faulty_ray
    assert [o.state for o in trials.outcomes()][:5] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert trials.remaining() == 0
    assert len(trials.outcomes()) == 8
    assert sum(e[0] == "ended" for e in recorder.events) == 8


def pids(folder, number):
    return [int(line) for line in (folder / "trials" / f"{number:04d}" / "pids").read_text().split()]


@pytest.mark.parametrize("number", [5, 6], ids=["in C code", "stopped"])
def test_a_worker_that_hangs_is_killed_from_outside_once(faulty_ray, number):
    trials, _, folder = faulty_ray
    outcome = trials.outcomes()[number]
    assert (outcome.state, outcome.reason) == ("FAIL", "it took longer than 0.1 min (limits.minutes)")
    (pid,) = pids(folder, number)  # not tried again
    assert_ended([pid])


def test_a_worker_that_died_once_goes_on_and_its_trial_counts_once(faulty_ray):
    trials, recorder, folder = faulty_ray
    assert len(pids(folder, 7)) == 2
    assert (trials.outcomes()[7].state, trials.outcomes()[7].score) == ("COMPLETE", 0.5)
    assert [e for e in recorder.events if e[1] == 7] == [
        ("started", 7),
        ("reported", 7, 0.3),
        ("reported", 7, 0.5),
        ("ended", 7, "COMPLETE", ""),
    ]
    assert len(pids(folder, 1)) == 2
    assert trials.outcomes()[1].reason == "its worker died (out of memory, or killed) (2 times)"


def test_a_trial_that_lost_its_gpu_goes_on_from_its_checkpoint_in_a_new_process(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tune, "run_trial", faulty.loses_its_gpu)
    space = parse(TINY | {"trials": 1, "published": ["fixed"], "pruner": {"name": "none"}}, Space, "f")
    trials, recorder = OptunaStudy(f"journal:///{tmp_path}/study.journal", space, 4), Recorder()
    # What Ray counts as a GPU: where there is one, a trial's process ends with it.
    ray_tune.run(
        Coordinator(trials, space.training(1), tmp_path, Callbacks([recorder])), Concurrency(1, 1, 1), tmp_path
    )
    (outcome,) = trials.outcomes()
    *_, undisturbed = Run.prepare(space.regime(outcome.params, "fixed"), space.training(1)).reports()
    assert (outcome.state, outcome.curve) == ("COMPLETE", undisturbed.curve)
    assert len(set(pids(tmp_path, 0))) == 2
    assert [e[0] for e in recorder.events] == ["started", "reported", "reported", "ended"]


@pytest.fixture
def photographs(tmp_path):
    """An image folder: two classes, 12 training images of each and 2 to test on."""
    rng, folder = np.random.default_rng(0), tmp_path / "photographs"
    for part, n in (("train", 12), ("val", 2)):
        for label in range(2):
            (folder / part / f"c{label}").mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / part / f"c{label}" / f"{i:02}.jpg")
    return folder


def search(folder, data, *callbacks, **changes):
    """A search of one trial over image files, with real Ray between worker and driver; its trials."""
    task = TINY["task"] | {"dataset": "folder", "data": str(data), "samples": None, "workers": 2}
    settings = {
        "task": task,
        "trials": 1,
        "published": ["fixed"],
        "base": {"S": 8, "B": 6},
        "search": {"sizes": [4, 8]},
    }
    space = parse(TINY | settings | changes, Space, "f")
    trials = OptunaStudy(f"journal:///{folder}/study.journal", space, 4)
    ray_tune.run(Coordinator(trials, space.training(1), folder, Callbacks(callbacks)), Concurrency(1, 0, 1), folder)
    return trials


def test_what_is_odd_about_images_is_counted_on_the_console_and_in_mlflow(
    cluster, photographs, tmp_path, tiny, empty_store
):
    for name in ("c0/01", "c1/05"):
        (photographs / f"train/{name}.jpg").write_bytes(b"broken")
    Image.new("CMYK", (30, 30), (9, 9, 9, 9)).save(photographs / "train/c0/04.jpg")
    console = Console(1, None, lambda line: None)
    tracker = open_writer(empty_store(tmp_path), parse(tiny, Space, "f"), tmp_path / "writer")
    search(tmp_path, photographs, console, tracker, budget={"epochs": 2})
    assert tracker.flush()
    (run,) = MlflowClient(tracker.uri).search_runs([tracker.experiment], "tags.`mixtune.kind` = 'trial'")
    assert {k: n for k, n in run.data.metrics.items() if k.startswith("images/")} == {
        "images/unreadable": 2,
        "images/CMYK": 1,
        "images/not judged": 1,
    }
    listed = tmp_path / "trials/0000/images.tsv"
    assert console.file_issues().endswith(f": 1 CMYK, 1 not judged, 2 unreadable; named in {listed}")
    assert [line.split("\t")[1] for line in listed.read_text().splitlines()[1:]] == ["unreadable"] * 2 + ["CMYK"]


def test_ray_listens_on_loopback_only(listening):
    assert len(listening) >= 3  # its node manager, its global store, this process
    for address, _ in listening:
        ip = ipaddress.ip_address(address)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def test_nobody_reaches_ray_from_another_address(listening):
    """The same by connecting: what is open on loopback is closed on this machine's other address."""
    outside = _outside()
    if ipaddress.ip_address(outside).is_loopback:
        pytest.skip("this machine has no other address")
    ports = [port for _, port in listening]
    assert sum(_connects("127.0.0.1", port) for port in ports) >= 3
    assert not [port for port in ports if _connects(outside, port)]
