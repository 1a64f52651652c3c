"""kill -9 of the driver, a worker or Ray at random moments: exact books, and nothing left running."""

import os
import random
import signal
import time
import uuid

import pytest

from tests.accounts import assert_exact, assert_gone, marked, read_until, start

TRIALS = 4


def victims(target, process, mark):
    if target == "driver":
        return [process.pid]
    names = {"worker": "ray::ImplicitFunc", "raylet": "/raylet/raylet", "gcs": "/gcs/gcs_server"}
    return sorted(pid for pid, name in marked(mark).items() if names[target] in name.split(" --")[0])


def search_through(tmp_path, space, targets, seed):
    """Run the same command until it ends by itself; meanwhile kill each target once, at a random moment.

    Returns what every start printed.
    """
    rng, mark, folder = random.Random(seed), uuid.uuid4().hex, tmp_path / "study"
    process, said = start(folder, space, mark=mark), [[]]
    try:
        for target in targets:
            if not read_until(process, " start ", said[-1], rng.randint(1, 2)):
                break
            time.sleep(rng.uniform(0.0, 2.0))
            found = victims(target, process, mark)
            if found:
                os.kill(rng.choice(found), signal.SIGKILL)
            if target in ("driver", "gcs"):
                said[-1].append(process.communicate(timeout=120)[0])
                assert_gone(mark)
                process = start(folder, space, mark=mark)
                said.append([])
        said[-1].append(process.communicate(timeout=200)[0])
        assert process.returncode == 0, "".join(said[-1])
        assert_gone(mark)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    return ["".join(lines) for lines in said]


@pytest.fixture
def space(space_file, tiny):
    return space_file(tiny | {"trials": TRIALS, "budget": {"epochs": 2}, "limits": {"retries": 2}})


@pytest.mark.slow
def test_a_worker_and_the_driver_killed_at_random_moments(tmp_path, space):
    said = search_through(tmp_path, space, ["worker", "driver"], seed=0)
    assert "Traceback" not in said[-1]
    assert_exact(tmp_path / "study", TRIALS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_any_order_of_kills(tmp_path, space, seed):
    targets = random.Random(100 + seed).choices(["driver", "worker", "raylet"], k=4)
    said = search_through(tmp_path, space, targets, seed)
    assert "Traceback" not in said[-1]
    assert_exact(tmp_path / "study", TRIALS)


@pytest.mark.slow
def test_rays_node_process_is_started_again(tmp_path, space):
    (said,) = search_through(tmp_path, space, ["raylet"], seed=7)
    assert "of the local Ray cluster died); starting it again" in said
    assert "Traceback" not in said
    _, interrupted = assert_exact(tmp_path / "study", TRIALS)
    assert interrupted


@pytest.mark.slow
def test_the_search_ends_with_rays_global_store_and_goes_on_when_asked(tmp_path, space):
    """Ray ends every process that has lost its global store for a minute, the driver too."""
    said = search_through(tmp_path, space, ["gcs"], seed=7)
    assert len(said) == 2
    assert "study tiny goes on: " in said[1]
    assert_exact(tmp_path / "study", TRIALS)
