"""AmoebaNet-A for small images (Real et al. 2019), in the cell form that DARTS and the MixSize authors train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A cell sums five pairs of operations; each works on one of the two cells before (0, 1) or on an earlier sum (2 up).
# The sums named last are concatenated to the cell's output.
_Pair = tuple[tuple[str, int], tuple[str, int]]
NORMAL: tuple[_Pair, ...] = (
    (("avg_pool", 0), ("max_pool", 1)),
    (("sep_3", 0), ("sep_5", 2)),
    (("sep_3", 0), ("avg_pool", 3)),
    (("sep_3", 1), ("skip", 1)),
    (("skip", 0), ("avg_pool", 1)),
)
REDUCTION: tuple[_Pair, ...] = (
    (("avg_pool", 0), ("sep_3", 1)),
    (("max_pool", 0), ("sep_7", 2)),
    (("sep_7", 0), ("avg_pool", 1)),
    (("max_pool", 0), ("max_pool", 1)),
    (("conv_7x1", 0), ("sep_3", 5)),
)
NORMAL_OUT, REDUCTION_OUT = (4, 5, 6), (3, 4, 6)


def _norm_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class _Halve(nn.Module):
    """Half the side: two 1x1 convolutions of stride 2, the second one pixel further, side by side."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/2, W/2]."""
        x = F.relu(x)
        y: Tensor = self.bn(torch.cat([self.even(x), self.odd(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:])], 1))
        return y


def _separable(width: int, kernel: int, stride: int) -> nn.Sequential:
    """Depthwise and pointwise convolution, twice; the first one may halve the side."""
    parts: list[nn.Module] = []
    for s in (stride, 1):
        depthwise = nn.Conv2d(width, width, kernel, s, kernel // 2, groups=width, bias=False)
        parts += [nn.ReLU(), depthwise, nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*parts)


def _operation(name: str, width: int, stride: int) -> nn.Module:
    match name:
        case "avg_pool":
            return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
        case "max_pool":
            return nn.MaxPool2d(3, stride, 1)
        case "skip":
            return nn.Identity() if stride == 1 else _Halve(width, width)
        case "conv_7x1":
            across = nn.Conv2d(width, width, (1, 7), (1, stride), (0, 3), bias=False)
            down = nn.Conv2d(width, width, (7, 1), (stride, 1), (3, 0), bias=False)
            return nn.Sequential(nn.ReLU(), across, down, nn.BatchNorm2d(width))
    return _separable(width, int(name.removeprefix("sep_")), stride)


class _Cell(nn.Module):
    def __init__(self, before: int, last: int, width: int, reduces: bool, after_reduction: bool) -> None:
        super().__init__()
        self.first = _Halve(before, width) if after_reduction else _norm_conv(before, width)
        self.second = _norm_conv(last, width)
        self.pairs, self.out = (REDUCTION, REDUCTION_OUT) if reduces else (NORMAL, NORMAL_OUT)
        self.operations = nn.ModuleList(
            _operation(name, width, 2 if reduces and source < 2 else 1) for pair in self.pairs for name, source in pair
        )
        self.channels = width * len(self.out)

    def forward(self, before: Tensor, last: Tensor, drop: Tensor | None = None) -> Tensor:
        """Two earlier cells' outputs -> this one's; ``drop``: share of operations left out, per image; a scalar."""
        states = [self.first(before), self.second(last)]
        operations = iter(self.operations)
        for pair in self.pairs:
            terms = []
            for _, source in pair:
                operation = next(operations)
                y = operation(states[source])
                if drop is not None and not isinstance(operation, nn.Identity):
                    keep = torch.rand(len(y), 1, 1, 1, device=y.device) >= drop
                    y = y * (keep / (1 - drop)).to(y.dtype)
                terms.append(y)
            states.append(terms[0] + terms[1])
        return torch.cat([states[i] for i in self.out], 1)


class AmoebaNet(nn.Module):
    """AmoebaNet-A (6, 36): 18 normal cells, a reduction after each third, first width 36, total stride 4.

    In training mode the output is (logits, the auxiliary head's logits). That head follows the second reduction; it
    pools whatever it gets to 2 x 2, what the published 5x5 pool makes of 32 px, so that it works at every size.
    ``drop_path`` grows linearly with ``progress``, the share of the budget spent: a tensor that the engine writes, so
    that captured and compiled steps follow it.
    """

    stride = 4

    def __init__(self, cells: int, width: int, classes: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        if cells < 3:
            raise ValueError(f"an AmoebaNet has at least 3 cells, not {cells}")
        self.drop_path = drop_path
        self.progress: Tensor
        self.register_buffer("progress", torch.ones(()), persistent=False)
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * width))
        before = last = 3 * width
        reductions = (cells // 3, 2 * cells // 3)
        self.cells, after_reduction = nn.ModuleList(), False
        for i in range(cells):
            width *= 2 if i in reductions else 1
            cell = _Cell(before, last, width, i in reductions, after_reduction)
            self.cells.append(cell)
            before, last, after_reduction = last, cell.channels, i in reductions
            if i == reductions[1]:
                self.auxiliary = nn.Sequential(
                    *(nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
                    *(nn.Conv2d(last, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()),
                    *(nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768), nn.ReLU()),
                    *(nn.Flatten(), nn.Linear(768, classes)),
                )
        self.tap = reductions[1]
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[N, 3, S, S] -> logits [N, classes]; in training mode two of them."""
        before = last = self.stem(x)
        auxiliary = None
        drop = self.drop_path * self.progress if self.drop_path and self.training else None
        for i, cell in enumerate(self.cells):
            before, last = last, cell(before, last, drop)
            if i == self.tap and self.training:
                auxiliary = self.auxiliary(last)
        logits: Tensor = self.fc(self.dropout(last.mean((2, 3))))
        return logits if auxiliary is None else (logits, auxiliary)
