"""Estimate: before the first trial, what steps take is measured where trials run, and the plan is told or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mixtune.config import parse, read_yaml, to_yaml
from mixtune.errors import InputError
from mixtune.execution import cluster_checks, ray_tune, worker
from mixtune.profiling import forecast, messages, resource_profile, step_benchmark
from mixtune.profiling.concurrency import Concurrency, concurrency_for, local_resources
from mixtune.profiling.feasibility import Room
from mixtune.profiling.forecast import Plan
from mixtune.profiling.resource_profile import Footprint
from mixtune.regime import BatchShape
from mixtune.search.paths import StudyPaths, locked, save
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

MEASURED, PLANNED, COSTS = "preflight.yaml", "plan.yaml", "costs.yaml"


@dataclass(frozen=True)
class Ready:
    """What trials are run with, and what they take. room: the memory that a candidate must fit into; gpus: of the
    cluster, for trials.
    """

    training: TrainingConfig
    slots: Concurrency
    room: Room
    gpus: int
    plan: Plan


def ready(
    space: Space,
    slots: Concurrency,
    places: StudyPaths,
    n_train: int,
    left: int,
    write: Callable[[str], None],
    kept: Path | None = None,
    again: bool = False,
) -> Ready:
    """Measure once what the study needs to know, tell its plan, and keep both in its folder. Ray must be connected.

    left: trials to be run; kept: another folder for the files; again: whatever was measured before. The slots become
    fewer where memory holds fewer trials. Raises InputError when the study fits into neither memory nor disk.
    """
    kept = kept or places.folder
    device: Literal["auto", "cpu", "cuda"] = "cpu" if slots.gpus == 0 else space.device
    training = replace(space.training(slots.cpus), device=device)
    if space.budget.cost != "pixels":
        if not (path := kept / COSTS).exists():
            write(f"measuring the {space.budget.cost} of a step of every shape, once on each machine (kept in {COSTS})")
        costs = ray_tune.call(step_benchmark.step_costs, slots, training, space.shapes(), path, again)
        training = replace(training, costs=costs)
    gpus = int(ray_tune.cluster()[1]) if slots.gpus else 0
    slots, said = worker.plan_packing(space, training, slots, gpus, again)
    if said:
        write(said)
    path = kept / MEASURED
    if again or not path.exists():
        write(f"measuring the time and memory of a few steps, once on each machine (kept in {MEASURED})")
    found = _measured(space, training, slots, places, path, again)
    nodes = ray_tune.nodes()
    slots, room, said = forecast.placed(space, slots, found, sum(cpus > 0 for cpus, _ in nodes))
    if said:
        write(said)
    plan = forecast.plan(space, training, room, slots, n_train, copies=2 if places.tracking is None else 1)
    free = forecast.check_disk(plan, places.folder, left)
    for line in messages.lines(space, plan, room, free, nodes, training):
        write(line)
    save(kept / PLANNED, to_yaml(plan))
    return Ready(training, slots, room, gpus, plan)


def slots_of(space: Space, places: StudyPaths) -> Concurrency:
    """What a trial takes of this machine, or of the cluster, which is joined. Raises InputError when none fits."""
    if places.address is not None:
        ray_tune.connect(places.address, 0, 0)
        cluster_checks.check_token(places.address)
    return _fitted(space, places)


def _fitted(space: Space, places: StudyPaths) -> Concurrency:
    if places.address is None:
        return concurrency_for(space, *local_resources())
    return concurrency_for(space, *ray_tune.cluster(), ray_tune.nodes())


@dataclass(frozen=True)
class Stage:
    """A study that is to be planned: on how many images, and where. title: what is written over its plan."""

    space: Space
    n_train: int
    places: StudyPaths
    title: str = ""


def ahead(stages: Sequence[Stage], write: Callable[[str], None], again: bool = False, dry: bool = False) -> None:
    """Measure and tell what studies that follow one another will take, each and in all, before the first begins.

    again: whatever was measured before; dry: anew too, and nothing is left behind. Raises InputError as the searches
    would.
    """
    first, plans = stages[0], []
    try:
        slots = [slots_of(first.space, first.places), *(_fitted(stage.space, stage.places) for stage in stages[1:])]
        if first.places.address is None:
            ray_tune.connect(None, *local_resources())
        for stage, slot in zip(stages, slots, strict=True):
            with tempfile.TemporaryDirectory() if dry else locked(stage.places.folder) as scratch:
                if stage.places.address is not None and not dry:
                    cluster_checks.check_machines(stage.places.folder, cluster_checks.named_paths(stage.space))
                if stage.title:
                    write(stage.title)
                space, kept = stage.space, Path(scratch) if scratch else None
                made = ready(space, slot, stage.places, stage.n_train, space.trials, write, kept, again or dry)
                plans.append(made.plan)
    finally:
        ray_tune.disconnect()
    if len(plans) > 1:
        write(messages.in_all(plans))


def compared(folder: Path, hours: float) -> str:
    """What the trials of a finished study took, beside what was planned; empty where no plan was made."""
    try:
        plan = parse(read_yaml(folder / PLANNED), Plan, folder / PLANNED)
    except InputError:  # run by an earlier version
        return ""
    planned = plan.hours if plan.expected is None else plan.expected
    took = messages.occupied(plan.slots, hours)
    return f"the trials took {took}, {100 * (hours / planned - 1):+.0f} % against the plan"


def _measured(
    space: Space, training: TrainingConfig, slots: Concurrency, places: StudyPaths, path: Path, again: bool
) -> Footprint:
    """In a worker as a trial's; in this process where that is the same and spares the start of one."""
    arguments = (training, forecast.probes(space), path, again)
    alone = places.address is None and slots.gpus == 0 and slots.workers == 1
    if not alone or not training.task.in_memory:
        return _bounded(lambda too_large: ray_tune.call(resource_profile.measured, slots, *arguments, too_large))
    threads = torch.get_num_threads()
    try:
        return resource_profile.measured(*arguments)
    finally:
        torch.set_num_threads(threads)


def _bounded(measured: Callable[[BatchShape | None], Footprint]) -> Footprint:
    """What is measured up to the shape that does not fit, by fresh ranks whenever one is met."""
    too_large: BatchShape | None = None
    while True:
        try:
            return measured(too_large)
        except resource_profile.TooLargeError as err:
            too_large = err.shape
