"""Robustness: the primary metric on corrupted images, by family and severity, and test-time augmentation.

The families of Hendrycks & Dietterich 2019 that torchvision can make, with their severities: those of CIFAR-10-C for
images held in memory, of ImageNet-C for image files. Unlike theirs our images are corrupted at the evaluation size,
and brightness is added to all three channels. Robustness to scale is the curve over sizes itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from mixtune.data.augment import resize

if TYPE_CHECKING:
    from mixtune.tasks.base import Task

# family -> (severities 1 to 5 for small images, the same for large ones)
FAMILIES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),  # deviation, of values from 0 to 1
    "blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),  # deviation in pixels
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),  # share that is left
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),  # added, to values from 0 to 1
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),  # share of the side that is left
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),  # quality
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images: Tensor, family: str, severity: int, small: bool, seed: int = 0) -> Tensor:
    """Pixel values from 0 to 255, [N, 3, S, S], corrupted; float. The same seed gives the same noise."""
    amount = FAMILIES[family][0 if small else 1][severity - 1]
    x = images.float()
    match family:
        case "noise":
            rng = np.random.default_rng((seed, severity))
            noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32)).to(x.device)
            x = x + 255 * amount * noise
        case "blur":
            side = x.shape[-1]
            kernel = min(2 * round(4 * amount) + 1, side - 1 + side % 2)  # odd, and it must fit into the image
            x = TF.gaussian_blur(x, [kernel, kernel], [amount, amount])
        case "contrast":
            mean = x.mean((2, 3), keepdim=True)
            x = (x - mean) * amount + mean
        case "brightness":
            x = x + 255 * amount
        case "pixelate":
            S = x.shape[-1]
            x = torch.nn.functional.interpolate(resize(x, max(1, round(amount * S))), size=(S, S), mode="nearest-exact")
        case "jpeg":
            coded = [_jpeg(image, int(amount)) for image in x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()]
            x = torch.stack(coded).permute(0, 3, 1, 2).to(images.device).float()
    return x.clamp(0, 255)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """uint8 [H, W, 3], coded and decoded (by Pillow: torchvision's own coder is about to be removed)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer)))


def robustness(
    task: Task[Any],
    network: nn.Module,
    S: int,
    families: Sequence[str] = tuple(FAMILIES),
    severities: Sequence[int] = SEVERITIES,
) -> list[dict[str, float | str | int]]:
    """Return the primary metric at S on the held-out images, a row per family and severity; the mode is left as found.

    With the batch-norm statistics that the task chose when it last evaluated the network at S, if it did.
    """
    training = network.training
    network.eval()
    primary = task.metrics.primary.name
    rows: list[dict[str, float | str | int]] = []
    try:
        for family in families:
            for severity in severities:
                metrics = task.evaluate_changed(network, S, _change(family, severity, task.config.in_memory))
                rows.append({"S": S, "family": family, "severity": severity, primary: metrics[primary]})
    finally:
        network.train(training)
    return rows


def _change(family: str, severity: int, small: bool) -> Callable[[Tensor, int], Tensor]:
    return lambda pixels, number: corrupt(pixels, family, severity, small, number)


class FlipTTA(nn.Module):
    """Test-time augmentation: the mean of the logits for an image and for its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, S, S] -> logits [N, classes]."""
        logits: Tensor = (self.network(x) + self.network(x.flip(3))) / 2
        return logits
