"""Searches in processes of their own, and whether a study's records are right afterwards: each trial finished once, and
MLflow holds what Optuna's storage holds."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
from mlflow import MlflowClient

from mixtune.search.paths import StudyPaths
from mixtune.search.storage import open_storage

ROOT = Path(__file__).parents[1]


def start(folder, space, *more, mark=""):
    """A search in a process group of its own; it and all it starts carry the mark (see ``marked``)."""
    return subprocess.Popen(
        [sys.executable, "-m", "mixtune.search", "--space", str(space), "--out", str(folder), *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"MIXTUNE_MARK": mark, "PYTHONUNBUFFERED": "1"},
        # A shell's background job ignores Ctrl-C, and its children inherit that; a terminal's does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def read_until(process, pattern, text, n=1):
    """Read lines into ``text`` until ``n`` have the pattern; False when the search ended before."""
    for line in process.stdout:
        text.append(line)
        n -= re.search(pattern, line) is not None
        if n <= 0:
            return True
    return False


def assert_exact(folder, n, study="tiny", published=("fixed", "multiscale"), storage=None):
    """``n`` trials of the study in ``folder`` are finished, each once, with their reports, and none is left open."""
    study = optuna.load_study(study_name=study, storage=open_storage(storage or StudyPaths(folder).storage_url))
    interrupted = set(study.user_attrs.get("interrupted", []))
    finished = {t.number: t for t in study.trials if t.number not in interrupted}
    assert len(finished) == n
    assert {t.state.name for t in finished.values()} <= {"COMPLETE", "PRUNED"}, [
        t.user_attrs.get("reason") for t in finished.values()
    ]
    assert {study.trials[i].state.name for i in interrupted} <= {"FAIL"}
    assert sorted(t.user_attrs["published"] for t in finished.values() if "published" in t.user_attrs) == [*published]
    for t in finished.values():
        reports = t.intermediate_values
        assert sorted(reports) == list(range(1, len(reports) + 1))
        assert t.value == reports[max(reports)]

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mixtune")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trials = [r for r in runs if r.data.tags["mixtune.kind"] == "trial"]
    assert sorted(int(r.data.tags["mixtune.trial"]) for r in trials) == sorted(finished)
    for run in trials:
        t = finished[int(run.data.tags["mixtune.trial"])]
        assert run.data.tags["mixtune.state"] == t.state.name
        assert run.data.metrics["score"] == round(t.value, 5)
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "score")]
        assert len(steps) == len(set(steps))
    (parent,) = (r for r in runs if r.data.tags["mixtune.kind"] == "study")
    assert parent.info.status == "FINISHED"
    return finished, interrupted


def marked(mark):
    """Processes started with MIXTUNE_MARK=``mark`` in their environment, and what those started: {pid: name}."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"MIXTUNE_MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                name = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if name:  # a zombie has none
                    found[int(folder.name)] = name
        except (OSError, ProcessLookupError):
            continue
    return found


def assert_gone(mark, seconds=60):
    """Nothing of what was started with the mark is left, now or shortly."""
    end = time.monotonic() + seconds
    while left := marked(mark):
        assert time.monotonic() < end, left
        time.sleep(0.2)


def assert_ended(pids, seconds=30):
    """None of these processes is left, now or shortly."""
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.05)
