import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mixtune.models.registry import create_network
from mixtune.optim.recipe import Recipe

pytestmark = pytest.mark.arithmetic

PROGRESS = np.arange(1000) / 1000


def test_cosine_follows_the_published_formula_with_warm_up_excluded():
    """Bag of Tricks: lr = eta (1 + cos(t pi / T)) / 2 after a linear warm-up i eta / m over m batches."""
    rates = Recipe(lr=0.4, warmup=0.1).learning_rates(PROGRESS)
    for i in range(100):
        assert rates[i] == pytest.approx(0.4 * (i + 1) / 100)
    for t in range(900):
        assert rates[100 + t] == pytest.approx(0.4 * 0.5 * (1 + math.cos(math.pi * t / 900)))


def test_steps_fall_at_the_milestones():
    """MixSize's ResNet-44: 0.1, divided by 10 after epochs 81, 122, 164 of 200."""
    rates = Recipe(schedule="step", warmup=0.0, milestones=(0.405, 0.61, 0.82)).learning_rates(PROGRESS)
    expected = [0.1 * 0.1 ** sum(p >= m for m in (0.405, 0.61, 0.82)) for p in PROGRESS]
    assert rates == pytest.approx(expected)


def test_linear_falls_to_its_floor():
    rates = Recipe(lr=0.5, schedule="linear", warmup=0.0, floor=0.1).learning_rates(PROGRESS)
    assert rates == pytest.approx(0.5 * (1 - 0.9 * PROGRESS))


def test_warm_restarts_are_the_published_formula():
    """SGDR's rate with T_i = T_0 T_mult^i; torch's schedule is the oracle."""
    T0, mult = 100, 2  # 100 + 200 + 400 = 700 steps
    recipe = Recipe(lr=0.3, schedule="sgdr", warmup=0.0, cycles=3, cycle_growth=2.0, floor=0.01)
    rates = recipe.learning_rates(np.arange(700) / 700)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T0, mult, eta_min=0.003)
    expected = []
    for _ in range(700):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates == pytest.approx(expected, abs=1e-9)


def test_one_cycle_of_sgdr_is_cosine():
    assert Recipe(schedule="sgdr").learning_rates(PROGRESS) == pytest.approx(Recipe().learning_rates(PROGRESS))


def test_triangles_are_torchs_cyclic_rate():
    rates = Recipe(lr=0.3, schedule="cyclic", warmup=0.0, cycles=4, floor=0.1).learning_rates(np.arange(400) / 400)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.03, 0.3, step_size_up=50, cycle_momentum=False)
    expected = []
    for _ in range(400):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates == pytest.approx(expected, abs=1e-9)


def test_the_rate_is_scaled_to_the_base_batch_or_to_every_step():
    """Bag of Tricks: lr = 0.1 b / 256."""
    assert Recipe(lr=0.1, scaling="base").scaled(1024).lr == pytest.approx(0.4)
    assert Recipe(lr=0.1).scaled(1024).lr == 0.1
    B = np.where(np.arange(1000) % 2, 256, 64)
    plain, scaled = (Recipe(scaling=s).learning_rates(PROGRESS, B) for s in ("none", "step"))
    assert scaled == pytest.approx(plain * B / 256)


def test_an_auxiliary_heads_loss_is_added_with_its_weight():
    torch.manual_seed(0)
    a, b, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    expected = F.cross_entropy(a, y) + 0.4 * F.cross_entropy(b, y)
    assert Recipe().loss((a, b), y).item() == pytest.approx(expected.item())


def test_soft_labels_of_one_class_are_the_hard_loss():
    torch.manual_seed(0)
    a, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for recipe in (Recipe(), Recipe(label_smoothing=0.2)):
        assert recipe.loss(a, F.one_hot(y, 3).float()).item() == pytest.approx(recipe.loss(a, y).item(), rel=1e-5)


def test_constant_stays():
    assert set(Recipe(schedule="constant", warmup=0).learning_rates(PROGRESS)) == {0.1}


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rate_depends_on_the_share_spent_and_not_on_the_number_of_steps(schedule):
    recipe = Recipe(schedule=schedule, warmup=0.1)
    coarse, fine = recipe.learning_rates(PROGRESS[::10]), recipe.learning_rates(PROGRESS)
    after = PROGRESS[::10] >= 0.1
    assert coarse[after] == pytest.approx(fine[::10][after])
    assert coarse.max() == pytest.approx(fine.max())


def test_a_run_of_one_step_moves():
    for schedule in ("cosine", "step", "constant"):
        assert Recipe(schedule=schedule).learning_rates(np.zeros(1))[0] > 0


def test_biases_and_norms_are_not_decayed():
    network = create_network("cifar_resnet8", 10)
    optimizer = Recipe(weight_decay=0.1, momentum=0.0).optimizer(network)
    names = {id(p): n for n, p in network.named_parameters()}
    grouped = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert sorted(grouped[0] + grouped[1]) == sorted(names.values())
    before = {n: p.clone() for n, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in network.named_parameters():
        decayed = name.endswith("weight") and p.ndim > 1
        expected = before[name] * (1 - 0.1 * 0.1) if decayed else before[name]
        assert torch.allclose(p, expected), name


def test_sgd_is_the_textbook_one():
    """v <- m v + (g + decay w); w <- w - lr v, in numpy."""
    network = create_network("cifar_resnet8", 10)
    optimizer = Recipe(lr=0.1, momentum=0.9, weight_decay=0.01).optimizer(network)
    w = network.fc.weight.detach().double().numpy().copy()
    v = np.zeros_like(w)
    rng = np.random.default_rng(0)
    for _ in range(5):
        g = rng.normal(size=w.shape)
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        network.fc.weight.grad = torch.from_numpy(g).float()
        optimizer.step()
        v = 0.9 * v + (g + 0.01 * w)
        w -= 0.1 * v
    assert network.fc.weight.detach().numpy() == pytest.approx(w, abs=1e-6)


def test_label_smoothing_is_the_published_mixture_with_the_uniform_distribution():
    torch.manual_seed(0)
    logits, targets = torch.randn(8, 5), torch.randint(0, 5, (8,))
    eps = 0.1
    q = F.one_hot(targets, 5) * (1 - eps) + eps / 5
    by_hand = -(q * logits.log_softmax(1)).sum(1).mean()
    assert Recipe(label_smoothing=eps).loss(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(lr=0.0), r"lr\b.*0\.0"),
        (dict(lr=math.nan), r"lr\b.*nan"),
        (dict(momentum=1.0), "momentum"),
        (dict(momentum=0.0, nesterov=True), "nesterov.*momentum"),
        (dict(weight_decay=-1.0), "weight_decay"),
        (dict(warmup=1.0), r"warmup\b.*1\.0"),
        (dict(milestones=(0.5, 0.2)), r"milestones\b.*0\.5, 0\.2"),
        (dict(label_smoothing=1.0), "label_smoothing"),
        (dict(ema=1.0), r"ema\b.*1\.0"),
        (dict(mixup=-0.1), r"mixup\b.*-0\.1"),
        (dict(schedule="cyclic"), "floor.*0"),
        (dict(frozen=0.5), "frozen.*groups"),
        (dict(groups=0), r"^groups\b.*0"),
        (dict(group_decay=-1.0), r"group_decay\b.*-1"),
        (dict(cycles=0), r"cycles\b.*0"),
        (dict(cycle_growth=0.0), r"cycle_growth\b.*0"),
    ],
)
def test_bad_values_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**bad)
