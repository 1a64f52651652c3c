"""Measure steps where trials run, before the first one, and report or refuse what the study takes."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from mixtune.config import parse, read_yaml, to_plain, to_yaml
from mixtune.errors import InputError
from mixtune.execution import cluster_checks, ray_tune
from mixtune.files import digest
from mixtune.profiling import forecast, messages, packing, resource_profile, step_benchmark
from mixtune.profiling.concurrency import Concurrency, concurrency_for, local_resources, pack_limit, packed
from mixtune.profiling.forecast import Forecast
from mixtune.profiling.resource_profile import ResourceProfile, gib
from mixtune.regime import Budget, CostTable
from mixtune.search.paths import StudyPaths, locked, save_text
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

PROFILE, FORECAST, COSTS = "profile.yaml", "plan.yaml", "costs.yaml"  # in the study's folder


@dataclass(frozen=True)
class TrialSetup:
    """What trials are run with. profile: with the memory of each process; gpus: of the cluster, for trials."""

    training: TrainingConfig
    concurrency: Concurrency
    profile: ResourceProfile
    gpus: int
    forecast: Forecast


@dataclass(frozen=True)
class StudyToRun:
    """A study with the number of its training images. title: what is written over its forecast."""

    space: Space
    paths: StudyPaths
    n_train: int
    title: str = ""


def find_concurrency(space: Space, paths: StudyPaths) -> Concurrency:
    """Return what a trial takes of this machine, or of the cluster, which is joined.

    Raises InputError when there is no room for a trial.
    """
    if paths.address is not None:
        ray_tune.connect(paths.address, 0, 0)
        cluster_checks.check_token(paths.address)
    return _concurrency(space, paths)


def _concurrency(space: Space, paths: StudyPaths) -> Concurrency:
    return concurrency_for(space, [local_resources()] if paths.address is None else ray_tune.nodes())


def prepare_trials(
    study: StudyToRun,
    concurrency: Concurrency,
    trials_left: int,
    write: Callable[[str], None],
    remeasure: bool = False,
    folder: Path | None = None,
) -> TrialSetup:
    """Measure what the study needs to know, write its forecast, and keep both in its folder. Ray must be connected.

    remeasure: also what the study has measured before, but for the costs that its budget counts; folder: where to keep
    the files instead. Fewer trials run at once where memory holds fewer. Raises InputError when the study fits into
    neither memory nor disk.
    """
    space, folder = study.space, folder or study.paths.folder
    device: Literal["auto", "cpu", "cuda"] = "cpu" if concurrency.gpus == 0 else space.device
    training = replace(space.training(concurrency.cpus), device=device)
    gpus = int(ray_tune.cluster()[1]) if concurrency.gpus else 0
    profile = _profile(study, training, concurrency, gpus, write, folder / PROFILE, remeasure)
    if space.budget.cost != "pixels":
        training = replace(training, costs=_costs(space, training, profile, folder / COSTS))
    concurrency = packed(space, concurrency, gpus, profile.packing)
    nodes, wanted = ray_tune.nodes(), concurrency.at_once
    concurrency, profile = forecast.fit_memory(space, concurrency, profile, sum(cpus > 0 for cpus, _ in nodes))
    if concurrency.at_once < wanted:
        write(
            f"memory holds {concurrency.at_once} trials at once, with {gib(profile.available_memory)} for each process"
        )
    copies = 2 if study.paths.tracking is None else 1
    plan = forecast.forecast_study(space, training, profile, concurrency, study.n_train, copies)
    free_disk = forecast.check_disk(plan, study.paths.folder, trials_left)
    for line in messages.forecast_lines(space, plan, profile, free_disk, nodes):
        write(line)
    save_text(folder / FORECAST, to_yaml(plan))
    return TrialSetup(training, concurrency, profile, gpus, plan)


def forecast_studies(
    studies: Sequence[StudyToRun], write: Callable[[str], None], remeasure: bool = False, dry_run: bool = False
) -> None:
    """Measure and report what studies that follow one another take, each and in all, before the first begins.

    dry_run: measure anew, and leave nothing behind. Raises InputError as the searches would.
    """
    first, forecasts = studies[0], []
    try:
        shares = [find_concurrency(first.space, first.paths)]
        shares += [_concurrency(study.space, study.paths) for study in studies[1:]]
        if first.paths.address is None:
            ray_tune.connect(None, *local_resources())
        for study, concurrency in zip(studies, shares, strict=True):
            with tempfile.TemporaryDirectory() if dry_run else locked(study.paths.folder) as scratch:
                if study.paths.address is not None and not dry_run:
                    cluster_checks.check_machines(study.paths.folder, cluster_checks.named_paths(study.space))
                if study.title:
                    write(study.title)
                folder = Path(scratch) if scratch else None
                setup = prepare_trials(study, concurrency, study.space.trials, write, remeasure or dry_run, folder)
                forecasts.append(setup.forecast)
    finally:
        ray_tune.disconnect()
    if len(forecasts) > 1:
        write(messages.total_line(forecasts))


def _profile(
    study: StudyToRun,
    training: TrainingConfig,
    concurrency: Concurrency,
    gpus: int,
    write: Callable[[str], None],
    path: Path,
    remeasure: bool,
) -> ResourceProfile:
    """Return the profile in the file at ``path``, else measure it and save it there.

    It is measured in a worker as a trial's; in this process where that is the same and starts sooner. With a budget in
    seconds every shape is measured.
    """
    space, local = study.space, study.paths.address is None
    shapes = space.shapes() if space.budget.cost == "seconds" else resource_profile.benchmark_shapes(space)
    machine = (platform.node() if local else study.paths.address, step_benchmark.describe_device(training))
    settings = to_plain(replace(training, budget=Budget(1.0)))
    key = digest(torch.__version__, machine, concurrency.gpus, settings, [str(shape) for shape in shapes])
    if not remeasure and (known := _read(path)) and known.key == key:
        return known
    write(f"measuring the time and memory of a few steps (kept in {path.name})")
    if local and concurrency.gpus == 0 and concurrency.workers == 1 and training.task.in_memory:
        threads = torch.get_num_threads()
        try:
            profile = resource_profile.measure_profile(training, shapes)
        finally:
            torch.set_num_threads(threads)
    else:
        profile = ray_tune.call(resource_profile.measure_profile, concurrency, training, shapes)
    limit = min(pack_limit(space, concurrency, gpus), int(0.8 * profile.available_memory / profile.memory(space.base)))
    if limit > 1 and space.resources.pack is None:
        speeds = ray_tune.call(packing.measure_packing, concurrency, training, space.base, limit)
        profile = replace(profile, packing=speeds)
    profile = replace(profile, key=key)
    save_text(path, to_yaml(profile))
    return profile


def _costs(space: Space, training: TrainingConfig, profile: ResourceProfile, path: Path) -> dict[str, float]:
    """Return the cost of a step of every shape in the unit of the budget, by the shape's name ("16x32").

    What the study's file at ``path`` holds stays, because earlier trials spent by that; the rest is added to it. Raises
    InputError when the file was measured on another network, data set or device.
    """
    if space.budget.cost == "gmacs":
        task = step_benchmark.load_task(replace(training, device="cpu"))
        table = step_benchmark.gmacs_table(task, space.shapes())
    else:
        table = CostTable("seconds", {s.shape: s.seconds for s in profile.steps}, profile.measured_on)
    if path.exists():
        table = replace(table, costs={**table.costs, **CostTable.load(path, table.measured_on).costs})
    save_text(path, table.text())
    return {str(shape): cost for shape, cost in table.costs.items()}


def _read(path: Path) -> ResourceProfile | None:
    """Return the profile in a file; None where it is absent, damaged or of another version."""
    try:
        return parse(read_yaml(path), ResourceProfile, path)
    except InputError:
        return None
