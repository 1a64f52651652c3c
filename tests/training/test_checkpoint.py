import dataclasses
import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from mixtune.errors import InputError
from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, published
from mixtune.runtime.process_group import SINGLE_PROCESS
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.checkpoint import Checkpoint, non_default_fields, read_checkpoint
from mixtune.training.loop import TrainingDivergedError
from mixtune.training.run import Evaluation, Run
from mixtune.training.step import Engine
from tests.ranks import CONTEXT
from tests.training import on_ranks
from tests.training.test_loop import config, regime, same, weights

pytestmark = pytest.mark.arithmetic


class KilledError(Exception):
    pass


def interrupted(run, path, at, every):
    """Train until step ``at`` and die there, as a kill would: nothing is tidied up."""
    real = run.task.batches

    def batches(*args, **kwargs):
        for n, batch in enumerate(real(*args, **kwargs)):
            if n == at:
                raise KilledError
            yield batch

    run.task.batches = batches
    with pytest.raises(KilledError):
        list(run.reports(path, every))


def facts(reports):
    return [(r.number, r.step, r.progress, r.loss, r.lr, r.curve) for r in reports]


@pytest.mark.parametrize("every", [0.0, 1e9])  # after every step, or at reports only
@pytest.mark.parametrize("at", [1, 4, 7])
def test_a_killed_and_resumed_run_is_the_unbroken_one_to_the_bit(tmp_path, every, at):
    unbroken = Run.prepare(regime(), config())
    expected = facts(unbroken.reports())
    path = tmp_path / "checkpoint.pt"
    interrupted(Run.prepare(regime(), config()), path, at, every)
    resumed = Run.prepare(regime(), config())
    got = facts(resumed.reports(path, every))
    assert same(weights(unbroken), weights(resumed))
    assert got == expected


def test_a_finished_run_gives_its_reports_and_weights_again_without_training(tmp_path):
    first, again = (Run.prepare(regime(), config()) for _ in range(2))
    expected = list(first.reports(tmp_path / "c.pt"))
    assert list(again.reports(tmp_path / "c.pt")) == expected
    assert same(weights(first), weights(again))


def test_a_run_killed_by_the_system_resumes(tmp_path):
    """kill -9 of a process that trains with a checkpoint after every step."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=on_ranks.tell, args=(there, tmp_path / "c.pt"), daemon=True)
    process.start()
    assert here.poll(120)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    unbroken, resumed = (on_ranks.prepare(SINGLE_PROCESS) for _ in range(2))
    assert facts(unbroken.reports()) == facts(resumed.reports(tmp_path / "c.pt"))
    assert same(weights(unbroken), weights(resumed))


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "checkpoint.pt"
    interrupted(Run.prepare(regime(), config()), path, 7, 1e9)
    return path


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_one_sentence(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"checkpoint\.pt is no whole mixtune checkpoint .*delete it to start over"):
        list(Run.prepare(regime(), config()).reports(written))


def test_a_file_that_would_execute_something_is_refused(written):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"version": 1, "evil": Evil()}, written)
    with pytest.raises(InputError, match="no whole mixtune checkpoint"):
        read_checkpoint(written)
    assert not Path("executed").exists()


def test_a_checkpoint_of_another_network_or_run_is_refused_and_stays(written):
    before = written.read_bytes()
    other = config(task=dataclasses.replace(config().task, network="cifar_resnet14"))
    with pytest.raises(InputError, match="is a checkpoint of cifar_resnet8, not of cifar_resnet14"):
        list(Run.prepare(regime(), other).reports(written))
    for run in (
        Run.prepare(regime("fixed"), config()),
        Run.prepare(regime(), config(seed=1)),
        Run.prepare(regime(), config(recipe=Recipe(lr=0.2))),
        Run.prepare(regime(), config(), "test"),
    ):
        with pytest.raises(InputError, match="another regime, recipe, task or seed"):
            list(run.reports(written))
    assert written.read_bytes() == before


def test_a_full_disk_leaves_the_earlier_checkpoint(written, monkeypatch):
    before = written.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mixtune.files.os.fsync", full)
    with pytest.raises(InputError, match=r"is full; what was written before is intact"):
        list(Run.prepare(regime(), config()).reports(written, 0.0))
    assert written.read_bytes() == before
    assert [p.name for p in written.parent.iterdir()] == [written.name]  # no litter


def test_diverged_weights_are_never_written(tmp_path):
    """The update of step 4 spoils them, whose loss is still a number; its checkpoint is due, and not written."""
    run, done = Run.prepare(regime(), config()), []
    compute = Engine.compute

    def spoiling(self, *arguments):
        loss = compute(self, *arguments)
        done.append(float(loss))
        if len(done) == 4:
            self.network.fc.bias.data[0] = float("inf")
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "compute", spoiling)
        with pytest.raises(TrainingDivergedError, match="weights' norm became inf by step 4 of"):
            list(run.reports(tmp_path / "c.pt", 0.0))
    assert np.isfinite(done).all()
    assert read_checkpoint(tmp_path / "c.pt")["step"] == 3
    unbroken, resumed = (Run.prepare(regime(), config()) for _ in range(2))
    assert facts(unbroken.reports()) == facts(resumed.reports(tmp_path / "c.pt"))


def test_a_run_with_everything_on_is_killed_and_resumed_to_the_bit(tmp_path):
    """Smoothing, an average, mixup, cutmix, dropout, drop path, frozen layers, restarts, and statistics by size."""
    recipe = Recipe(
        mixup=0.2, cutmix=1.0, ema=0.9, dropout=0.3, drop_path=0.3, nesterov=True, label_smoothing=0.1,
        schedule="sgdr", cycles=2, groups=2, group_decay=0.5, frozen=0.2,
    )  # fmt: skip
    task = dataclasses.replace(config().task, network="test_resnet", samples=100)
    settings = config(task=task, recipe=recipe, evaluate=Evaluation((32,), 2, Recalibration(images=16)))
    mixed = published("mixsize_d", BatchShape(32, 16), [32, 64], 32)
    unbroken, resumed = (Run.prepare(mixed, settings) for _ in range(2))
    assert any(isinstance(m, DropPath) for m in unbroken.network.modules())
    expected = facts(unbroken.reports())
    interrupted(Run.prepare(mixed, settings), tmp_path / "c.pt", 3, 0.0)
    assert facts(resumed.reports(tmp_path / "c.pt", 0.0)) == expected
    assert same(weights(unbroken), weights(resumed))


def test_weights_are_safetensors_that_name_their_network(tmp_path):
    from safetensors import safe_open

    run = Run.prepare(regime(), config())
    run.save_weights(tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        names = '["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]'
        assert file.metadata() == {"network": "cifar_resnet8", "classes": "10", "class_names": names}
        assert all(torch.equal(file.get_tensor(k), v) for k, v in run.network.state_dict().items())


def test_a_checkpoint_is_due_when_it_is_old(tmp_path):
    assert Checkpoint(tmp_path / "c", "n", "r", every=0.0).due
    assert not Checkpoint(tmp_path / "c", "n", "r", every=1e6).due


def test_a_switch_that_is_off_does_not_make_a_run_another_one():
    """What a run is called depends on the settings that are not at their defaults, whatever fields come later."""
    assert non_default_fields(Recipe()) == {}
    assert non_default_fields(Recipe(lr=0.2)) == {"lr": 0.2}
    assert non_default_fields(config())["task"] == {
        "dataset": "digits",
        "network": "cifar_resnet8",
        "samples": 200,
        "validation": 0.25,
    }
    assert Run.prepare(regime(), config()).identity == Run.prepare(regime(), config(recipe=Recipe(ema=0.0))).identity
    assert Run.prepare(regime(), config()).identity != Run.prepare(regime(), config(recipe=Recipe(ema=0.9))).identity


def test_images_that_cannot_be_read_end_the_run_and_not_its_checkpoint(tmp_path):
    """Broken after the first report; once it is put back, the run goes on to the weights of an unbroken one."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 6, 8, 8, 3), np.uint8)
    for p, part in enumerate(("train", "val")):
        for c in (0, 1):
            (tmp_path / part / str(c)).mkdir(parents=True)
            for i in range(6):
                Image.fromarray(pixels[p, c, i]).save(tmp_path / part / str(c) / f"{i}.png")
    task = ClassificationConfig("folder", "cifar_resnet8", str(tmp_path), validation=0.34, workers=0)
    small = config(task=task, budget=Budget(4), evaluate=Evaluation((8,), 2))
    fixed = published("fixed", BatchShape(8, 4), [8], 4)

    def prepared():
        return Run.prepare(fixed, small)

    unbroken = prepared()
    list(unbroken.reports())
    run, kept = prepared(), tmp_path / "c.pt"
    reports = run.reports(kept)
    next(reports)
    before = kept.read_bytes()
    images = [Path(path) for path in run.task.train_source.paths]
    good = [image.read_bytes() for image in images]
    for image in images:  # a single one would be replaced by another
        image.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"task\.data: "):
        list(reports)
    assert kept.read_bytes() == before
    for image, content in zip(images, good, strict=True):
        image.write_bytes(content)
    again = prepared()
    list(again.reports(kept))
    assert same(weights(again), weights(unbroken))
