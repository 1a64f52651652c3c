"""Faults of real Ray workers."""

import contextlib
import ipaddress
import os
import socket
from pathlib import Path

import pytest

from mixtune.config import parse
from mixtune.study.events import Listeners
from mixtune.study.running import tuning
from mixtune.study.running.bridge import Bridge
from mixtune.study.running.slots import Slots
from mixtune.study.sampling import Trials
from mixtune.study.space import Space
from tests.accounts import assert_ended
from tests.conftest import TINY
from tests.study.running import faulty
from tests.study.running.test_bridge import Recorder


@pytest.fixture(scope="module")
def faulty_ray(cluster, tmp_path_factory):
    """One real Ray Tune run whose workers fail in every way that a worker can."""
    folder = tmp_path_factory.mktemp("a folder")
    settings = {"trials": 8, "published": ["fixed"], "pruner": {"name": "none"}, "limits": {"minutes": 0.1}}
    space = parse(TINY | settings, Space, "f")
    trials = Trials(f"journal:///{folder}/study.journal", space, 4)
    recorder = Recorder()
    bridge = Bridge(trials, space.training(1), folder, Listeners([recorder]))
    tuning.run(bridge, Slots(1, 0, 2), folder, faulty.trial)
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
