import pytest
import torch
from torch import nn

from mixtune.training.networks import create, gmacs, total_stride


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_published_parameters(depth, millions):
    """He et al. 2016, table 6. Their shortcuts have no parameters; ours are 1x1 convolutions, as in MixSize."""
    network = create(f"cifar_resnet{depth}", 10)
    shortcuts = sum(count(m.shortcut) for m in network.layers)
    assert shortcuts == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert round((count(network) - shortcuts) / 1e6, 2 if millions < 1 else 1) == millions
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in network.modules()) == depth + 2


@pytest.mark.parametrize(
    ("name", "parameters", "giga"),
    [
        # Parameters and multiply-accumulates at 224 px as published by torchvision and timm; Bag of Tricks, table 5
        # (4.1 G for -B, 4.3 G for -C and -D).
        ("resnet18", 11_689_512, 1.81),
        ("resnet34", 21_797_672, 3.66),
        ("resnet50", 25_557_032, 4.09),
        ("resnet50c", 25_576_264, 4.33),
        ("resnet50d", 25_576_264, 4.33),
        ("resnet101", 44_549_160, 7.80),
        ("efficientnet_b0", 5_288_548, 0.39),
    ],
)
def test_imagenet_networks_have_the_published_parameters_and_operations(name, parameters, giga):
    with torch.device("meta"):
        network = create(name, 1000)
    assert count(network) == parameters
    assert gmacs(name, 1000, 224) == pytest.approx(giga, abs=0.01)
    assert total_stride(name) == 32


def by_hooks(network, S):
    """Multiply-accumulates counted layer by layer: weights times output positions."""
    total = 0

    def add(module, _, output):
        nonlocal total
        total += module.weight.numel() * (output.shape[2] * output.shape[3] if output.ndim == 4 else 1)

    for m in network.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.register_forward_hook(add)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, S, S))
    return total / 1e9


@pytest.mark.parametrize(("name", "S"), [("cifar_resnet20", 32), ("cifar_resnet8", 20), ("efficientnet_b0", 96)])
def test_gmacs_agree_with_a_count_by_hooks(name, S):
    assert gmacs(name, 10, S) == pytest.approx(by_hooks(create(name, 10), S), rel=1e-6)


def test_operations_grow_with_the_square_of_a_size_on_the_grid():
    assert gmacs("cifar_resnet44", 10, 64) / gmacs("cifar_resnet44", 10, 16) == pytest.approx(16, rel=0.001)


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    a, b, c = (create("cifar_resnet8", 10, seed) for seed in (1, 1, 2))
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("S", [8, 16, 32, 48])
def test_cifar_networks_work_at_every_size(S):
    assert create("cifar_resnet8", 7)(torch.zeros(2, 3, S, S)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet5O", "did you mean 'resnet50'"), ("cifar_resnet45", "6n"), ("nothing like it", "any timm name")],
)
def test_unknown_names_are_refused_with_a_hint(name, message):
    with pytest.raises(ValueError, match=message):
        create(name, 10)
