"""Batch norms of several processes give what one gives of the whole batch, and stay what they are in evaluation."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from mixtune.models.registry import create_network
from mixtune.models.sync_batch_norm import convert_to_sync_batch_norm
from mixtune.regime import Shard
from tests.ranks import on_ranks

pytestmark = pytest.mark.arithmetic

N = 7  # images: no two of three processes need have the same


def norm(kind, momentum):
    torch.manual_seed(0)
    made = {
        "2d": lambda: nn.BatchNorm2d(5, momentum=momentum),
        "1d": lambda: nn.BatchNorm1d(5, momentum=momentum),
        "plain": lambda: nn.BatchNorm2d(5, momentum=momentum, affine=False),
        "act": lambda: BatchNormAct2d(5, momentum=momentum),
    }[kind]()
    for p in made.parameters():
        nn.init.normal_(p)
    return nn.Sequential(nn.Identity(), made, nn.PReLU()).double()


def images(kind):
    g = torch.Generator().manual_seed(1)
    shape = (N, 5) if kind == "1d" else (N, 5, 3, 4)
    return 3 + 2 * torch.randn(shape, generator=g, dtype=torch.float64)


def passed(network, x, part):
    """Outputs, gradients and statistics after two steps, and the outputs of an evaluation."""
    x = x[part].requires_grad_()
    for _ in range(2):
        y = network.train()(x)
    weight = torch.arange(N, dtype=torch.float64)[part].view(-1, *[1] * (x.ndim - 1))
    (y * weight).sum().backward()
    judged = network.eval()(x)
    own = [t.detach().numpy() for t in (y, x.grad, judged)]
    return own, [p.grad.numpy() for p in network.parameters()], [b.numpy() for b in network.buffers()]


def shared(group, kind, momentum):
    torch.manual_seed(0)
    network = convert_to_sync_batch_norm(norm(kind, momentum))
    return passed(network, images(kind), group.shard.part(N))


@pytest.mark.parametrize(("kind", "momentum"), [("2d", 0.1), ("1d", 0.3), ("plain", None), ("act", None)])
def test_processes_normalise_as_one_does(kind, momentum):
    own, gradients, statistics = passed(norm(kind, momentum), images(kind), slice(None))
    parts = on_ranks(3, shared, kind, momentum)
    for i, whole in enumerate(own):
        joined = torch.cat([torch.from_numpy(part[0][i]) for part in parts])
        assert torch.allclose(joined, torch.from_numpy(whole), rtol=1e-10, atol=1e-12)
    for i, whole in enumerate(gradients):  # each process has its part of a sum
        assert sum(part[1][i] for part in parts) == pytest.approx(whole, rel=1e-10)
    for part in parts:
        for mine, whole in zip(part[2], statistics, strict=True):
            assert mine == pytest.approx(whole, rel=1e-10)


def in_bf16(group):
    network = convert_to_sync_batch_norm(nn.Sequential(nn.BatchNorm2d(5)))
    x = images("2d")[group.shard.part(N)].bfloat16()
    y = network.train()(x)
    return str(y.dtype), y.float().detach().numpy(), network[0].running_mean.numpy()


def test_statistics_of_bfloat16_are_taken_in_float32():
    x = images("2d").bfloat16()
    for rank, (dtype, y, mean) in enumerate(on_ranks(2, in_bf16)):
        assert dtype == "torch.bfloat16"
        assert mean == pytest.approx(0.1 * x.float().mean((0, 2, 3)).numpy(), rel=1e-5)
        whole = nn.BatchNorm2d(5)(x.float())[Shard(rank, 2).part(N)]
        assert y == pytest.approx(whole.detach().numpy(), abs=0.02)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", ["cifar_resnet8", "tf_efficientnet_b0"])
def test_a_network_keeps_its_parameters_names_and_activations(name, device):
    network = create_network(name, 10).to(device)
    before, parameters = list(network.state_dict()), list(network.parameters())
    activations = sum(isinstance(m, nn.SiLU | nn.ReLU) for m in network.modules())
    for _ in range(2):  # again changes nothing
        assert convert_to_sync_batch_norm(network) is network
        assert list(network.state_dict()) == before
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
        assert sum(isinstance(m, nn.SiLU | nn.ReLU) for m in network.modules()) == activations
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms) == (device == "meta")
    assert list(copy.deepcopy(network).state_dict()) == before
