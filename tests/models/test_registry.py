import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixtune.errors import InputError
from mixtune.models.amoebanet import AmoebaNet
from mixtune.models.registry import check_size, create_network, gmacs, set_zero_gamma, total_stride

pytestmark = pytest.mark.arithmetic


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_cifar_resnets_have_the_published_parameters(depth, millions):
    """He et al. 2016, table 6. Their shortcuts have no parameters; ours are 1x1 convolutions, as in MixSize."""
    network = create_network(f"cifar_resnet{depth}", 10)
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
        ("resnet50_v1", 25_557_032, 3.86),  # 3.8 G in both papers
        ("resnet101_v1", 44_549_160, 7.57),
        ("resnet50c", 25_576_264, 4.33),
        ("resnet50d", 25_576_264, 4.33),
        ("resnet101", 44_549_160, 7.80),
        ("efficientnet_b0", 5_288_548, 0.39),
    ],
)
def test_imagenet_networks_have_the_published_parameters_and_operations(name, parameters, giga):
    with torch.device("meta"):
        network = create_network(name, 1000)
    assert count(network) == parameters
    assert gmacs(name, 1000, 224) == pytest.approx(giga, abs=0.01)
    assert total_stride(name) == 32


def test_the_first_published_bottleneck_strides_in_its_first_convolution():
    """Equal to torchvision's network but for where the stride is; so are its outputs where there is none to move."""
    network, later = create_network("resnet50_v1", 10, seed=3), create_network("resnet50", 10, seed=3)
    assert network.state_dict().keys() == later.state_dict().keys()
    strides = [[tuple(m.stride) for m in (b[0].conv1, b[0].conv2)] for b in (network.layer2, later.layer2)]
    assert strides == [[(2, 2), (1, 1)], [(1, 1), (2, 2)]]
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for n in (network, later):
        set_zero_gamma(n.eval(), False)  # else every block is its shortcut at first
    with torch.no_grad():
        a, b = (n.layer1(n.maxpool(n.act1(n.bn1(n.conv1(x))))) for n in (network, later))
        assert torch.equal(a, b)
        assert network(x).shape == later(x).shape
        assert not torch.equal(network(x), later(x))


@pytest.mark.parametrize(("depth", "giga"), [(20, 0.0406), (32, 0.0689), (56, 0.125), (110, 0.253)])
def test_cifar_resnets_have_the_published_operations(depth, giga):
    """As He et al. 2019 (FPGM, table 1) count them; our 1x1 shortcuts add 0.3 M."""
    assert gmacs(f"cifar_resnet{depth}", 10, 32) == pytest.approx(giga + 0.0003, rel=0.01)


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
    assert gmacs(name, 10, S) == pytest.approx(by_hooks(create_network(name, 10), S), rel=1e-6)


def test_operations_grow_with_the_square_of_a_size_on_the_grid():
    assert gmacs("cifar_resnet44", 10, 64) / gmacs("cifar_resnet44", 10, 16) == pytest.approx(16, rel=0.001)


def test_the_seed_decides_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    a, b, c = (create_network("cifar_resnet8", 10, seed) for seed in (1, 1, 2))
    assert torch.equal(a.fc.weight, b.fc.weight)
    assert not torch.equal(a.fc.weight, c.fc.weight)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("S", [8, 16, 32, 48])
def test_cifar_networks_work_at_every_size(S):
    assert create_network("cifar_resnet8", 7)(torch.zeros(2, 3, S, S)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "'resnet5O'.*'resnet50'"),
        ("cifar_resnet45", r"6n\+2.*\b45$"),
        ("nothing like it", "'nothing like it'.*timm"),
    ],
)
def test_unknown_names_are_refused_with_a_hint(name, message):
    with pytest.raises(ValueError, match=message):
        create_network(name, 10)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("wrn40_1", 0.6), ("wrn40_2", 2.2), ("wrn40_4", 8.9), ("wrn16_8", 11.0), ("wrn22_8", 17.2), ("wrn28_10", 36.5)],
)
def test_wide_resnets_have_the_published_parameters(name, millions):
    """Zagoruyko & Komodakis 2016, tables 2 to 4; WRN-28-10 takes 5.2 G multiply-accumulates."""
    with torch.device("meta"):
        network = create_network(name, 10)
    assert round(count(network) / 1e6, 1) == millions
    assert len(network.layers) == 3 * (int(name[3:5]) - 4) // 6
    if name == "wrn28_10":
        assert gmacs(name, 10, 32) == pytest.approx(5.24, abs=0.01)


def test_amoebanet_has_the_published_parameters_up_to_rounding():
    """Real et al. 2019, table 1: AmoebaNet-A (6, 36) has 3.2 M, without the auxiliary head; this form has 3.15 M."""
    with torch.device("meta"):
        network = create_network("amoebanet_a", 10)
    main = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("auxiliary"))
    assert main / 1e6 == pytest.approx(3.2, rel=0.02)
    assert len(network.cells) == 20


@pytest.mark.parametrize("S", [16, 20, 24, 32, 48])
def test_amoebanets_auxiliary_head_works_at_every_size(S):
    network = AmoebaNet(6, 8, 7)
    logits, auxiliary = network.train()(torch.zeros(2, 3, S, S))
    assert logits.shape == auxiliary.shape == (2, 7)
    assert network.eval()(torch.zeros(2, 3, S, S)).shape == (2, 7)


def test_the_auxiliary_loss_reaches_the_cells_before_it():
    torch.manual_seed(0)
    network = AmoebaNet(3, 8, 5).train()
    _, auxiliary = network(torch.randn(4, 3, 16, 16))
    auxiliary.sum().backward()
    assert network.stem[0].weight.grad.abs().sum() > 0
    assert network.fc.weight.grad is None


def test_drop_path_grows_with_progress_and_keeps_the_mean():
    torch.manual_seed(0)
    network = AmoebaNet(3, 8, 5, drop_path=0.4).train()
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    x = torch.randn(1, 3, 16, 16)
    cell = network.cells[0]
    stem = network.stem(x)
    whole = cell(stem, stem)
    many = torch.cat([cell(stem, stem, torch.tensor(0.4)) for _ in range(600)])
    first = many[:, : cell.channels // 3]  # the sum of a separable convolution and an average pool
    assert torch.allclose(first.mean(0), whole[0, : cell.channels // 3], atol=4 * float(first.std(0).max()) / 600**0.5)
    assert first.std() > 0
    network.progress.fill_(0.0)
    assert torch.equal(network(x)[0], network(x)[0])  # nothing is dropped at the start
    network.progress.fill_(1.0)
    assert not torch.equal(network(x)[0], network(x)[0])


def test_dropout_of_a_wide_resnet_lies_inside_its_blocks():
    network = create_network("wrn10_1", 10, dropout=0.3)
    assert [m.p for m in network.modules() if isinstance(m, nn.Dropout)] == [0.3] * 3


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("name", ["cifar_resnet8", "resnet18"])
def test_weights_come_from_a_file_and_another_number_of_classes_gets_a_fresh_head(name, suffix, tmp_path):
    source, path = create_network(name, 10, seed=1), tmp_path / f"w.{suffix}"
    if suffix == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()}, path)
    same, other = create_network(name, 10, weights=str(path)), create_network(name, 3, weights=str(path))
    for k, v in source.state_dict().items():
        assert torch.equal(same.state_dict()[k], v)
        assert k.startswith("fc.") or torch.equal(other.state_dict()[k], v)
    assert torch.equal(other.fc.weight, create_network(name, 3).fc.weight)


def test_torchvisions_weight_files_fit_timms_networks(tmp_path):
    import torchvision

    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = create_network("resnet18", 10, weights=str(tmp_path / "w.pth")).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_unusable_weights_are_one_sentence(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(create_network("cifar_resnet8", 10).state_dict(), path)
    with pytest.raises(InputError, match=r"w\.safetensors.*cifar_resnet14"):
        create_network("cifar_resnet14", 10, weights=str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"w\.safetensors"):
        create_network("cifar_resnet8", 10, weights=str(path))
    with pytest.raises(InputError, match=r"none\.pt"):
        create_network("cifar_resnet8", 10, weights=str(tmp_path / "none.pt"))
    with pytest.raises(ValueError, match=r"pretrained.*cifar_resnet8"):
        create_network("cifar_resnet8", 10, weights="pretrained")


def test_pretrained_weights_that_cannot_be_downloaded_are_one_sentence(monkeypatch):
    import timm

    def offline(name, pretrained, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"pretrained.*resnet18.*OSError"):
        create_network("resnet18", 10, weights="pretrained")


@pytest.mark.parametrize(("name", "S"), [("inception_v3", 32), ("vit_tiny_patch16_224", 64)])
def test_a_size_that_a_network_cannot_take_is_one_sentence(name, S):
    with pytest.raises(ValueError, match=rf"\b{S} px"):
        check_size(name, 10, S)
    check_size(name, 10, 224)
