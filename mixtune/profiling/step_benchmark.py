"""Measure how long a training step of a batch shape and an evaluation at an image size take on this device."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from mixtune.regime import BatchShape, CostTable, Schedule
from mixtune.runtime.device import available_cpus
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks.base import Task, make_task
from mixtune.training.run import TrainingConfig
from mixtune.training.step import Engine

WARM_UP_STEPS, TIMED_STEPS = 3, 7  # of each shape; the median of the timed ones counts
PROGRESS = 1.0  # the share of the budget spent: as late in training, where no layers are frozen


def load_task(config: TrainingConfig, group: ProcessGroup = SINGLE_PROCESS) -> Task[Any]:
    """Return the task of a trial, judged on held-out images. Raises InputError for missing data."""
    return make_task(config.task, "validation", config.device, config.evaluate.recalibrate, group)


def describe_device(config: TrainingConfig) -> str:
    """Return the network, the data set and the device with its threads: what measured seconds hold for."""
    if config.device != "cpu" and torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"cpu, {config.threads or available_cpus()} threads"
    ranks = f", {config.ranks} ranks" if config.ranks > 1 else ""
    return f"{config.task.network} on {config.task.dataset}, {device}{ranks}"


class StepBenchmark:
    """A network on its task, whose steps are timed; the weights stay as they are.

    Each process of a group has one, and all are called alike. Raises InputError for missing data.
    """

    def __init__(self, config: TrainingConfig, group: ProcessGroup = SINGLE_PROCESS) -> None:
        torch.set_num_threads(config.threads or group.cpus_per_process)
        self.task = load_task(config, group)
        network = self.task.network(config.seed, config.recipe.dropout, config.recipe.drop_path)
        self.engine = Engine(self.task, network, config.recipe, config.seed, self.task.teacher(config.recipe))
        self.engine.network.train()
        self._seed = config.seed

    def step_seconds(self, shape: BatchShape) -> float:
        """Return the median seconds of a whole step (views, forward, backward, optimiser) on the task's images.

        Raises an error that ``is_out_of_memory`` knows where the device does not hold the step.
        """
        engine = self.engine
        schedule = Schedule((shape,), np.zeros(WARM_UP_STEPS + TIMED_STEPS, np.int16), np.ones(1))
        engine.prepare(schedule, np.full(len(schedule), PROGRESS), 0, lambda _: None)
        ends = [time.perf_counter()]
        for number, batch in enumerate(engine.batches(schedule, self._seed, 0)):
            engine.step(batch, 0.0, number, PROGRESS, shape)  # with a learning rate of 0
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())
        engine.graphs = None  # captured steps hold memory
        return float(np.median(np.diff(ends)[WARM_UP_STEPS:]))

    def evaluation_seconds(self, S: int) -> float:
        """Return the seconds of one evaluation at S, choosing batch-norm statistics where the task does."""
        began = time.perf_counter()
        self.task.evaluate(self.engine.network, [S])
        return time.perf_counter() - began


def gmacs_table(task: Task[Any], shapes: Iterable[BatchShape]) -> CostTable:
    """Return the GMACs of the forward pass of one step of each shape (training takes three times as many of each)."""
    shapes = list(shapes)
    per_image = {S: task.gmacs(S) for S in {shape.S for shape in shapes}}
    return CostTable.from_gmacs(per_image, shapes, task.config.network)
