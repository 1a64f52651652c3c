"""What a process started ends with it, also when it is killed and what it started does not notice."""

import os
import signal
import subprocess
import sys
import time

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
    while len(janitor.Family(mark).look()) != n and time.monotonic() < end:
        time.sleep(0.05)
    return len(janitor.Family(mark).look()) == n


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
    janitor.sweep(janitor.Family(mark))
    assert child.wait(10) == 0
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_what_hides_its_mark_and_has_lost_its_parent_is_still_known():
    """As Ray's agents do, whose title stands where their environment was."""
    mark = "a test of the family"
    inner = "import time; time.sleep(600)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}], env={{}}); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", outer], env=os.environ | {janitor.MARK: mark}, stdin=subprocess.PIPE, text=True
    )
    family = janitor.Family(mark)
    end = time.monotonic() + 30
    while len(family.look()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    parent.communicate("\n")
    (orphan,) = family.look()
    assert janitor.Family(mark).look() == []
    janitor.sweep(family)
    with pytest.raises(ProcessLookupError):
        os.kill(orphan, 0)
