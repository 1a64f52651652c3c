"""What a process started ends with it, also when it is killed and what it started does not notice."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mixtune.execution import janitor

# A search: it starts the janitor, then a child in a session of its own that starts another one and forgets it.
SEARCH = """
import subprocess, sys, time
from mixtune.execution.janitor import Janitor
watch = Janitor()
inner = "import time; time.sleep(600)"
outer = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {inner!r}]); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", outer], start_new_session=True)
import os
print(os.environ["MIXTUNE_SEARCH"], flush=True)
if sys.argv[1] == "close":
    time.sleep(1)
    watch.close()
time.sleep(600 if sys.argv[1] == "wait" else 0)
"""


def alive(mark, n, seconds=30):
    """Whether ``n`` processes with the mark are there, now or shortly."""
    end = time.monotonic() + seconds
    while len(janitor.marked(mark)) != n and time.monotonic() < end:
        time.sleep(0.05)
    return len(janitor.marked(mark)) == n


@pytest.mark.parametrize("how", ["kill -9", "close", "end"])
def test_nothing_is_left_however_a_search_ends(how):
    what = {"kill -9": "wait"}.get(how, how)
    search = subprocess.Popen([sys.executable, "-c", SEARCH, what], stdout=subprocess.PIPE, text=True)
    mark = search.stdout.readline().strip()
    if how == "kill -9":
        assert alive(mark, 2)
        search.send_signal(signal.SIGKILL)
    search.wait(60)
    assert alive(mark, 0)


def test_what_ends_by_itself_is_not_killed(monkeypatch):
    mark = "a test of the janitor"
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1)"], env=os.environ | {janitor.MARK: mark}
    )
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert alive(mark, 1)
    janitor.sweep(mark)
    assert child.wait(10) == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


RAY = """
import os, time
from mixtune.execution import ray_tune
ray_tune.connect(None, 1, 0)
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_nothing_of_rays_is_left_after_kill_9():
    """Ray's agents, too, which would go on for a minute."""
    search = subprocess.Popen([sys.executable, "-c", RAY], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert search.stdout.readline() == "up\n"
    driver, end = psutil.Process(search.pid), time.monotonic() + 60
    while "ray::RuntimeEnvAgent" not in (names := [" ".join(p.cmdline()).strip() for p in children(driver)]):
        assert time.monotonic() < end, names
        time.sleep(0.2)
    started = children(driver)
    search.kill()
    search.wait()
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []


def children(process):
    return [p for p in process.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
