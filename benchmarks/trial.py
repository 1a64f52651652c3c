"""The trials that the GPU benchmarks time, on random images: a 32x64 mixture of ResNet-44, and ResNet-50 at one size.

Where there is no GPU they are small ones. S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from benchmarks.common import random_images
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Regime, Schedule, published
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.step import Engine

BASE, SIZES = BatchShape(32, 64), (16, 24, 32, 48)


def network_of(device: str) -> str:
    """ResNet-44 on a GPU; on a CPU, where the benchmarks are only rehearsed, a small one."""
    return "cifar_resnet44" if device == "cuda" else "cifar_resnet8"


def images(device: str) -> contextlib.AbstractContextManager[None]:
    """CIFAR-10's number of random images in the block; few of them for a rehearsal."""
    return random_images(50_000 if device == "cuda" else 2000)


def description(device: str, epochs: float = 20) -> tuple[Regime, TrainingConfig]:
    """MixSize B+ and how it is trained."""
    return published("mixsize_b", BASE, SIZES, 4), _training(network_of(device), 32, device, epochs)


def large(device: str) -> tuple[Regime, TrainingConfig]:
    """ResNet-50 at 224x256, and how it is trained; for a rehearsal at 32x2."""
    base = BatchShape(224, 256) if device == "cuda" else BatchShape(32, 2)
    return published("fixed", base, [base.S], 32), _training("resnet50", base.S, device, 1)


def _training(network: str, S: int, device: str, epochs: float) -> TrainingConfig:
    task, evaluate = ClassificationConfig("cifar10", network), Evaluation((S,), 1)
    return TrainingConfig(task, Budget(epochs), evaluate, Recipe(), device=device, threads=1)  # type: ignore[arg-type]


def steps(
    trial: Run, schedule: Schedule, captured: bool, seed: int = 0, say: Callable[[str], None] | None = None
) -> Iterator[int]:
    """Do the steps of the schedule; gives each one's number before it is done.

    captured: as the engine does them, else issued one by one. say: is told how they are computed; without it the engine
    is not asked whether compiling them pays, for which it would time some.
    """
    trial.network.train()
    engine = Engine(trial.task, trial.network, trial.recipe, seed, recorder=None if captured else "off")
    if captured or say:
        engine.prepare(schedule, schedule.progress, 0, say or (lambda _: None))
    for step, batch in enumerate(engine.batches(schedule, seed, 0)):
        yield step
        engine.step(batch, 0.01, step, 1.0, schedule.shapes[schedule.index[step]])


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
