"""Fine-tuning: what ENTR adds to training from scratch, here its measure of accuracy over time and its rate finder.

Source: Wanger & Frohn, ENTR. Its other parts: the pretrained start is ``task.weights``, the growing sizes are a regime,
layer groups with their own rates, frozen layers, restarts and cycles are settings of the recipe.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from mixtune.errors import InputError
from mixtune.optim.recipe import Recipe
from mixtune.regime import Schedule
from mixtune.tasks.base import Task
from mixtune.training.step import Engine


def standardised_accuracy(accuracy: float, minutes: float) -> float:
    """Return ENTR's sqrt(A / T), of an accuracy from 0 to 1 and minutes. Their T is ambiguous: say which it is."""
    if minutes <= 0 or not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy from 0 to 1 and a positive time are needed, not {accuracy:g} and {minutes:g}")
    return math.sqrt(accuracy / minutes)


@dataclass(frozen=True)
class RateTest:
    """A learning-rate range test: the loss at every rate tried, and the rate at which it fell fastest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_rate(
    task: Task[Any],
    network: nn.Module,
    schedule: Schedule,
    recipe: Recipe,
    seed: int,
    low: float = 1e-5,
    high: float = 10.0,
    steps: int = 100,
) -> RateTest:
    """Return the loss at rates that rise from ``low`` to ``high`` by the same factor at every step (Smith 2017).

    The network is copied. The loss is a running mean (0.9, unbiased); the test ends when it has grown to four times its
    minimum. The schedule gives the shapes, repeatedly when it is short. Raise InputError when the loss never fell.
    """
    recipe = dataclasses.replace(recipe, ema=0.0, frozen=0.0)
    engine = Engine(task, copy.deepcopy(network), recipe, seed)
    engine.network.train()
    rates, losses = [], []
    mean = lowest = 0.0
    number = 0
    while number < steps:
        for shape, batch in zip(schedule, task.batches(schedule, seed), strict=True):
            lr = low * (high / low) ** (number / max(1, steps - 1))
            loss = float(task.group.all_reduce(engine.step(batch, lr, number, shape=shape)))
            mean = 0.9 * mean + 0.1 * loss
            number += 1
            smooth = mean / (1 - 0.9**number)
            lowest = smooth if number == 1 else min(lowest, smooth)
            if not math.isfinite(smooth) or smooth > 4 * lowest:
                number = steps
            else:
                rates.append(lr)
                losses.append(smooth)
            if number >= steps:
                break
    best = int(np.argmin(losses)) if losses else 0
    if best < 2:
        raise InputError("the loss did not fall at any learning rate that was tried; check the data and recipe")
    slope = np.gradient(np.array(losses[: best + 1]), np.log(rates[: best + 1]))
    return RateTest(tuple(rates), tuple(losses), rates[int(np.argmin(slope))])
