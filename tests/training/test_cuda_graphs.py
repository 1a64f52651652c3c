"""Captured steps against steps issued one by one: the same numbers, to the bit."""

import contextlib
import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from mixtune.models.amoebanet import AmoebaNet
from mixtune.optim.distillation import Distillation
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, published
from mixtune.runtime.memory import PeakMemory
from mixtune.runtime.oom import OutOfMemoryError
from mixtune.training.cuda_graphs import CudaGraphRecorder, NotCapturableError
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.tape import Tape, TapeRecorder
from tests.training.test_loop import config, regime, same

pytestmark = pytest.mark.arithmetic

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
        losses.append(engine.step(batch, float(rates[step]), step, float(progress[step]), shape).clone())
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
        engine.step(dataclasses.replace(drawn, shape=BatchShape(8, 5)), 0.1, 0, 1.0, BatchShape(8, 5))


def test_resuming_with_captured_steps_gives_the_unbroken_run():
    whole, losses, _ = trained(EVERYTHING, TapeRecorder())
    half = len(losses) // 2
    first, _, _ = trained(EVERYTHING, TapeRecorder(), steps=half)
    second, rest, _ = trained(EVERYTHING, TapeRecorder(), start=half, state=first.state_dict())
    assert torch.equal(losses[half:], rest)
    assert same(state_of(whole), state_of(second))


def test_the_stand_in_refuses_what_cuda_would_refuse():
    x = torch.ones(3)
    with pytest.raises(NotCapturableError, match="cannot be captured"), Tape():
        float(x.sum())


def test_the_stand_in_keeps_the_numbers_of_the_recording():
    x, y, lr = torch.ones(3), torch.zeros(3), 0.5
    with Tape() as tape:
        y.add_(x, alpha=lr)
    lr = 2.0
    x.fill_(3.0)
    tape.replay()
    assert y.tolist() == [2.0, 2.0, 2.0]  # 0.5 + 3 * 0.5


class Reading(torch.nn.Module):
    """Does in its forward what cannot be captured: its result decides what it computes."""

    def __init__(self):
        super().__init__()
        self.bn, self.dropout, self.fc = torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.5), torch.nn.Linear(3, 10)

    def forward(self, x):
        y = self.dropout(self.bn(x).mean((2, 3)))
        return self.fc(y) if float(y.detach().abs().mean()) > 0 else self.fc(-y)


@pytest.fixture
def reading():
    """Several that are alike."""

    def make():
        torch.manual_seed(0)
        return Reading()

    return make


def test_steps_that_read_back_are_issued_one_by_one_and_that_is_said(reading):
    """What was captured before they were found out leaves no trace."""
    one, losses, _ = trained(EVERYTHING, "off", network=reading())
    two, others, said = trained(EVERYTHING, TapeRecorder(), network=reading())
    assert said[0].startswith("steps are issued one by one: aten._local_scalar_dense.default reads from the device")
    assert two.graphs is None
    assert torch.equal(losses, others)
    assert same(state_of(one), state_of(two))


class Cuda:
    """Stands for torch.cuda: notes what is asked of it, in order."""

    def __init__(self):
        self.log, self.mode, self.default_generators = [], 0, (self.Generator("default"),)
        self.here, self.side = self.Stream(self, "here"), self.Stream(self, "side")

    class Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def wait_stream(self, other):
            self.cuda.log.append(f"{self.name} waits for {other.name}")

    class Generator:
        def __init__(self, state):
            self.state = state

        def graphsafe_get_state(self):
            return Cuda.Generator(self.state)

        def graphsafe_set_state(self, other):
            self.state = other.state

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(f"on {stream.name}")
        yield
        self.log.append(f"off {stream.name}")

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        self.log.append(f"capture on {stream.name} into {pool}, {capture_error_mode}")
        yield

    def set_sync_debug_mode(self, mode):
        self.mode = {"error": 2}.get(mode, mode)


@pytest.fixture
def cuda(monkeypatch):
    made = Cuda()
    for name in ("default_generators", "stream", "graph", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, getattr(made, name))
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: made.mode)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: made.here)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: made.here)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: made.side)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda self: "again"})())
    monkeypatch.setattr(torch, "Generator", lambda _: Cuda.Generator("trial"))
    return made


def recorder_of():
    recorder = CudaGraphRecorder(torch.device("cuda"))
    recorder.begin()
    return recorder


def test_work_is_warmed_up_and_captured_on_one_stream_with_the_trials_random_numbers(cuda):
    recorder, seen = recorder_of(), []

    def work():
        seen.append((cuda.default_generators[0].state, cuda.mode, gc.isenabled()))

    recorder.warm_up(work)
    assert seen == [("trial", 0, True), ("trial", 0, True), ("trial", 2, True)]  # 2: waiting is an error
    assert cuda.log == ["side waits for here", "on side", "off side", "here waits for side"]
    cuda.log.clear()
    again = recorder.record(work)
    assert seen[3:] == [("trial", 0, False)]
    assert cuda.log == ["on side", "capture on side into pool, thread_local", "off side"]
    assert (cuda.default_generators[0].state, cuda.mode, gc.isenabled(), again()) == ("default", 0, True, "again")


@pytest.mark.parametrize(
    ("said", "kind"),
    [("called a synchronizing CUDA operation", NotCapturableError), ("illegal memory access", RuntimeError)],
)
def test_a_warm_up_that_fails_leaves_the_process_as_it_was(said, kind, cuda):
    def work():
        if cuda.mode:
            raise RuntimeError(said)

    with pytest.raises(kind, match=said) as found:
        recorder_of().warm_up(work)
    assert type(found.value) is kind
    assert cuda.log[-1] == "here waits for side"  # what is put back must not overtake what was done
    assert (cuda.default_generators[0].state, cuda.mode) == ("default", 0)


def test_why_steps_are_not_captured_is_said():
    assert "CPU" in trained(Recipe(), None, steps=1)[2][0]
    assert "switched off" in trained(Recipe(), "off", steps=1)[2][0]


@pytest.fixture
def deterministic():
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [Recipe(), EVERYTHING, Recipe(dropout=0.3, nesterov=True)])
def test_cuda_graphs_give_what_single_kernels_give(recipe, deterministic):
    """More than 200 steps, several shapes, learning rates that change: losses, weights, statistics and averages."""
    one, losses, _ = trained(recipe, "off", device="cuda", epochs=45)
    two, replayed, said = trained(recipe, None, device="cuda", epochs=45)
    assert said[0].startswith("whole steps are captured and replayed"), said
    assert len(losses) >= 200
    first = int((losses != replayed).nonzero()[0]) if not torch.equal(losses, replayed) else None
    assert first is None, f"the losses differ from step {first} on: {losses[first]} and {replayed[first]}"
    assert same(state_of(one), state_of(two))


@pytest.mark.gpu
def test_drop_path_that_grows_is_captured_on_a_gpu(deterministic):
    """Its pools add up gradients in any order, so that two runs of single kernels differ too, after the first step."""
    runs = [trained(Recipe(), r, device="cuda", epochs=4, network=amoeba(0.6)) for r in ("off", "off", None)]
    (_, one, _), (_, again, _), (captured, replayed, said) = runs
    assert said[0].startswith("whole steps are captured and replayed"), said
    assert one[0] == replayed[0]
    noise = (one - again).abs().mean()
    assert (one - replayed).abs().mean() <= 5 * noise + 0.02 * one.mean()
    assert captured.network.progress > 0.5


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
def test_steps_that_read_back_are_issued_one_by_one_on_a_gpu(reading, deterministic):
    """And the next trial of the process is captured as ever."""
    _, losses, _ = trained(Recipe(), "off", device="cuda", network=reading())
    _, others, said = trained(Recipe(), None, device="cuda", network=reading())
    assert said[0].startswith("steps are issued one by one: a step waits for the device"), said
    assert torch.equal(losses, others)
    assert trained(Recipe(), None, device="cuda")[2][0].startswith("whole steps are captured")


@pytest.fixture
def little_memory():
    """This process may have this many bytes of the GPU more than it has."""

    def leave(more):
        torch.cuda.empty_cache()
        has = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((has + more) / torch.cuda.get_device_properties(0).total_memory)

    yield leave
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("when", ["warm_up", "record"])
def test_a_gpu_that_is_too_small_is_named_and_the_next_trial_goes_on(when, little_memory, monkeypatch):
    large = published("fixed", BatchShape(32, 140), [32], 4)

    def short(self, work):
        little_memory(16 * 2**20)
        return real(self, work)

    real = getattr(CudaGraphRecorder, when)
    monkeypatch.setattr(CudaGraphRecorder, when, short)
    with pytest.raises(OutOfMemoryError, match="does not hold a step of shape 32x140"):
        list(Run.prepare(large, config(device="cuda", budget=Budget(20))).reports())
    monkeypatch.undo()
    gc.collect()
    little_memory(2 * 2**30)
    said = []
    list(Run.prepare(large, config(device="cuda", budget=Budget(20))).reports(say=said.append))
    assert said[0].startswith("whole steps are captured and replayed"), said


@pytest.mark.gpu
def test_the_shapes_of_a_trial_share_the_memory_of_the_largest():
    """Graphs of one trial never run at the same time: four of them take hardly more than one of as many pixels."""
    taken = []
    for name, shapes in (("fixed", 1), ("mixsize_d", 4)):
        large = published(name, BatchShape(32, 64), [32], 4)
        run = Run.prepare(large, config(device="cuda", budget=Budget(45)))
        assert len(set(run.schedule.index.tolist())) == shapes
        run.network.train()
        engine = Engine(run.task, run.network, Recipe(), 0)
        watch, before = PeakMemory(engine.device), torch.cuda.memory_reserved()
        engine.prepare(run.schedule, run.schedule.progress, 0, lambda _: None)
        taken.append(watch.bytes() - before)
        del engine, run
    assert taken[1] < 1.5 * taken[0] + 32 * 2**20, taken


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes(tmp_path, deterministic):
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
    assert np.allclose([r.loss for r in resumed], [r.loss for r in reports], rtol=1e-4)
