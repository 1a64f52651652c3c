import dataclasses
from collections import Counter, deque

import pytest
import torch

from mixtune.models.registry import create_network
from mixtune.regime import BatchShape, Budget, Schedule, published
from mixtune.runtime.device import CudaTimer
from mixtune.training import torch_compile
from mixtune.training.run import Run
from mixtune.training.step import Engine
from mixtune.training.torch_compile import MEASURED_STEPS, Compiler, compile_network, count_step_kinds
from tests.training.test_loop import config, regime

pytestmark = pytest.mark.arithmetic

A, B, C = BatchShape(8, 32), BatchShape(16, 8), BatchShape(32, 2)


class World:
    """A device whose steps take as long as they are said to, eager and compiled, and which counts who waits for it."""

    def __init__(self, eager, fast, compile_seconds, left, fails=(), share=lambda load: load()):
        self.now, self.said, self.compiles, self.fails, self.waits = 0.0, [], [], fails, 0
        self.seconds_of = {False: eager, True: fast}
        self.compile_seconds = compile_seconds
        self.kinds = {(shape, False): n for shape, n in left.items()}
        self.compiler = Compiler(torch.nn.Identity(), self.kinds, self.said.append, self, share, lambda n: self.fast)

    def mark(self):
        return self.now

    def seconds(self, began, ended):
        self.waits += 1
        return ended - began

    def fast(self, x):
        raise AssertionError("only told from the network here")

    def step(self, shape):
        """Whether it was compiled."""
        fast = False

        def work():
            nonlocal fast
            fast = self.compiler.forward((shape, False)) == self.fast
            if fast and shape in self.fails:
                raise RuntimeError("graph break\nmore")
            if fast and shape not in self.compiles:
                self.compiles.append(shape)
                self.now += self.compile_seconds
            self.now += self.seconds_of[fast]
            return torch.zeros(())

        self.compiler.step((shape, False), work)
        return fast

    def run(self, order):
        return [self.step(shape) for shape in order]


def order_of(left):
    """All shapes in turn, as often as they come."""
    left = dict(left)
    while any(left.values()):
        for shape in left:
            if left[shape]:
                left[shape] -= 1
                yield shape


def phases_of(left):
    """One shape after the other."""
    for shape, n in left.items():
        yield from [shape] * n


def test_a_short_run_is_not_compiled_and_says_why():
    world = World(0.05, 0.03, 45, {A: 300, B: 300})
    assert not any(world.run(order_of({A: 300, B: 300})))
    assert world.compiles == []
    assert world.said == [
        "steps are not compiled: compiling 8x32, 16x8 would cost about 120 s to save about 7 s",
    ]


def test_a_long_run_is_compiled_where_each_shape_earns_it_back():
    left = {A: 40_000, B: 20_000, C: 100}
    world = World(0.055, 0.0375, 45, left)
    fast = world.run(order_of(left))
    assert sorted(world.compiles) == [A, B]  # C would save 2 s for 45 s
    assert sum(fast) > 59_900
    assert world.said == [
        "steps are compiled: 8x32, 16x8 (45 s to compile, 1.47 times as fast); not worth it: 32x2",
    ]
    assert world.waits <= 3 * (MEASURED_STEPS + 1) + 2 * (MEASURED_STEPS + 2)  # reads of five sets of marks


def test_before_anything_is_known_one_shape_is_tried_alone():
    left = {A: 40_000, B: 40_000, C: 40_000}
    world = World(0.05, 0.06, 45, left)
    fast = world.run(order_of(left))
    assert world.compiles == [A]
    assert not any(fast[100:])
    assert world.said == [
        "steps are not compiled: 8x32 (45 s to compile, 0.83 times as fast); not worth it: 16x8, 32x2",
    ]


@pytest.mark.parametrize(
    ("cost", "compiles"),
    [(45, [A, B]), (1, [A, C, B])],  # as expected; and less than expected, so that C pays after all
)
def test_what_was_measured_decides_about_the_others(cost, compiles):
    left = {A: 40_000, B: 20_000, C: 2_000}
    world = World(0.055, 0.0375, cost, left)
    world.run(order_of(left))
    assert sorted(world.compiles) == sorted(compiles)


def test_each_phase_is_decided_when_it_is_met():
    """A regime that grows: what is to come later is neither waited for nor spoken of, and what is past neither."""
    left = {A: 20_000, C: 100, B: 20_000}
    world = World(0.055, 0.0375, 45, left)
    fast = world.run(phases_of(left))
    assert world.compiles == [A, B]
    assert [fast.index(True), fast[20_100:].index(True)] == [MEASURED_STEPS + 1] * 2
    assert sum(fast) == 2 * (20_000 - MEASURED_STEPS - 1)
    assert world.said == [
        "steps are compiled: 8x32 (45 s to compile, 1.47 times as fast)",
        "steps are not compiled: compiling 32x2 would cost about 45 s to save about 2 s",
        "steps are compiled: 16x8 (45 s to compile, 1.47 times as fast)",
    ]


@pytest.mark.parametrize("name", ["gradual", "stepwise", "mixsize_b", "multiscale"])
def test_a_long_run_of_a_published_regime_compiles_nearly_all_of_its_steps(name):
    """10 epochs of ImageNet on ResNet-50, at about what its steps take."""
    grown = published(name, BatchShape(224, 256), (96, 128, 160, 192, 224, 256, 288), 32)
    schedule = Schedule.build(grown, Budget(10), 1_255_544, 0)
    left = Counter(schedule)
    world = World(0.22, 0.15, 45, left)
    fast = world.run(schedule)
    assert sorted(world.compiles) == sorted(left)
    assert len(fast) - sum(fast) < 20 * len(left)
    assert world.waits <= len(left) * (2 * MEASURED_STEPS + 3)
    assert world.said
    assert all(text.startswith("steps are compiled: ") for text in world.said)


def test_a_resumed_run_knows_only_what_is_left():
    grown = published("stepwise", BatchShape(16, 16), (8, 16), 4)
    schedule = Schedule.build(grown, Budget(10), 1000, 0)
    progress, start = schedule.progress, len(schedule) // 4
    left = count_step_kinds(schedule, progress, start, 0.5)
    assert left.total() == len(schedule) - start
    assert sum(n for (_, frozen), n in left.items() if frozen) == (progress[start:] < 0.5).sum() > 0
    assert count_step_kinds(schedule, progress, 0, 0.0) == Counter((shape, False) for shape in schedule)


def test_frozen_layers_make_another_kind_of_step():
    """They would be compiled anew when they are free: their steps are timed on their own."""
    said, world = [], World(0.05, 0.03, 45, {})
    compiler = Compiler(torch.nn.Identity(), {(A, True): 50, (A, False): 50}, said.append, world)
    for frozen in (True, False):
        for _ in range(50):
            compiler.step((A, frozen), lambda: torch.zeros(()))
    assert said == [
        "steps are not compiled: compiling 8x32 with frozen layers would cost about 60 s to save about 0 s",
        "steps are not compiled: compiling 8x32 would cost about 60 s to save about 0 s",
    ]


def test_a_network_that_cannot_be_compiled_trains_on_and_says_so():
    world = World(0.05, 0.03, 45, {A: 40_000, B: 40_000}, fails=(A, B))
    assert not any(world.run(order_of({A: 100, B: 100}))[20:])
    assert world.said == [
        "steps are not compiled: 8x32 could not be (RuntimeError: graph break); not worth it: 16x8",
    ]


def test_a_later_shape_that_cannot_be_compiled_is_issued_step_by_step():
    left = {A: 40_000, B: 40_000}
    world = World(0.05, 0.03, 45, left, fails=(B,))
    fast = world.run(phases_of(left))
    assert not any(fast[40_100:])
    assert world.said == [
        "steps are compiled: 8x32 (45 s to compile, 1.67 times as fast)",
        "steps are not compiled: 16x8 could not be (RuntimeError: graph break)",
    ]


def test_an_error_of_the_step_itself_is_raised():
    compiler = World(0.05, 0.03, 45, {A: 3}).compiler

    def broken():
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        compiler.step((A, False), broken)


def test_every_rank_does_as_the_first_one_does_at_the_same_step():
    """The second one's own watch would have it otherwise: its steps seem to take no time."""
    left = {A: 20_000, C: 100, B: 20_000}
    told = deque()

    def heard(load):
        return told.popleft()

    def say(load):
        told.append(load())
        return told[-1]

    first = World(0.055, 0.0375, 45, left, share=say)
    second = World(0.0, 0.0, 0, left, share=heard)
    for shape in order_of(left):
        assert first.step(shape) == second.step(shape)
        assert not told
    assert first.compiles == second.compiles == [A, B]
    assert second.said == []


def test_events_wait_only_where_their_seconds_are_asked_for(monkeypatch):
    """With stand-ins for CUDA's events, which tell milliseconds and only of events that have come."""
    device, now, waited = torch.device("cuda", 0), iter((1000.0, 1250.0)), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            self.at = next(now)
            assert stream == f"stream of {device}"

        def synchronize(self):
            waited.append(self)

        def elapsed_time(self, other):
            assert other in waited
            return other.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda of: f"stream of {of}")
    events = CudaTimer(device)
    marks = events.mark(), events.mark()
    assert not waited
    assert events.seconds(*marks) == 0.25


@pytest.mark.gpu
def test_a_gpu_times_its_steps_and_what_compiling_them_gives(monkeypatch):
    monkeypatch.setattr(torch_compile, "EXPECTED_COMPILE_SECONDS", 0.0)  # one is tried, however short the run
    run = Run.prepare(regime(), config(device="cuda", budget=Budget(45)))
    run.network.train()
    engine, said = Engine(run.task, run.network, run.recipe, 0, recorder="off"), []
    engine.prepare(run.schedule, run.schedule.progress, 0, said.append)
    for step, (shape, batch) in enumerate(zip(run.schedule, engine.batches(run.schedule, 0, 0), strict=True)):
        loss = engine.step(batch, 0.05, step, 1.0, shape)
    assert torch.isfinite(loss)
    assert "s to compile" in said[1]
    compiler = engine._compiler
    assert all(seconds > 0 for seconds in compiler._eager_seconds.values())
    assert all(cost > 1 for cost in compiler._compile_seconds.values())


def test_what_is_compiled_shares_weights_and_statistics_and_gives_the_same():
    """Traced as for compiling, with torch's reference backend: no generated code, the same numbers."""
    one, two = (create_network("cifar_resnet8", 10).train() for _ in range(2))
    forward = torch.compile(two, dynamic=False, fullgraph=True, backend="eager")
    g = torch.Generator().manual_seed(0)
    for n, S in ((4, 8), (2, 16), (4, 8)):
        x = torch.randn(n, 3, S, S, generator=g)
        assert torch.equal(one(x), forward(x))
    state, other = one.state_dict(), two.state_dict()
    assert all(torch.equal(state[k], other[k]) for k in state)


@pytest.mark.gpu
def test_compiled_training_stays_within_bf16_noise_of_the_eager_one():
    """Several shapes, 200 steps: at first the losses are as near to the eager ones as those are to float32's, in the
    end they have learnt as much.
    """
    losses = []
    for make, precision in ((lambda n: n, "float32"), (lambda n: n, "bf16"), (compile_network, "bf16")):
        recipe = dataclasses.replace(config().recipe, precision=precision)
        run = Run.prepare(regime(), config(device="cuda", recipe=recipe, budget=Budget(45)))
        run.network.train()
        engine = Engine(run.task, run.network, run.recipe, 0, recorder="off")
        model = make(run.network)
        engine._model = lambda shape, model=model: model
        batches = run.task.batches(run.schedule, 0)
        losses.append(torch.stack([engine.step(batch, 0.05, i) for i, batch in zip(range(200), batches, strict=False)]))
    exact, eager, fast = losses
    noise = (exact - eager)[:5].abs().max()
    assert (fast - eager)[:5].abs().max() < 3 * noise + 0.005
    assert (fast[-50:].mean() - eager[-50:].mean()).abs() < 0.2 * eager[-50:].mean()
