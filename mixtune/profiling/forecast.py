"""Planning: what a study will take, from a few measured steps: memory, hours of GPU or CPU, disk.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from mixtune.data.loader import memory_ahead
from mixtune.errors import InputError
from mixtune.profiling.concurrency import Concurrency
from mixtune.profiling.feasibility import Room, gib
from mixtune.profiling.preflight import examples
from mixtune.profiling.resource_profile import Footprint
from mixtune.profiling.trial_parts import beside, legs
from mixtune.regime import BatchShape, Regime, Shard
from mixtune.search.optuna_factories import surviving
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig

SAMPLED = 24  # candidates drawn evenly, whose mean stands for those of the search
COPIES = 4  # of the weights in a checkpoint: themselves, momentum, their average, and the file that it replaces


def probes(space: Space) -> list[BatchShape]:
    """The shapes to measure: the dearest and the cheapest, the ends of sizes and of copies, and the base.

    Half and a quarter of the base tell how memory grows before the larger ones are tried.
    """
    shapes = space.shapes()
    parts = [replace(space.base, B=max(1, space.base.B // k)) for k in (1, 2, 4)]
    ends = [s for S in (shapes[0].S, shapes[-1].S) for s in shapes if s.S == S]
    least, most = (extreme(shapes, key=lambda s: s.pixels) for extreme in (min, max))
    few, many = (extreme(ends, key=lambda s: (s.D, s.S)) for extreme in (min, max))
    return sorted({*parts, least, most, few, many, ends[-1]})


def placed(space: Space, slots: Concurrency, found: Footprint, machines: int) -> tuple[Concurrency, Room, str]:
    """What each worker has of the memory, trials at once reduced to what it holds on CPUs, and a sentence about that.

    Raises InputError when the base shape does not fit; candidates with shapes that do not are told from others later.
    """
    if found.device == "cuda":
        room = Room(found, found.room * min(1.0, slots.gpus) / slots.pack)
        said = ""
    else:
        memory = [m for m in map(found.memory, space.shapes()) if m <= found.room]  # others are not trained
        dearest = max(memory, default=found.memory(space.base))
        fit = max(1, machines * int(found.room / dearest) // slots.processes)
        said = "" if fit >= slots.at_once else f"memory holds {fit} trials at once, of {gib(dearest)} each"
        slots = replace(slots, at_once=min(fit, slots.at_once))
        room = Room(found, found.room / -(-slots.at_once * slots.processes // machines))
    if lacking := room.lacking(space.base, space.base):
        raise InputError(f"base: {lacking}")
    return slots, room, said


def segments(
    space: Space, training: TrainingConfig, found: Footprint, regime: Regime, n_train: int
) -> list[tuple[int, float]]:
    """The way of a trial by itself as (step of the pruner, seconds since the one before): none of a fold that trains
    beside the one before.

    Raises ValueError for an infeasible one.
    """
    once, ways = found.evaluation(space.evaluate.sizes), []
    runs: dict[float, float] = {}  # seconds of all steps of a run, by its share of the budget
    for step, share, parts, k in legs(space):
        if step in beside(space):
            ways.append((step, 0.0))
            continue
        if share not in runs:
            schedule = replace(training, share=share).schedule(regime, n_train)
            counted = zip(schedule.shapes, schedule.counts, strict=True)
            runs[share] = sum(found.seconds(s) * int(n) for s, n in counted)
        ways.append((step, runs[share] / parts + once + found.setup * (k == 0)))
    return ways


@dataclass(frozen=True)
class Plan:
    """What a study takes.

    hours: of trials, if none is pruned; expected: if the pruner keeps what it is set to keep (None where it is not set
    to keep a share); longest: of a single trial; stepping: the share of hours that is spent in steps; disk: bytes of
    weights and checkpoints; tried: how many candidates this was reckoned with; refused: why some cannot be trained.
    readers: processes that read image files for each of a trial's own, and ahead: bytes of the images that they have
    made ahead of time, at most; 0 where images are held in memory.
    """

    trials: int
    slots: Concurrency
    hours: float
    expected: float | None
    longest: float
    stepping: float
    disk: float
    tried: int
    refused: tuple[str, ...] = ()
    readers: int = 0
    ahead: float = 0.0


def plan(space: Space, training: TrainingConfig, room: Room, slots: Concurrency, n_train: int, copies: int = 2) -> Plan:
    """Hours and disk of the whole study. copies: of each trial's weights, one of them MLflow's where it is local.

    Raises InputError when no candidate can be trained.
    """
    found, ways, refused, ahead = room.footprint, {}, [], 0
    readers = training.task.readers(slots.cpus)
    last = Shard(space.resources.workers - 1, space.resources.workers)  # what does not divide evenly, it has more of
    for name, params in examples(space, SAMPLED).items():
        regime = space.regime(params, name)
        if said := next(filter(None, (room.lacking(s, space.base) for s in regime.shapes)), ""):
            refused.append(said)
            continue
        try:
            way = segments(space, training, found, regime, n_train)
            ways[name] = [(step, seconds * slots.pack / slots.gain) for step, seconds in way]
            if not training.task.in_memory:
                ahead = max(ahead, memory_ahead(training.schedule(regime, n_train), readers, last)[1])
        except ValueError as err:
            refused.append(str(err))
    if not ways:
        raise InputError(f"search: none of {len(refused)} candidates can be trained (the last: {refused[-1]})")
    first = [way for name, way in ways.items() if name in space.to_the_end][: space.trials]
    drawn = [way for name, way in ways.items() if name not in space.to_the_end] or first
    whole = [sum(seconds for _, seconds in way) for way in (*first, *drawn)]
    searched = (space.trials - len(first)) / len(drawn)
    certain = sum(whole[: len(first)])
    most = certain + searched * sum(whole[len(first) :])
    shares = [surviving(space, step) for step, _ in drawn[0][:-1]]
    expected = None
    if None not in shares:
        goes_on = [1.0, *(s for s in shares if s is not None)]
        parts = [s * seconds for way in drawn for s, (_, seconds) in zip(goes_on, way, strict=True)]
        expected = (certain + searched * sum(parts)) / 3600
    runs = len(space.stages) - len(beside(space))  # one after the other
    other = found.evaluation(space.evaluate.sizes) * sum(s > 0 for _, s in drawn[0]) + found.setup * runs
    other *= space.trials * slots.pack / slots.gain
    disk = found.weights * (copies * space.trials + COPIES * len(space.stages) * slots.at_once)
    tried, longest = len(ways) + len(refused), max(whole) / 3600
    stepping, why = 1 - other / most, tuple(refused)
    return Plan(space.trials, slots, most / 3600, expected, longest, stepping, disk, tried, why, readers, ahead)


def check_disk(wanted: Plan, folder: Path, left: int) -> float:
    """Bytes that are free where the study is written.

    left: trials that are still to be run. Raises InputError when their weights and checkpoints need more.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    needs = wanted.disk * left / wanted.trials
    if needs > free:
        fits = wanted.trials - left + int(left * free / needs)
        raise InputError(
            f"--out {folder}: the weights and checkpoints of {left} trials take about {gib(needs)} and {gib(free)} are "
            f"free; trials={fits} would fit, or name another folder"
        )
    return float(free)
