"""Timing: what a training step costs by batch shape, measured, for budgets in seconds or GMACs instead of pixels."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from mixtune.errors import InputError
from mixtune.files import digest, replace_file
from mixtune.profiling import cache
from mixtune.regime import BatchShape, CostTable, Schedule
from mixtune.runtime.device import available_cpus
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.tasks.base import make_task
from mixtune.training.checkpoint import non_default_fields
from mixtune.training.run import TrainingConfig
from mixtune.training.step import Engine

WARM_UP, TIMED = 3, 7  # steps of each shape; the median of the timed ones counts
PROGRESS = 1.0  # they are as late ones: no layers are frozen


def place(config: TrainingConfig) -> str:
    """What the times hold for: the network, the data set, and the device with its threads."""
    if config.device != "cpu" and torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        where = f"cpu, {config.threads or available_cpus()} threads"
    if config.ranks > 1:
        where += f", {config.ranks} ranks"
    return f"{config.task.network} on {config.task.dataset}, {where}"


def identity(config: TrainingConfig) -> str:
    """Equal where steps and evaluations take the same memory and time."""
    sections = [non_default_fields(part) for part in (config.task, config.recipe, config.evaluate)]
    return digest(place(config), torch.__version__, *sections)


class StepBenchmark:
    """A network on its task, to try steps on; its weights stay as they are. Raises InputError for missing data.

    Where a step is shared by several ranks, each has one, and all are asked for the same.
    """

    def __init__(self, config: TrainingConfig, group: ProcessGroup = SINGLE_PROCESS) -> None:
        torch.set_num_threads(config.threads or group.cpus_per_process)
        self.task = make_task(config.task, "validation", config.device, config.evaluate.recalibrate, group)
        network = self.task.network(config.seed, config.recipe.dropout, config.recipe.drop_path)
        self.engine = Engine(self.task, network, config.recipe, config.seed, self.task.teacher(config.recipe))
        self.engine.network.train()
        self._seed = config.seed

    def seconds(self, shape: BatchShape) -> float:
        """The time of one whole step (views, forward, backward, optimiser), in real batches of the task.

        Raises what ``shortage.lacking`` knows where the device does not hold one.
        """
        engine = self.engine
        steps = Schedule((shape,), np.zeros(WARM_UP + TIMED, np.int16), np.ones(1))
        engine.prepare(steps, np.full(len(steps), PROGRESS), 0, lambda _: None)
        marks = [time.perf_counter()]
        for number, batch in enumerate(engine.batches(steps, self._seed, 0)):
            engine.train_on(batch, 0.0, number, PROGRESS, shape)  # a learning rate of 0: the weights stay as they are
            if engine.device.type == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        engine.graphs = None  # what was captured holds memory
        return statistics.median(b - a for a, b in zip(marks[WARM_UP:], marks[WARM_UP + 1 :], strict=False))

    def judging(self, S: int) -> float:
        """The time of one evaluation at S, with the choice of batch-norm statistics where the task makes one."""
        began = time.perf_counter()
        self.task.evaluate(self.engine.network, [S])
        return time.perf_counter() - began


def step_seconds(
    config: TrainingConfig,
    shapes: Iterable[BatchShape],
    known: CostTable | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> CostTable:
    """Seconds of a step of each shape.

    Shapes that ``known`` holds are not timed again. Where a step is shared by several ranks, each calls this, and the
    first one's table counts. Raises InputError for missing data.
    """
    table = known or CostTable("seconds", {}, place(config))
    return table.extended(shapes, StepBenchmark(config, group).seconds)


def gmacs_table(config: TrainingConfig, shapes: Iterable[BatchShape]) -> CostTable:
    """GMACs of one step's views, forward, of each shape (training takes three times as many, of every shape alike)."""
    task, shapes = make_task(config.task, device="cpu"), list(shapes)
    per_image = {S: task.gmacs(S) for S in {s.S for s in shapes}}
    return CostTable.from_gmacs(per_image, shapes, config.task.network)


def step_costs(
    config: TrainingConfig,
    shapes: Iterable[BatchShape],
    path: Path,
    again: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """The cost of a step of every shape in the unit of the budget, by the shape's name ("16x32").

    Times already in the file at ``path`` are used again, whatever is asked for: the study's earlier trials were given
    what they say. Where there is no such file, so are those of another study (``measurements``), unless ``again`` is
    asked for: of equal budgets and regimes both then make equal schedules. The file is brought up to date. Raises
    InputError when it was measured on another network, data set or device.
    """
    shapes = sorted(set(shapes))
    shared, measured = None, False
    if config.budget.cost == "gmacs":  # counted in milliseconds, the same on every machine
        table = gmacs_table(config, shapes)
    else:
        shared = cache.place("costs", identity(config), [str(shape) for shape in shapes])
        known = CostTable.load(path, place(config)) if path.exists() else None
        if known is None and not again:
            known = _of_another(shared, place(config))
        table = known or CostTable("seconds", {}, place(config))
        measured = not group.broadcast_flag(table.costs.keys() >= set(shapes))
        if measured:
            table = step_seconds(config, shapes, table, group)
    if group.is_main:
        replace_file(path, table.text().encode())
        if measured:
            cache.keep(shared, table.text())
    return {str(shape): cost for shape, cost in table.costs.items()}


def _of_another(path: Path | None, measured_on: str) -> CostTable | None:
    """The times that another study measured; None where there are none that can be read."""
    try:
        return CostTable.load(path, measured_on) if path else None
    except InputError:
        return None
