"""The training loop: a generator of reports that knows neither Ray nor Optuna nor MLflow.

So a trial of a search and a run on its own are the same code and, from the same seed, the same network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mixtune.regime import Schedule
from mixtune.training.curve import Curve
from mixtune.training.recipe import Recipe
from mixtune.training.smoothing import GradientSmoothing
from mixtune.training.task import Task


class TrainingDivergedError(Exception):
    """The loss is not finite any more."""


@dataclass(frozen=True)
class Report:
    """The state of a run at one of its report points.

    number: 1 to the number of reports; step: steps done; progress: share of the budget spent; loss: mean training loss
    since the last report; lr: of the last step; views_per_second: training only; seconds: since the start, evaluation
    included; curve: held-out results at every evaluation size.
    """

    number: int
    step: int
    progress: float
    loss: float
    lr: float
    views_per_second: float
    seconds: float
    curve: Curve


def report_steps(schedule: Schedule, reports: int) -> list[int]:
    """After which steps to report: equal shares of the budget lie between reports, the last is the final step."""
    after = np.append(schedule.progress[1:], 1.0)
    ends = [int(np.searchsorted(after, k / reports - 1e-9)) + 1 for k in range(1, reports)]
    return sorted({*ends, len(schedule)})


def train(
    task: Task,
    network: nn.Module,
    schedule: Schedule,
    recipe: Recipe,
    sizes: Sequence[int],
    reports: int,
    seed: int,
) -> Iterator[Report]:
    """Train ``network`` in place through the whole schedule, evaluating at ``sizes`` at each of ``reports`` points.

    Raises TrainingDivergedError when the mean loss of a stretch is not finite.
    """
    rates = recipe.learning_rates(schedule.progress)
    optimizer = recipe.optimizer(network)
    smooth = GradientSmoothing(network) if recipe.smoothing else None
    device = next(network.parameters()).device
    ends = report_steps(schedule, reports)
    progress = np.append(schedule.progress[1:], 1.0)

    began = mark = time.perf_counter()
    total = torch.zeros((), device=device)  # summed on the device: nothing is read back between reports
    steps = seen = 0
    network.train()
    for step, (inputs, targets) in enumerate(task.batches(schedule, seed), start=1):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[step - 1])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = task.loss(recipe, network(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if smooth is not None:
            smooth()
        optimizer.step()
        total += loss.detach()
        steps, seen = steps + 1, seen + len(targets)

        if step in ends:
            mean = float(total) / steps
            if not math.isfinite(mean):
                raise TrainingDivergedError(
                    f"the training loss became {mean} before step {step} of {len(schedule)} "
                    f"(lr {rates[step - 1]:.3g}); a lower recipe.lr or a longer recipe.warmup would help"
                )
            speed = seen / (time.perf_counter() - mark)
            curve = task.evaluate(network, sizes)
            now = time.perf_counter()
            yield Report(
                ends.index(step) + 1,
                step,
                float(progress[step - 1]),
                mean,
                float(rates[step - 1]),
                speed,
                now - began,
                curve,
            )
            mark = time.perf_counter()
            total.zero_()
            steps = seen = 0
