"""The network that is deployed: restored with its batch-norm statistics, its normalisation inside, and described.

S as in ``regime.shapes``. Pixels from 0 to 1 go in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from mixtune.deploy.pick import Need, useful_sizes
from mixtune.evaluation import bn_recalibration
from mixtune.evaluation.bn_recalibration import Statistics
from mixtune.evaluation.curve import Curve, Point
from mixtune.tasks.base import Deployment, make_task
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


def restore(run: FinishedRun, S: int) -> tuple[Deployed, dict[int, str], Deployment]:
    """Return the trained network in evaluation mode with the batch-norm statistics for S, which statistics each size
    takes, and what the network is used with.

    A run that was judged with recalibrated statistics gets them chosen on its hold-out, as in training. Raise
    InputError for missing or foreign weights, and for a task whose networks are not exported.
    """
    task = make_task(replace(run.config.task, weights=None), "validation", "cpu", run.config.evaluate.recalibrate)
    around = task.deployment()
    network = task.network(0).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    task.load_weights(network, run.weights)
    own = bn_recalibration.statistics(network)
    by_size: dict[int, tuple[str, Statistics]] = dict.fromkeys({S, *run.curve.sizes}, (bn_recalibration.RUNNING, own))
    if run.config.evaluate.recalibrate is not None:
        task.evaluate(network, sorted(by_size))
        by_size = {size: (name, statistics or own) for size, (name, statistics) in task.chosen.items()}
    buffers = dict(network.named_buffers())
    for name, value in by_size[S][1].items():
        buffers[name].copy_(value)
    others = {size: statistics for size, (_, statistics) in sorted(by_size.items()) if statistics is not by_size[S][1]}
    chosen = {size: name for size, (name, _) in sorted(by_size.items())}
    return Deployed(network, around.mean, around.std, others).eval(), chosen, around


def description(
    run: FinishedRun, point: Point, chosen: Mapping[int, str], around: Deployment, needs: Sequence[Need]
) -> dict[str, Any]:
    """Return what whoever deploys the network must know, as plain values."""
    values = {k: v for k, v in Curve((point,), run.curve.metrics).rows()[0].items() if k != "S"}
    return {
        "network": run.config.task.network,
        "dataset": run.config.task.dataset,
        "size": point.S,
        "judged": values,
        "judged_on": run.judge or "validation",
        "worth_using_at": useful_sizes(run.curve),
        "asked": [str(need) for need in needs],
        "batch_norm": chosen[point.S],
        "batch_norm_by_size": dict(chosen),
        "input": "RGB pixels from 0 to 1, [N, 3, H, W], resized to size x size; normalisation is inside",
        "output": around.output,
        **around.facts,
        "crop": around.crop,
    }
