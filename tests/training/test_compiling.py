import pytest
import torch

from mixtune.regime import BatchShape
from mixtune.training.compiling import Compiler
from mixtune.training.networks import create

A, B, C = BatchShape(8, 32), BatchShape(16, 8), BatchShape(32, 2)


class World:
    """A clock, and a network whose steps take as long as they are said to, eager and compiled."""

    def __init__(self, eager, fast, compile_seconds, left, fails=False):
        self.now, self.said, self.compiles, self.fails = 0.0, [], [], fails
        self.seconds = {False: eager, True: fast}
        self.compile_seconds, self.left = compile_seconds, left
        self.network = torch.nn.Identity()
        self.compiler = Compiler(
            self.network, left, self.said.append, lambda: None, lambda n: self.fast, lambda: self.now
        )

    def fast(self, x):
        raise AssertionError("only told from the network here")

    def step(self, shape):
        fast = self.compiler.forward(shape) == self.fast

        def work():
            fast = self.compiler.forward(shape) == self.fast
            if fast and self.fails:
                raise RuntimeError("graph break\nmore")
            if fast and shape not in self.compiles:
                self.compiles.append(shape)
                self.now += self.compile_seconds
            self.now += self.seconds[fast]
            return torch.zeros(())

        self.compiler.step(shape, work)
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


def test_a_short_run_is_not_compiled_and_says_why():
    world = World(0.05, 0.03, 45, {A: 300, B: 300})
    assert not any(world.run(order_of(world.left)))
    assert world.compiles == []
    assert world.said == [
        "steps are not compiled: compiling 2 shapes would cost about 120 s to save about 7 s",
    ]


def test_a_long_run_is_compiled_where_each_shape_earns_it_back():
    left = {A: 40_000, B: 20_000, C: 100}
    world = World(0.055, 0.0375, 45, left)
    fast = world.run(order_of(left))
    assert sorted(world.compiles) == [A, B]  # C would save 2 s for 45 s
    assert sum(fast) > 59_900
    assert world.said == [
        "steps are compiled: a step of 8x32 took 45 s to compile and is 1.47 times as fast; not worth it: 32x2"
    ]


def test_what_gains_nothing_is_undone():
    world = World(0.05, 0.06, 45, {A: 40_000, B: 40_000})
    fast = world.run(order_of(world.left))
    assert world.compiles == [A]
    assert not any(fast[100:])
    assert "not compiled: a step of 8x32 took 45 s to compile and is 0.83 times as fast" in world.said[0]


def test_a_network_that_cannot_be_compiled_trains_on_and_says_so():
    world = World(0.05, 0.03, 45, {A: 40_000, B: 40_000}, fails=True)
    world.run(order_of(world.left))
    assert world.said == ["steps are not compiled: they could not be compiled (RuntimeError: graph break)"]


def test_an_error_of_the_step_itself_is_raised():
    compiler = Compiler(torch.nn.Identity(), {A: 3}, print, lambda: None)

    def broken():
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        compiler.step(A, broken)


def test_what_is_compiled_shares_weights_and_statistics_and_gives_the_same():
    """Traced as for compiling, with torch's reference backend: no generated code, the same numbers."""
    one, two = (create("cifar_resnet8", 10).train() for _ in range(2))
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
    import dataclasses

    from mixtune.training.compiling import compiled
    from mixtune.training.engine import Engine
    from mixtune.training.run import Run
    from tests.training.test_loop import config, regime

    losses = []
    for make, precision in ((lambda n: n, "float32"), (lambda n: n, "bf16"), (compiled, "bf16")):
        recipe = dataclasses.replace(config().recipe, precision=precision)
        run = Run.prepare(regime(), config(device="cuda", recipe=recipe, budget=type(config().budget)(45)))
        run.network.train()
        engine = Engine(run.task, run.network, run.recipe, 0, recorder="off")
        engine.forward = make(run.network)
        batches = run.task.batches(run.schedule, 0)
        losses.append(torch.stack([engine.step(x, y, 0.05, i) for i, (x, y) in zip(range(200), batches, strict=False)]))
    exact, eager, fast = losses
    noise = (exact - eager)[:5].abs().max()
    assert (fast - eager)[:5].abs().max() < 3 * noise + 0.005
    assert (fast[-50:].mean() - eager[-50:].mean()).abs() < 0.2 * eager[-50:].mean()
