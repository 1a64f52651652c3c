"""Ctrl-C and kill -9 in the middle of a search: nothing finished is lost, nothing is run twice."""

import os
import re
import signal
import time

import pytest

from tests.accounts import assert_exact, read_until, start


def cut_off(process, how):
    """Stop a search while its trial #2 or a later one is starting."""
    text = []
    assert read_until(process, r"#[2-9] .* start", text), "".join(text)
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
        assert re.search("mixtune.search .*--space .*--out ", rest)
        assert "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGINT"], ["SIGKILL", "SIGINT"], ["SIGTERM"]])
def test_a_search_that_is_cut_off_goes_on_where_it_was(tmp_path, space_file, tiny, empty_store, signals):
    space, folder = space_file(tiny), tmp_path / "a study"
    folder.mkdir()
    empty_store(folder)
    for how in signals:
        cut_off(start(folder, space), how)

    process = start(folder, space)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert re.search(r"\btiny\b.*\d of 4 trials\b", text)
    assert_exact(folder, 4)
