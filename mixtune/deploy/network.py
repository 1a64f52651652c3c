"""The network that is deployed: restored with its batch-norm statistics, its normalisation inside, and described.

S as in ``regime.shapes``. Pixels from 0 to 1 go in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixtune.deploy.pick import Need, useful_sizes
from mixtune.training import data, networks
from mixtune.training.crops import CROP_RATIO
from mixtune.training.curve import Curve, Point
from mixtune.training.task import Classification
from mixtune.training.trained import Trained
from mixtune.training.weights import load_weights


class Deployed(nn.Module):
    """The network with its normalisation: pixels from 0 to 1, [N, 3, H, W], to logits [N, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def restore(run: Trained, S: int) -> tuple[Deployed, str]:
    """The trained network in evaluation mode, with the batch-norm statistics for S, and which those are.

    A run that was judged with recalibrated statistics gets those of S, chosen on its hold-out as in training. Raises
    InputError for missing or foreign weights.
    """
    task = Classification(run.config.task, "validation", "cpu", run.config.evaluate.recalibrate)
    dataset = data.load(run.config.task.dataset, run.config.task.data)
    network = networks.create(run.config.task.network, dataset.classes)
    load_weights(network, run.weights, run.config.task.network)
    network.eval()
    chosen = "running"
    if run.config.evaluate.recalibrate is not None:
        task.evaluate(network, [S])
        chosen, statistics = task.chosen[S]
        buffers = dict(network.named_buffers())
        for name, value in statistics.items():
            buffers[name].copy_(value)
    return Deployed(network, dataset.mean, dataset.std).eval(), chosen


def description(run: Trained, point: Point, chosen: str, needs: Sequence[Need]) -> dict[str, Any]:
    """What whoever deploys the network must know, as plain values."""
    dataset = data.load(run.config.task.dataset, run.config.task.data)
    classes, files = dataset.classes, isinstance(dataset.train, data.Files)
    accuracy = {k: v for k, v in Curve((point,)).rows()[0].items() if k != "S"}
    return {
        "network": run.config.task.network,
        "dataset": run.config.task.dataset,
        "size": point.S,
        "judged": accuracy,
        "judged_on": run.judge or "validation",
        "worth_using_at": useful_sizes(run.curve),
        "asked": [f"{n.kind} {n.said}" for n in needs],
        "batch_norm": chosen,
        "input": "RGB pixels from 0 to 1, [N, 3, H, W], resized to size x size; normalisation is inside",
        "output": "logits, [N, classes]",
        "classes": classes,
        "crop": CROP_RATIO if files else 1.0,
    }
