"""Ctrl-C and kill -9 in the middle of a search: nothing finished is lost, nothing is run twice."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

ROOT = Path(__file__).parents[1]


def start(folder, space):
    return subprocess.Popen(
        [sys.executable, "-m", "mixtune.search", "--space", str(space), "--out", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and its children inherit that; a terminal's does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def read_until(process, pattern):
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"{pattern} never came: {text}")


def cut_off(process, how):
    """Stop a search while its trial #2 or a later one is starting."""
    read_until(process, r"#[2-9] .* start")
    began = time.monotonic()
    if how == "SIGINT":  # as a terminal does: to the whole group
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.Signals[how])
    rest, _ = process.communicate(timeout=60)
    if how == "SIGKILL":
        time.sleep(3)  # Ray's processes notice that their driver is gone
    else:
        assert process.returncode == 130
        assert time.monotonic() - began < 30
        assert "continue this study\n" in rest
        assert "Traceback" not in rest


SLOW = [pytest.param(["SIGKILL", "SIGINT"], marks=pytest.mark.slow), pytest.param(["SIGTERM"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("signals", [["SIGINT"], *SLOW])
def test_a_search_that_is_cut_off_goes_on_where_it_was(tmp_path, space_file, tiny, signals):
    tiny["budget"] = {"epochs": 2}
    tiny["trials"] = 4
    space = space_file(tiny)
    folder = tmp_path / "a study"
    for how in signals:
        cut_off(start(folder, space), how)

    process = start(folder, space)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert "study tiny goes on: " in text
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{folder}/study.db")
    interrupted = study.user_attrs.get("interrupted", [])
    finished = [t for t in study.trials if t.number not in interrupted]
    assert len(finished) == 4
    assert all(t.state.name in ("COMPLETE", "PRUNED") for t in finished)
    assert all(t.state.name == "FAIL" for t in study.trials if t.number in interrupted)
    assert sorted(t.user_attrs["published"] for t in finished if "published" in t.user_attrs) == ["fixed", "multiscale"]
