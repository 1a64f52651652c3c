"""What a worker reports when its trial meets a fault: the code that workers run, without Ray around it."""

import errno

import pytest
import torch

from mixtune.config import parse, to_plain
from mixtune.data.file_issues import FileIssues
from mixtune.execution import ray_tune
from mixtune.execution.position import POSITION
from mixtune.search.space import Space
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.execution.published_trial import published_config

pytestmark = pytest.mark.arithmetic


@pytest.fixture
def trial(tiny, tmp_path, monkeypatch):
    """Runs a tiny trial; returns what it reported."""
    space = parse(tiny, Space, "f")
    config = published_config(space, tmp_path)
    told = []
    monkeypatch.setattr(ray_tune.tune, "report", told.append)

    def run():
        ray_tune.run_trial(config)
        return told

    run.config = config
    run.folder = tmp_path / "trials" / "0000"
    run.checkpoint = tmp_path / "checkpoints" / "0000-2.pt"
    return run


def fail_at(monkeypatch, step, error):
    """Training step ``step`` (from 1) raises ``error``."""
    before, done = Engine.step, []

    def broken(self, *arguments):
        done.append(1)
        if len(done) == step:
            raise error
        return before(self, *arguments)

    monkeypatch.setattr(Engine, "step", broken)


def test_what_a_trial_with_folds_keeps_was_not_trained_on_the_images_that_judge_it(trial, tiny, capsys):
    from mixtune import evaluate
    from mixtune.regime.files import regime_from_dict, save_regime

    training = to_plain(parse(tiny | {"folds": 2}, Space, "f").training(1))
    stages = [{"share": 1.0, "fold": 0, "step": 2}, {"share": 1.0, "fold": 1, "step": 3}]
    trial.config |= {"training": training, "stages": stages}
    first, last = (r for r in trial() if r["progress"] == 1)
    assert (first["fold"], last["fold"]) == (0, 1)
    save_regime(trial.folder / "regime.yaml", regime_from_dict(trial.config["regime"], "f")[0], training)
    evaluate.main(["--weights", str(trial.folder)])
    said = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert {int(row[0]): row[1] for row in said} == {r["S"]: f"{100 * r['top1']:.2f}" for r in first["curve"]}


def test_a_trial_reports_and_leaves_weights_and_position(trial):
    told = trial()
    assert [r["number"] for r in told] == [1, 2]
    assert [r["last"] for r in told] == [False, True]
    assert (trial.folder / "weights.safetensors").exists()
    assert (trial.folder / POSITION).read_text().startswith("after the last of ")


def test_what_a_trial_says_comes_with_its_reports(trial, monkeypatch):
    found = FileIssues(unreadable={"a.jpg": "truncated"})
    monkeypatch.setattr("mixtune.tasks.base.FileIssues", lambda: found)
    first, last = trial()
    assert first["said"] == ["steps are issued one by one: on a CPU there is nothing to gain by capturing them"]
    assert last["said"] == found.lines()
    assert last["findings"] == [("unreadable", 1)]


def test_out_of_device_memory_names_the_shape_and_what_would_fit(trial, monkeypatch):
    fail_at(monkeypatch, 3, torch.OutOfMemoryError("CUDA out of memory"))
    (told,) = trial()
    assert "the device's memory does not hold a step of shape" in told["failed"]
    assert "step 3 of" in told["failed"]
    assert "lower base.B" in told["failed"]


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory"),
        (torch.AcceleratorError("CUDA error: out of memory"), "memory"),
        (MemoryError("no memory for a batch"), "memory"),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), "machine"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), "machine"),
        (OSError(errno.EIO, "Input/output error"), "machine"),
        (ValueError("a bug"), "unknown"),
    ],
)
def test_whose_fault_it_was_is_told(trial, monkeypatch, error, cause):
    fail_at(monkeypatch, 2, error)
    (told,) = trial()
    assert told["cause"] == cause


def test_a_loss_that_is_not_finite_is_the_regimes_fault(trial):
    trial.config["training"]["recipe"]["lr"] = 1e30
    *_, told = trial()
    assert "not finite" in told["failed"] or "became" in told["failed"]
    assert told["cause"] == "regime"


@pytest.mark.parametrize("error", [MemoryError("no memory for a batch"), RuntimeError("a kernel failed")])
def test_any_other_fault_is_told_with_the_step_it_was_at(trial, monkeypatch, error):
    fail_at(monkeypatch, 4, error)
    (told,) = trial()
    assert told["failed"].startswith(f"{type(error).__name__}: {error}, at step 4 of ")
    assert ", shape " in told["failed"]
    assert "Traceback" in (trial.folder / "error.txt").read_text()


def test_a_password_in_an_error_is_not_told(trial, monkeypatch):
    fail_at(monkeypatch, 1, RuntimeError("cannot reach http://me:hunter2@host"))
    (told,) = trial()
    assert "hunter2" not in told["failed"] + (trial.folder / "error.txt").read_text()


def test_weights_without_room_are_no_failure_and_the_checkpoint_is_there(trial, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_weights", lambda self, path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space")))
        told = list(trial())
    assert [set(r) for r in told][-1] == {"no_room"}
    assert [r["number"] for r in told[:-1]] == [1]
    assert trial.checkpoint.exists()
    again = trial()[len(told) :]  # once there is room: nothing is trained again
    assert [r["number"] for r in again] == [1, 2]
    assert again[0]["score"] == told[0]["score"]


def test_a_checkpoint_without_room_is_no_failure(trial, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mixtune.files.os.fsync", full)
    (told,) = trial()
    assert "0000-2.pt: the disk (or its quota) is full" in told["no_room"]
    assert not list(trial.checkpoint.parent.iterdir())
