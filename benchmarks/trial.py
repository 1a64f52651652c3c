"""The trial that the GPU benchmarks time: a 32x64 mixture on random images, ResNet-44 on a GPU, ResNet-8 elsewhere.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from benchmarks.common import random_images
from mixtune.regime import BatchShape, Budget, Regime, Schedule, published
from mixtune.training.engine import Engine
from mixtune.training.learning.recipe import Recipe
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.task import TaskConfig

BASE, SIZES = BatchShape(32, 64), (16, 24, 32, 48)


def network_of(device: str) -> str:
    """ResNet-44 on a GPU; on a CPU, where the benchmarks are only rehearsed, a small one."""
    return "cifar_resnet44" if device == "cuda" else "cifar_resnet8"


def images(device: str) -> contextlib.AbstractContextManager[None]:
    """CIFAR-10's number of random images in the block; few of them for a rehearsal."""
    return random_images(50_000 if device == "cuda" else 2000)


def description(device: str, epochs: float = 20) -> tuple[Regime, TrainingConfig]:
    """MixSize B+ and how it is trained."""
    task, evaluate = TaskConfig("cifar10", network_of(device)), Evaluation((32,), 1)
    config = TrainingConfig(task, Budget(epochs), evaluate, Recipe(), device=device, threads=1)  # type: ignore[arg-type]
    return published("mixsize_b", BASE, SIZES, 4), config


def steps(trial: Run, schedule: Schedule, captured: bool, seed: int = 0) -> Iterator[int]:
    """Do the steps of the schedule; gives each one's number before it is done.

    captured: as the engine does them, else issued one by one.
    """
    trial.network.train()
    engine = Engine(trial.task, trial.network, trial.recipe, seed, recorder=None if captured else "off")
    if captured:  # else the engine would look whether compiling pays, and wait for every step that it times
        engine.prepare(schedule, schedule.progress, 0, lambda _: None)
    for step, batch in enumerate(engine.batches(schedule, seed, 0)):
        yield step
        engine.train_on(batch, 0.01, step, 1.0, schedule.shapes[schedule.index[step]])


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
