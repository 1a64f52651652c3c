"""A disk that is full, at every kind of write: one sentence, what is there stays whole, and the study goes on later."""

import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mixtune import cli
from mixtune.config import parse
from mixtune.errors import DiskFullError
from mixtune.execution.coordinator import Coordinator
from mixtune.search.callbacks import Callbacks
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.paths import save_text
from mixtune.search.space import Space
from mixtune.training.checkpoint import Checkpoint
from tests.accounts import assert_exact
from tests.execution.test_coordinator import Recorder, report

ROOT = Path(__file__).parents[1]


@contextmanager
def room_for(size):
    """The kernel refuses to let any file of this process grow beyond ``size`` bytes (EFBIG, as on a full disk)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder):
    return [p.name for p in folder.iterdir()]


def fail():
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


@pytest.fixture(params=["journal:///{}/study.journal", "sqlite:///{}/study.db"], ids=["journal", "sqlite"])
def url(tmp_path, request):
    return request.param.format(tmp_path)


@pytest.fixture
def coordinator(tmp_path, tiny, url):
    space = parse(tiny | {"pruner": {"name": "none"}}, Space, "f")
    trials = OptunaStudy(url, space, 4)
    return Coordinator(trials, space.training(1), tmp_path, Callbacks([Recorder()]))


def outcomes(tmp_path, tiny, url):
    """What another process finds in the study, after putting it right: [(number, state)], and how many remain."""
    trials = OptunaStudy(url, parse(tiny | {"pruner": {"name": "none"}}, Space, "f"), 4)
    trials.reconcile()
    return [(o.number, o.state) for o in trials.outcomes()], trials.remaining()


def test_a_checkpoint_stays_what_it_was(tmp_path):
    kept = Checkpoint(tmp_path / "c.pt", "net", "run")
    kept.save({"step": 1})
    before = (tmp_path / "c.pt").read_bytes()
    with room_for(1000), pytest.raises(DiskFullError, match=r"c\.pt: the disk .* is full"):
        kept.save({"step": 2, "weights": torch.zeros(1000)})
    assert (tmp_path / "c.pt").read_bytes() == before
    assert names(tmp_path) == ["c.pt"]
    assert kept.load()["step"] == 1


def test_space_and_best_files_stay_what_they_were(tmp_path):
    save_text(tmp_path / "space.yaml", "a: 1\n")
    with room_for(10), pytest.raises(DiskFullError):
        save_text(tmp_path / "space.yaml", "a: 2\n" * 10)
    assert (tmp_path / "space.yaml").read_text() == "a: 1\n"
    assert names(tmp_path) == ["space.yaml"]


def test_a_regime_file_that_does_not_fit_begins_no_trial(coordinator, tmp_path, tiny, url, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            "mixtune.execution.trial_config.save_regime", lambda path, *_: Path("/dev/full").write_text("regime")
        )
        assert coordinator.suggest("a") is None
    assert coordinator.done
    assert "the disk (or its quota) is full" in coordinator.halted
    assert outcomes(tmp_path, tiny, url) == ([], 4)


def test_a_curve_that_does_not_fit_is_written_when_the_trial_is_repeated(coordinator, tmp_path, tiny, url, monkeypatch):
    checkpoint = Path(coordinator.suggest("a")["checkpoint"])
    checkpoint.parent.mkdir()
    checkpoint.write_bytes(b"state")
    coordinator.report("a", report(2, 0.5, last=True))
    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.coordinator.write_csv", lambda *_: Path("/dev/full").write_text("curve"))
        coordinator.end("a", error=False)
    assert "is full" in coordinator.halted
    assert checkpoint.exists()
    assert outcomes(tmp_path, tiny, url) == ([], 4)


@pytest.mark.parametrize("when", ["report", "end"])
def test_a_study_database_that_cannot_grow_loses_no_trial(coordinator, tmp_path, tiny, url, when):
    for name in "ab":
        Path(coordinator.suggest(name)["checkpoint"]).parent.mkdir(exist_ok=True)
    coordinator.report("a", report(2, 0.5, last=True))
    coordinator.end("a", error=False)
    last = report(2, 0.6, last=True)
    if when == "end":
        coordinator.report("b", last)
    with room_for(2000):
        if when == "report":
            assert coordinator.report("b", last)
        coordinator.end("b", error=False)
    assert "is full" in coordinator.halted
    assert outcomes(tmp_path, tiny, url) == ([(0, "COMPLETE")], 3)


def test_records_without_room_stop_the_search(coordinator, tmp_path, tiny, url):
    class Full(Recorder):
        def ended(self, *details):
            raise DiskFullError("unsent.jsonl: the disk is full")

    coordinator.callbacks = Callbacks([Full(), recorder := Recorder()])
    coordinator.suggest("a")
    coordinator.report("a", report(2, 0.5, last=True))
    coordinator.end("a", error=False)
    assert coordinator.halted == "unsent.jsonl: the disk is full"
    assert [e[0] for e in recorder.events] == ["started", "reported", "ended"]  # the others are told all the same
    assert outcomes(tmp_path, tiny, url) == ([(0, "COMPLETE")], 3)


def test_any_other_write_is_one_sentence_and_exit_code_two(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run_command(fail)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*the disk \(or its quota\) is full.*\n", said)


# Sizes in KiB at which a search of eight tiny trials runs out of room: while it opens its databases, in its trials
# (checkpoints, weights, records), and while it draws its figures.
SIZES = [300, 900, 1600, 2400, 3600, 4400]
SCRIPT = """
set -e
mkdir -p "$OUT"
mount -t tmpfs -o size=${SIZE}k tmpfs "$OUT"
set +e
$SEARCH > "$LOG.1" 2>&1; echo "first $?"
find "$OUT" -name '*.tmp' | wc -l
mount -o remount,size=300m "$OUT"
$SEARCH > "$LOG.2" 2>&1; echo "second $?"
cp "$OUT"/study.journal "$OUT"/*.db* "$KEEP"
ls "$OUT/trials" | wc -l
"""


# The search refuses to begin where its plan does not fit: here the disk has room then, and others fill it.
FILLED_LATER = """
from mixtune import cli
from mixtune.search import __main__ as search
from mixtune.profiling import forecast
forecast.check_disk = lambda *_: 2.0**40
cli.run_command(search.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_search_on_a_disk_that_fills_up_goes_on_once_there_is_room(tmp_path, space_file, tiny, size):
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    tiny |= {"trials": 8, "budget": {"epochs": 2}}
    (tmp_path / "search.py").write_text(FILLED_LATER)
    search = f"{sys.executable} {tmp_path}/search.py --space {space_file(tiny)} --out {tmp_path}/disk"
    places = {"OUT": f"{tmp_path}/disk", "LOG": f"{tmp_path}/log", "KEEP": str(tmp_path), "SEARCH": search}
    done = subprocess.run(
        [*namespace, "bash", "-c", SCRIPT],
        env=os.environ | places | {"SIZE": str(size), "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    first, second = ((tmp_path / f"log.{i}").read_text() for i in (1, 2))
    words = done.stdout.split()
    assert words[:2] == ["first", "2"], first + done.stderr
    (error,) = (line for line in first.splitlines() if line.startswith("error: "))
    assert "is full" in error
    assert "Traceback" not in first
    assert words[2] == "0"  # nothing half-written is left
    assert words[3:5] == ["second", "0"], second
    assert "Traceback" not in second
    assert_exact(tmp_path, 8)
