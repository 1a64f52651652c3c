"""Networks by name: any of timm's, and those that timm lacks.

cifar_resnet8, 14, 20, ... 44, ... 110; wrn28_10, wrn16_8 and so on; amoebanet_a. Bag of Tricks' ResNet-50 is
resnet50_v1, its ResNet-50-B, -C and -D are timm's resnet50, resnet50c and resnet50d; EfficientNet-B0 is
efficientnet_b0; resnet18, 34, 50 and 101 are the same as torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mixtune.errors import InputError, did_you_mean
from mixtune.models.amoebanet import AmoebaNet
from mixtune.models.cifar_resnet import CifarResNet
from mixtune.models.weights import load_weights
from mixtune.models.wide_resnet import WideResNet


def _cifar_resnet(match: re.Match[str], classes: int, dropout: float, drop_path: float) -> nn.Module:
    if drop_path:
        raise ValueError(f"{match[0]} has no drop_path")
    return CifarResNet(int(match[1]), classes, dropout)


def _wide(match: re.Match[str], classes: int, dropout: float, drop_path: float) -> nn.Module:
    if drop_path:
        raise ValueError(f"{match[0]} has no drop_path")
    return WideResNet(int(match[1]), int(match[2]), classes, dropout)


def _amoeba(match: re.Match[str], classes: int, dropout: float, drop_path: float) -> nn.Module:
    return AmoebaNet(20, 36, classes, dropout, drop_path)


def _resnet_v1(match: re.Match[str], classes: int, dropout: float, drop_path: float) -> nn.Module:
    """The bottleneck ResNet as first published (He et al. 2016): the first 1x1 of a block has the stride, not the 3x3.

    Bag of Tricks starts from this one; moving the stride is its -B.
    """
    net = _timm(f"resnet{match[1]}", classes, dropout, drop_path, False)
    for stage in (net.layer2, net.layer3, net.layer4):
        first: Any = stage[0]  # type: ignore[index]
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)
    return net


_OURS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str], int, float, float], nn.Module], int], ...] = (
    (re.compile(r"cifar_resnet(\d+)"), _cifar_resnet, CifarResNet.stride),
    (re.compile(r"wrn(\d+)_(\d+)"), _wide, WideResNet.stride),
    (re.compile(r"amoebanet_a"), _amoeba, AmoebaNet.stride),
    (re.compile(r"resnet(50|101|152)_v1"), _resnet_v1, 32),
)


def create_network(
    name: str,
    classes: int,
    seed: int = 0,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    weights: str | None = None,
    names: Sequence[str] = (),
) -> nn.Module:
    """Return a freshly initialised network; the same seed gives the same weights.

    dropout: before the classifier (in a wide ResNet inside the blocks); drop_path: of the last residual branch, growing
    linearly from the first. weights: "pretrained" for timm's, which are downloaded, or a file; a classifier for other
    classes stays fresh (names: of this network's). Raises ValueError for an unknown name and for a network that has no
    such option, InputError for weights that cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _ours(name, classes, dropout, drop_path)
        if net is None:
            net = _timm(name, classes, dropout, drop_path, weights == "pretrained")
        elif weights == "pretrained":
            raise ValueError(f"there are no pretrained weights of {name}; name a file")
    if weights not in (None, "pretrained"):
        load_weights(net, str(weights), name, names, new_head=True)
    return net


def _ours(name: str, classes: int, dropout: float, drop_path: float) -> nn.Module | None:
    for pattern, build, _ in _OURS:
        if match := pattern.fullmatch(name):
            return build(match, classes, dropout, drop_path)
    return None


def _timm(name: str, classes: int, dropout: float, drop_path: float, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name):
        known = [f"cifar_resnet{n}" for n in (8, 14, 20, 32, 44, 56, 110)] + ["wrn28_10", "amoebanet_a", "resnet50_v1"]
        raise ValueError(f"unknown network {name!r}; {_nearest(name, known + timm.list_models())}")
    options = {k: v for k, v in (("drop_rate", dropout), ("drop_path_rate", drop_path)) if v}
    try:
        net: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=classes, **options)
    except TypeError:
        raise ValueError(f"{name} does not take {' and '.join(options)}") from None
    except Exception as err:
        if not pretrained:
            raise
        raise InputError(
            f"the pretrained weights of {name} could not be had ({type(err).__name__}); name a file instead"
        ) from None
    return net


def layer_groups(network: nn.Module, n: int) -> list[list[nn.Parameter]]:
    """Return the parameters in ``n`` groups in the order of the network's parts; the last group is its head.

    The parts before it are divided into n-1 runs of about as many parts each. Raises ValueError for fewer parts than
    groups.
    """
    parts = [part for part in network.children() if any(True for _ in part.parameters())]
    if n > len(parts):
        raise ValueError(f"groups must be at most {len(parts)}, the parts of this network, not {n}")
    if n == 1:
        return [list(network.parameters())]
    size = (len(parts) - 1) / (n - 1)
    cuts = [round(i * size) for i in range(n)]
    groups = [[p for part in parts[a:b] for p in part.parameters()] for a, b in pairwise(cuts)]
    own = list(network.parameters(recurse=False))  # tokens and positions belong to the first layers
    return [own + groups[0], *groups[1:], list(parts[-1].parameters())]


def set_zero_gamma(network: nn.Module, on: bool) -> None:
    """Start the last norm's scale of every residual block at 0, or at 1.

    Raises ValueError where there is no block whose last norm is known.
    """
    blocks = [m for m in network.modules() if hasattr(m, "zero_init_last")]
    norms = [[m for n, m in block.named_children() if re.fullmatch(r"bn\d", n)] for block in blocks]
    if not norms or not all(norms):
        raise ValueError("zero_gamma needs residual blocks that end in a norm, and this network has none")
    for *_, last in norms:
        nn.init.constant_(last.weight, 0.0 if on else 1.0)  # type: ignore[arg-type]


def _nearest(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else "it may be any timm name, cifar_resnet8 to 110, wrn28_10 or amoebanet_a"


@cache
def total_stride(name: str) -> int:
    """Return by how much the network shrinks an image side in all: training sizes must be multiples of it."""
    for pattern, _, stride in _OURS:
        if pattern.fullmatch(name):
            return stride
    with torch.device("meta"):
        net = create_network(name, 2)
    info = getattr(net, "feature_info", None)
    return max((int(f["reduction"]) for f in info), default=1) if info else 1


@cache
def gmacs(name: str, classes: int, S: int) -> float:
    """Return the 10^9 multiply-accumulates of one S x S image through the network (1 MAC = 2 FLOPs). Runs nothing."""
    with torch.device("meta"):
        net = create_network(name, classes).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, S, S))
    return float(counter.get_total_flops()) / 2e9


def check_size(name: str, classes: int, S: int) -> None:
    """Raise ValueError when the network cannot take S x S images: too small for it, or it is made for one size."""
    try:
        gmacs(name, classes, S)
    except (RuntimeError, AssertionError) as err:
        raise ValueError(f"this network does not take images of {S} px ({str(err).splitlines()[0]})") from None
