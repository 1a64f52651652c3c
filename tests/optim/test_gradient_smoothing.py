import pytest
import torch
from torch import nn

from mixtune.optim.gradient_smoothing import GradientSmoothing
from mixtune.optim.recipe import Recipe
from mixtune.training.run import Run
from mixtune.training.step import Engine
from tests.training.test_loop import config, regime

pytestmark = pytest.mark.arithmetic


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def set_gradients(network, step):
    generator = torch.Generator().manual_seed(step)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator) * (1 + step % 5)


def norm(network):
    return sum(float(p.grad.double().pow(2).sum()) for p in network.parameters()) ** 0.5


def plain(norms, momentum=0.9, eps=1e-6):
    """The factor of every step, one number at a time."""
    R, factors = None, []
    for g in norms:
        if R is None:
            R = g
            factors.append(1.0)
        else:
            R = momentum * R + (1 - momentum) * g
            factors.append(R / (g + eps))
    return factors


def test_every_step_is_scaled_as_by_a_plain_loop():
    network = net()
    smooth = GradientSmoothing(network)
    norms, got = [], []
    for step in range(40):
        set_gradients(network, step)
        norms.append(norm(network))
        before = network[0].weight.grad.clone()
        smooth()
        got.append(float((network[0].weight.grad / before).mean()))
    assert got == pytest.approx(plain(norms), rel=1e-4)
    assert min(got) < 0.8 < 1.2 < max(got)  # two-sided


def test_the_norm_does_not_decay_to_zero():
    """A later version of the authors' helper lost the term that adds the new norm: R <- 0.9 R, 3e-5 after 100 steps."""
    network = net()
    smooth = GradientSmoothing(network)
    for _ in range(200):
        set_gradients(network, 0)
        g = norm(network)
        smooth()
        assert norm(network) == pytest.approx(g, rel=1e-4)
    assert float(smooth.norm) == pytest.approx(g, rel=1e-4)


def test_a_gradient_of_zero_stays_zero_and_finite():
    network = net()
    smooth = GradientSmoothing(network)
    set_gradients(network, 0)
    smooth()
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    smooth()
    assert norm(network) == 0


def test_parameters_without_a_gradient_are_left_alone():
    network = net()
    smooth = GradientSmoothing(network)
    for step in range(3):
        set_gradients(network, step)
        network[0].bias.grad = None
        smooth()
    assert network[0].bias.grad is None


def test_state_survives_a_checkpoint():
    straight, broken = net(), net()
    smooth, first = GradientSmoothing(straight), GradientSmoothing(broken)
    assert first.state_dict() == {}
    for step in range(10):
        if step == 5:
            state = {k: v.clone() for k, v in first.state_dict().items()}
            first = GradientSmoothing(broken)
            first.load_state_dict(state)
        for network, smoother in ((straight, smooth), (broken, first)):
            set_gradients(network, step)
            smoother()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(straight.parameters(), broken.parameters(), strict=True))


def test_a_falling_learning_rate_does_not_start_the_average_anew():
    """The authors' code makes a new one at every change of the rate; ours is one recurrence through the whole run."""
    run = Run.prepare(regime(), config(recipe=Recipe(schedule="step", milestones=(0.3, 0.6), warmup=0.0)))
    engine = Engine(run.task, run.network, run.recipe, 0)
    norms, smoothed = [], engine.smoothing

    def watched():
        norms.append(norm(run.network))
        smoothed()

    engine.smoothing = watched
    rates = run.recipe.learning_rates(run.schedule.progress)
    assert len(set(rates)) == 3
    run.network.train()
    R = None
    for step, batch in enumerate(run.task.batches(run.schedule, 0)):
        engine.step(batch, float(rates[step]), step)
        R = norms[-1] if R is None else 0.9 * R + 0.1 * norms[-1]
        assert float(smoothed.norm) == pytest.approx(R, rel=1e-4)
        assert norm(run.network) == pytest.approx(R, rel=1e-4)  # the gradient that the optimiser took, at every size
    assert len({shape.S for shape in run.schedule}) > 1


def test_it_comes_before_weight_decay():
    """The step that SGD takes is the smoothed gradient plus the plain decay: the decay is not scaled."""
    network = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, weight_decay=0.5)
    smooth = GradientSmoothing(network)
    for gradient, factor in ((1.0, 1.0), (4.0, (0.9 * 1 + 0.1 * 4) / 4)):
        network.weight.data.fill_(2.0)
        network.weight.grad = torch.tensor([[gradient, 0.0]])
        smooth()
        optimizer.step()
        assert network.weight[0, 0].item() == pytest.approx(2.0 - factor * gradient - 0.5 * 2.0, rel=1e-5)
