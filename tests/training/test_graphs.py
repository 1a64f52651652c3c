"""Captured steps against steps issued one by one: the same numbers, to the bit."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from mixtune.regime import BatchShape, Budget
from mixtune.training.amoeba import AmoebaNet
from mixtune.training.engine import Engine
from mixtune.training.graphs import CudaRecorder
from mixtune.training.learning.distillation import Distillation
from mixtune.training.learning.recipe import Recipe
from mixtune.training.run import Run
from tests.training.tape import Tape, TapeRecorder
from tests.training.test_loop import config, regime, same

EVERYTHING = Recipe(mixup=0.2, cutmix=1.0, ema=0.95, label_smoothing=0.1, schedule="step", groups=2, frozen=0.1)


def trained(recipe, recorder, steps=None, device="cpu", epochs=2.0, start=0, state=None, network=None):
    """The engine, its losses and its state after ``steps`` steps of a mixture of several shapes."""
    run = Run.prepare(regime(), config(recipe=recipe, budget=Budget(epochs), device=device))
    network = run.network if network is None else network.to(device)
    network.train()
    engine = Engine(run.task, network, run.recipe, 0, run.teacher, recorder)
    if state is not None:
        engine.load_state_dict(state)
    progress = run.schedule.progress
    rates = recipe.learning_rates(progress)
    said = []
    engine.prepare(run.schedule, progress, start, said.append)
    losses = []
    steps = steps or len(run.schedule)
    for step, batch in zip(range(start, steps), engine.batches(run.schedule, 0, start), strict=False):
        shape = run.schedule.shapes[run.schedule.index[step]]
        losses.append(engine.train_on(batch, float(rates[step]), step, float(progress[step]), shape).clone())
    return engine, torch.stack(losses).cpu(), said


def state_of(engine):
    return {i: t.detach().cpu().clone() for i, t in enumerate(engine.tensors())}


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(smoothing=False, momentum=0.0, weight_decay=0.0),
        Recipe(nesterov=True, mixup=0.4),
        Recipe(cutmix=1.0, dropout=0.3),
        Recipe(ema=0.9),
        EVERYTHING,
    ],
)
def test_replayed_steps_are_those_issued_one_by_one_to_the_bit(recipe):
    one, losses, _ = trained(recipe, "off")
    two, replayed, said = trained(recipe, TapeRecorder())
    assert said[0].startswith("whole steps are captured and replayed")
    assert torch.equal(losses, replayed)
    assert same(state_of(one), state_of(two))


def test_two_hundred_replayed_steps_with_everything_on_are_the_same_to_the_bit():
    one, losses, _ = trained(EVERYTHING, "off", epochs=45)
    two, replayed, _ = trained(EVERYTHING, TapeRecorder(), epochs=45)
    assert len(losses) >= 200
    assert torch.equal(losses, replayed)
    assert same(state_of(one), state_of(two))


def test_a_teacher_is_captured_with_the_step(tmp_path):
    Run.prepare(regime(), config()).save_weights(tmp_path / "t.safetensors")
    recipe = Recipe(distill=Distillation("cifar_resnet8", str(tmp_path / "t.safetensors")))
    (_, losses, _), (_, replayed, _) = (trained(recipe, r) for r in ("off", TapeRecorder()))
    assert torch.equal(losses, replayed)


def amoeba(drop_path):
    """A small one, whose drop path grows through the run."""
    torch.manual_seed(0)
    return AmoebaNet(3, 4, 10, drop_path=drop_path)


def test_drop_path_that_grows_is_captured_with_the_step():
    engines = [trained(Recipe(), r, network=amoeba(0.6)) for r in ("off", TapeRecorder())]
    (one, losses, _), (two, replayed, _) = engines
    assert torch.equal(losses, replayed)
    assert same(state_of(one), state_of(two))
    assert one.network.progress > 0.5
    _, undropped, _ = trained(Recipe(), "off", network=amoeba(0.0))
    assert torch.equal(losses[0], undropped[0])  # nothing is dropped at the start
    assert not torch.equal(losses, undropped)


def test_captured_dropout_draws_from_a_generator_of_its_own():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    engine, _, _ = trained(Recipe(dropout=0.5), TapeRecorder())
    assert torch.equal(torch.get_rng_state(), before)
    assert engine.generator is engine._recorder.generator


def test_graphs_go_with_their_engine_and_not_at_the_next_garbage_collection():
    gc.collect()
    gc.disable()
    try:
        engine, _, _ = trained(EVERYTHING, TapeRecorder(), steps=2)
        first = weakref.ref(engine.graphs)
        run = Run.prepare(regime(), config())
        engine.prepare(run.schedule, run.schedule.progress, 0, lambda _: None)  # again, as timing does
        assert first() is None
        parts = [weakref.ref(x) for x in (engine, engine.network, engine.graphs)]
        del engine
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("back", [False, True])
def test_a_checkpoint_of_captured_steps_goes_on_without_them_and_back(back):
    """As from a GPU to a CPU: the fused optimiser with a rate on the device, and the plain one with a number."""
    recorders = [TapeRecorder, lambda: None]
    _, losses, _ = trained(Recipe(), "off")
    half = len(losses) // 2
    first, _, _ = trained(Recipe(), recorders[back](), steps=half)
    second, rest, _ = trained(Recipe(), recorders[not back](), start=half, state=first.state_dict())
    assert torch.allclose(losses[half:], rest, rtol=1e-4)
    group = second.optimizer.param_groups[0]
    assert (bool(group["fused"]), bool(group["foreach"])) == (back, not back)
    assert isinstance(group["lr"], torch.Tensor) == back


def test_capturing_leaves_no_trace():
    run = Run.prepare(regime(), config(recipe=EVERYTHING))
    run.network.train()
    engine = Engine(run.task, run.network, EVERYTHING, 0, recorder=TapeRecorder())
    torch.manual_seed(7)
    before, random = state_of(engine), torch.get_rng_state()
    engine.prepare(run.schedule, run.schedule.progress, 0, lambda _: None)
    assert same(before, state_of(engine))
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in run.network.parameters())


def test_every_shape_is_captured_once_and_before_the_first_step():
    run = Run.prepare(regime(), config())
    run.network.train()
    recorder = TapeRecorder()
    engine = Engine(run.task, run.network, run.recipe, 0, recorder=recorder)
    engine.prepare(run.schedule, run.schedule.progress, 0, lambda _: None)
    assert len(recorder.tapes) == len(set(run.schedule.index.tolist())) > 1
    drawn = next(engine.batches(run.schedule, 0, 0))
    with pytest.raises(KeyError):  # never computed in some other way in silence
        engine.train_on(dataclasses.replace(drawn, shape=BatchShape(8, 5)), 0.1, 0, 1.0, BatchShape(8, 5))


def test_resuming_with_captured_steps_gives_the_unbroken_run():
    whole, losses, _ = trained(EVERYTHING, TapeRecorder())
    half = len(losses) // 2
    first, _, _ = trained(EVERYTHING, TapeRecorder(), steps=half)
    second, rest, _ = trained(EVERYTHING, TapeRecorder(), start=half, state=first.state_dict())
    assert torch.equal(losses[half:], rest)
    assert same(state_of(whole), state_of(second))


def test_the_stand_in_refuses_what_cuda_would_refuse():
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="cannot be captured"), Tape():
        float(x.sum())


def test_the_stand_in_keeps_the_numbers_of_the_recording():
    x, y, lr = torch.ones(3), torch.zeros(3), 0.5
    with Tape() as tape:
        y.add_(x, alpha=lr)
    lr = 2.0
    x.fill_(3.0)
    tape.replay()
    assert y.tolist() == [2.0, 2.0, 2.0]  # 0.5 + 3 * 0.5


def test_why_steps_are_not_captured_is_said():
    assert "CPU" in trained(Recipe(), None, steps=1)[2][0]
    assert "switched off" in trained(Recipe(), "off", steps=1)[2][0]


@pytest.fixture
def deterministic():
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("recipe", "drop_path"),
    [(Recipe(), None), (EVERYTHING, None), (Recipe(dropout=0.3, nesterov=True), None), (Recipe(), 0.6)],
)
def test_cuda_graphs_give_what_single_kernels_give(recipe, drop_path, deterministic):
    """More than 200 steps, several shapes, learning rates that change: losses, weights, statistics and averages."""
    networks = [None if drop_path is None else amoeba(drop_path) for _ in range(2)]
    one, losses, _ = trained(recipe, "off", device="cuda", epochs=45, network=networks[0])
    two, replayed, _ = trained(recipe, None, device="cuda", epochs=45, network=networks[1])
    assert len(losses) >= 200
    assert isinstance(two._recorder, CudaRecorder)
    assert torch.equal(losses, replayed)
    assert same(state_of(one), state_of(two))


@pytest.mark.gpu
def test_capturing_on_a_gpu_leaves_no_trace(deterministic):
    run = Run.prepare(regime(), config(recipe=EVERYTHING, device="cuda"))
    run.network.train()
    engine = Engine(run.task, run.network, EVERYTHING, 0)
    before, random = state_of(engine), torch.cuda.get_rng_state()
    for _ in range(2):  # again, as timing does: the first graphs end and their memory with them
        engine.prepare(run.schedule, run.schedule.progress, 0, lambda _: None)
        assert same(before, state_of(engine))
        assert torch.equal(random, torch.cuda.get_rng_state())


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes(tmp_path):
    from tests.training.test_checkpoint import interrupted

    unbroken = Run.prepare(regime(), config(device="cuda"))
    reports = list(unbroken.reports())
    broken = Run.prepare(regime(), config(device="cuda"))
    real = broken.task.drawn
    broken.task.batches = lambda *a: real(*a)  # what the graphs take, so that it can be cut off
    broken.task.drawn = lambda *a: broken.task.batches(*a)
    interrupted(broken, tmp_path / "c.pt", 5, 0.0)
    resumed = list(Run.prepare(regime(), config(device="cuda")).reports(tmp_path / "c.pt"))
    assert [r.step for r in resumed] == [r.step for r in reports]
    assert np.allclose([r.loss for r in resumed], [r.loss for r in reports], rtol=0.05)
