"""Forecast what a study takes, hours of GPU or CPU and disk, from the profile of a few steps.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mixtune.errors import InputError
from mixtune.profiling.checks import example_points
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.feasibility import infeasible
from mixtune.profiling.resource_profile import ResourceProfile, gib
from mixtune.search.optuna_factories import surviving
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

SAMPLED = 24  # candidates drawn at random, whose mean stands for those of the search
CHECKPOINT_COPIES = 4  # of the weights: themselves, momentum, their average, and the file that is replaced


@dataclass(frozen=True)
class TrialPart:
    """What a trial trains between two decisions of the pruner.

    share: of the budget, of the training run that the part belongs to; parts: equal parts of that run. concurrent: a
    fold that trains at the same time as the part before. reached: share of the searched trials that come to this part,
    None where the pruner is not set to keep a share.
    """

    share: float
    parts: int
    starts_run: bool
    concurrent: bool
    reached: float | None


def trial_parts(space: Space) -> list[TrialPart]:
    """Return the parts of a trial that is not pruned, in order."""
    parts: list[TrialPart] = []
    step = 0  # of the pruner, at the end of the part before
    for i, stage in enumerate(space.stages):
        count = space.evaluate.reports if i == 0 and space.reports_on_the_way else 1
        concurrent = stage.fold % space.resources.folds_at_once > 0
        for k in range(count):
            reached = 1.0 if not parts else parts[-1].reached if concurrent else surviving(space, step)
            parts.append(TrialPart(stage.share, count, k == 0, concurrent, reached))
            step = stage.step - count + 1 + k
    return parts


def search_total(space: Space, costs: Sequence[float]) -> tuple[float, float | None]:
    """Return what all trials cost, if each of their parts costs so much on average: if none is pruned, and if the
    pruner keeps the share that it is set to keep (None where it is set to keep none).
    """
    unpruned = min(space.trials, len(space.to_the_end))
    reached = [part.reached for part in trial_parts(space)]
    shares = [share for share in reached if share is not None]
    if len(shares) < len(reached):
        return space.trials * sum(costs), None
    pruned = sum(share * cost for share, cost in zip(shares, costs, strict=True))
    return space.trials * sum(costs), unpruned * sum(costs) + (space.trials - unpruned) * pruned


def search_runs(space: Space) -> tuple[float, float | None]:
    """Return ``search_total`` counted in training runs of the whole budget."""
    return search_total(space, [part.share / part.parts for part in trial_parts(space)])


@dataclass(frozen=True)
class Forecast:
    """What a study takes; it is kept in the study's folder, to be compared with what the study took.

    hours: of all trials if none is pruned; expected_hours: if the pruner keeps its share, None where it is set to keep
    none; longest_hours: of one trial; step_share: of the hours that is spent in steps; disk: bytes of weights and
    checkpoints; candidates: how many were tried for this, and refused: why some of them cannot be trained.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    trials: int
    concurrency: Concurrency
    hours: float
    expected_hours: float | None
    longest_hours: float
    step_share: float
    disk: float
    candidates: int
    refused: tuple[str, ...] = ()


def forecast_study(
    space: Space,
    training: TrainingConfig,
    profile: ResourceProfile,
    concurrency: Concurrency,
    n_train: int,
    copies: int = 2,
) -> Forecast:
    """Return the forecast of all trials. copies: of each trial's weights, one of them MLflow's where that is local.

    Raises InputError when no candidate can be trained.
    """
    parts, evaluation = trial_parts(space), profile.evaluation_seconds(space.evaluate.sizes)
    other = np.array([0.0 if p.concurrent else evaluation + profile.setup * p.starts_run for p in parts])
    rows, refused = [], []
    for name, params in example_points(space, SAMPLED).items():
        regime = space.regime(params, name)
        if reason := infeasible(space, regime, training, n_train, profile):
            refused.append(reason)
            continue
        runs = {}  # seconds of all steps of a run, by its share of the budget
        for share in {part.share for part in parts}:
            schedule = replace(training, share=share).schedule(regime, n_train)
            steps = zip(schedule.shapes, schedule.counts, strict=True)
            runs[share] = sum(profile.step_seconds(shape) * int(n) for shape, n in steps)
        rows.append([0.0 if p.concurrent else runs[p.share] / p.parts for p in parts])
    if not rows:
        raise InputError(f"search: none of {len(refused)} candidates can be trained (the last: {refused[-1]})")
    hours = (np.array(rows) + other) * concurrency.pack / concurrency.gain / 3600  # [candidates, parts]
    total, expected = search_total(space, hours.mean(0).tolist())
    step_share = float(np.sum(rows) / np.sum(np.array(rows) + other))
    disk = profile.weights * (copies * space.trials + CHECKPOINT_COPIES * len(space.stages) * concurrency.at_once)
    tried, longest = len(rows) + len(refused), float(hours.sum(1).max())
    return Forecast(space.trials, concurrency, total, expected, longest, step_share, disk, tried, tuple(refused))


def fit_memory(
    space: Space, concurrency: Concurrency, profile: ResourceProfile, machines: int
) -> tuple[Concurrency, ResourceProfile]:
    """Return the profile with the memory that each process of a trial has; on CPUs no more trials than that holds.

    Raises InputError when the base shape does not fit; candidates with other shapes that do not are refused later.
    """
    if profile.device == "cuda":
        share = min(1.0, concurrency.gpus) / concurrency.pack
    else:
        sizes = [m for m in map(profile.memory, space.shapes()) if m <= profile.available_memory]
        dearest = max(sizes, default=profile.memory(space.base))
        fits = machines * int(profile.available_memory / dearest) // concurrency.processes
        concurrency = replace(concurrency, at_once=max(1, min(fits, concurrency.at_once)))
        share = 1 / -(-concurrency.at_once * concurrency.processes // machines)
    profile = replace(profile, available_memory=profile.available_memory * share)
    if reason := profile.memory_exceeded(space.base, space.base):
        raise InputError(f"base: {reason}")
    return concurrency, profile


def check_disk(forecast: Forecast, folder: Path, trials_left: int) -> float:
    """Return the bytes that are free where the study is written.

    Raises InputError when the weights and checkpoints of the trials that are left need more.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    needed = forecast.disk * trials_left / forecast.trials
    if needed > free:
        fits = forecast.trials - trials_left + int(trials_left * free / needed)
        raise InputError(
            f"--out {folder}: the weights and checkpoints of {trials_left} trials take about {gib(needed)} and "
            f"{gib(free)} are free; trials={fits} would fit, or name another folder"
        )
    return float(free)
