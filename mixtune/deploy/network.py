"""The network that is deployed: restored with its batch-norm statistics, its normalisation inside, and described.

S as in ``regime.shapes``. Pixels from 0 to 1 go in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mixtune.data import datasets, sources
from mixtune.data.crops import CROP_RATIO
from mixtune.deploy.pick import Need, useful_sizes
from mixtune.evaluation import bn_recalibration
from mixtune.evaluation.bn_recalibration import Statistics
from mixtune.evaluation.curve import Curve, Point
from mixtune.models import registry
from mixtune.models.weights import load_weights
from mixtune.tasks.classification import Classification
from mixtune.training.run_folder import FinishedRun

STATISTICS = "statistics.safetensors"  # the file of the batch norms' statistics at every size, beside the network


class Deployed(nn.Module):
    """The network with its normalisation: pixels from 0 to 1, [N, 3, H, W], to logits [N, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        statistics: Mapping[int, Statistics] = MappingProxyType({}),
    ) -> None:
        """``statistics``: the batch-norm statistics of sizes that take others than the network has, by size."""
        super().__init__()
        self.network, self.statistics = network, dict(statistics)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits


def restore(run: FinishedRun, S: int) -> tuple[Deployed, dict[int, str]]:
    """The trained network in evaluation mode, with the batch-norm statistics for S, and which each size takes.

    A run that was judged with recalibrated statistics gets them chosen on its hold-out, as in training. Raises
    InputError for missing or foreign weights.
    """
    task = Classification(run.config.task, "validation", "cpu", run.config.evaluate.recalibrate)
    dataset = _dataset(run)
    network = registry.create_network(run.config.task.network, dataset.classes)
    load_weights(network, run.weights, run.config.task.network, dataset.names)
    network.eval()
    own = bn_recalibration.statistics(network)
    found: dict[int, tuple[str, Statistics]] = dict.fromkeys({S, *run.curve.sizes}, (bn_recalibration.RUNNING, own))
    if run.config.evaluate.recalibrate is not None:
        task.evaluate(network, sorted(found))
        found = {size: (name, statistics or own) for size, (name, statistics) in task.chosen.items()}
    buffers = dict(network.named_buffers())
    for name, value in found[S][1].items():
        buffers[name].copy_(value)
    others = {size: statistics for size, (_, statistics) in sorted(found.items()) if statistics is not found[S][1]}
    chosen = {size: name for size, (name, _) in sorted(found.items())}
    return Deployed(network, dataset.mean, dataset.std, others).eval(), chosen


def description(run: FinishedRun, point: Point, chosen: Mapping[int, str], needs: Sequence[Need]) -> dict[str, Any]:
    """What whoever deploys the network must know, as plain values."""
    dataset = _dataset(run)
    classes, files = dataset.classes, isinstance(dataset.train, sources.Files)
    accuracy = {k: v for k, v in Curve((point,)).rows()[0].items() if k != "S"}
    return {
        "network": run.config.task.network,
        "dataset": run.config.task.dataset,
        "size": point.S,
        "judged": accuracy,
        "judged_on": run.judge or "validation",
        "worth_using_at": useful_sizes(run.curve),
        "asked": [f"{n.kind} {n.said}" for n in needs],
        "batch_norm": chosen[point.S],
        "batch_norm_by_size": dict(chosen),
        "input": "RGB pixels from 0 to 1, [N, 3, H, W], resized to size x size; normalisation is inside",
        "output": "logits, [N, classes]",
        "classes": classes,
        "class_names": list(dataset.names),
        "crop": CROP_RATIO if files else 1.0,
    }


def _dataset(run: FinishedRun) -> sources.DataSet:
    task = run.config.task
    return datasets.load_dataset(task.dataset, task.data, task.classes)
