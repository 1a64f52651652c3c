"""The proof after a search, as a user runs it: killed in the middle, gone on with, added to a study that has ended."""

import math
import os
import re
import signal
import time
import uuid

import optuna
import pytest
from mlflow import MlflowClient

from mixtune.cli import python_command
from mixtune.search.paths import StudyPaths
from mixtune.search.storage import open_storage
from tests.accounts import assert_exact, assert_gone, marked, start
from tests.test_kills import victims
from tests.test_search import command

FINAL = {"leaders": 1, "replicates": 1, "seeds": 2}


def rounds(folder):
    """Finished runs of each round: {round: [(trial, seed)]}, and how often each was begun."""
    found, begun = {}, {}
    for name in ("leaders", "final"):
        study = optuna.load_study(study_name=f"tiny {name}", storage=open_storage(StudyPaths(folder).storage_url))
        interrupted = set(study.user_attrs.get("interrupted", ()))
        assert {study.trials[n].state.name for n in interrupted} <= {"FAIL"}
        rest = [t for t in study.trials if t.number not in interrupted]
        assert {t.state.name for t in rest} == {"COMPLETE"}
        found[name] = sorted((t.user_attrs["repeat"]["of"], t.user_attrs["repeat"]["seed"]) for t in rest)
        begun[name] = len(study.trials)
    return found, begun


@pytest.mark.slow
@pytest.mark.parametrize("target", ["leaders", "final"])
def test_a_search_killed_in_the_middle_of_a_round_goes_on_and_repeats_nothing(tmp_path, space_file, tiny, target):
    space = space_file(tiny | {"final": FINAL, "pruner": {"name": "none"}, "trials": 3})
    folder, mark = tmp_path / "study", uuid.uuid4().hex
    process = start(folder, space, mark=mark)
    try:
        # Not before the round has finished a run, so that there is something to lose.
        for line in process.stdout:
            if "1 of " in line and ("test set" if target == "final" else "held-out") in line:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert_gone(mark)
        again = command("mixtune.search", "--space", space, "--out", folder)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stdout + again.stderr
    assert re.search(rf"^{target}: 3 regimes\b", again.stdout, re.MULTILINE)
    found, begun = rounds(folder)
    searched = max(of for of, _ in found["leaders"])
    assert found["leaders"] == [(0, 1), (1, 1), (searched, 1)]
    assert found["final"] == sorted((of, seed) for of in (0, 1, searched) for seed in (0, 1))
    assert begun[target] <= len(found[target]) + 2  # as many were running
    assert_exact(folder, 3)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "mixtune")
    runs = client.search_runs([experiment.experiment_id], "tags.`mixtune.kind` = 'repeat'")
    assert (
        len({(r.data.tags["mixtune.trial"], r.data.tags["mixtune.judge"], r.data.tags["mixtune.seed"]) for r in runs})
        == 9
    )
    assert len(runs) == 9
    assert re.search("^final: .*test set", again.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_run_of_the_final_whose_worker_was_killed_is_told_and_made_by_the_next_command(tmp_path, space_file, tiny):
    settings = {"final": FINAL, "pruner": {"name": "none"}, "trials": 3, "budget": {"epochs": 4}}
    space = space_file(tiny | settings | {"limits": {"retries": 0}})
    folder, mark, said, killed = tmp_path / "study", uuid.uuid4().hex, [], -math.inf
    process = start(folder, space, mark=mark)
    try:
        for line in process.stdout:
            said.append(line)
            told = any("FAILED" in before for before in said)
            if "(test set)" in line and not told and time.monotonic() > killed + 10:  # that it failed takes a while
                time.sleep(0.5)  # the next one has begun
                os.kill(victims("worker", process, mark)[0], signal.SIGKILL)
                killed = time.monotonic()
        assert process.wait(timeout=60) == 0, "".join(said)
        assert_gone(mark)
        again = command("mixtune.search", "--space", space, "--out", folder)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)
    said = "".join(said)
    (failed,) = re.findall(r"^failed: (.*), seed (\d), for the test set: its worker died \(.*", said, re.MULTILINE)
    assert "not tested" in said  # there is one run of it
    assert killed > 0
    assert again.returncode == 0, again.stderr
    assert re.search(
        rf"^final: #\d with seed {failed[1]} failed \(its worker died.*\) and starts again", again.stdout, re.M
    )
    assert re.search(r"^final: 3 regimes\b.*\b2 seeds\b.*\b5 of 6 runs\b", again.stdout, re.MULTILINE)
    assert "\nfailed: " not in again.stdout
    found, _ = rounds(folder)
    assert len(found["final"]) == 6


@pytest.mark.slow
def test_a_final_is_added_to_a_study_that_has_ended_and_equals_runs_on_their_own(tmp_path, space_file, tiny):
    space, folder = space_file(tiny | {"trials": 3, "published": ["fixed"]}), tmp_path / "study"
    first = command("mixtune.search", "--space", space, "--out", folder)
    assert first.returncode == 0, first.stderr
    line = first.stdout.split("prove it on the test set", 1)[1].split("\n")[1].strip()
    assert line.startswith(python_command())
    assert "--final 5" in line
    more = ["--set", "final.leaders=1", "--set", "final.replicates=0"]
    proven = command("mixtune.search", "--space", folder / "space.yaml", "--out", folder, "--final", "2", *more)
    assert proven.returncode == 0, proven.stderr
    assert "this noise" in proven.stdout or "is better than" in proven.stdout or "is worse than" in proven.stdout
    assert (folder / "best.yaml").read_text().startswith("# Trial ")
    # The test set's runs are those of mixtune.train --test with the same seeds, to the last bit.
    alone = command(
        "mixtune.train", "--regime", folder / "trials" / "0000" / "regime.yaml", "--test", "--seeds", "2",
        "--out", tmp_path / "alone",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    for seed in ("seed0", "seed1"):
        ours = (folder / "final" / "fixed" / seed / "curve.csv").read_text()
        assert ours == (tmp_path / "alone" / seed / "curve.csv").read_text()
