"""Wide residual networks for small images (Zagoruyko & Komodakis 2016): wrn28_10 and the rest of the 6n+4 family."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions, dropout between; a 1x1 shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        y: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-depth-factor: widths 16, 32 and 64 times the factor, total stride 4, global pooling.

    Raises ValueError unless the depth is 6n+4.
    """

    stride = 4

    def __init__(self, depth: int, factor: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6 or factor < 1:
            raise ValueError(
                f"a wide ResNet has 6n+4 layers (10, 16, 22, 28, 40) and a width of 1 up, not {depth}, {factor}"
            )
        blocks, inputs = (depth - 4) // 6, 16
        self.stem = nn.Conv2d(3, inputs, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        for width, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
            for i in range(blocks):
                layers.append(_Block(inputs, width, stride if i == 0 else 1, dropout))
                inputs = width
        self.layers = nn.Sequential(*layers)
        self.bn = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, S, S] -> logits [N, classes]."""
        logits: Tensor = self.fc(F.relu(self.bn(self.layers(self.stem(x)))).mean((2, 3)))
        return logits
