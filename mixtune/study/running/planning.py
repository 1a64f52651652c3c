"""Planning: what a study will take, from a few measured steps: memory, hours of GPU or CPU, disk.

S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixtune.cli import duration
from mixtune.errors import InputError
from mixtune.regime import BatchShape, Regime
from mixtune.study.running.preflight import examples
from mixtune.study.running.slots import Slots
from mixtune.study.running.way import beside, legs
from mixtune.study.space import Space
from mixtune.study.space.feasible import Room, gib, number
from mixtune.study.space.named import surviving
from mixtune.training.footprint import Footprint
from mixtune.training.run import TrainingConfig

SAMPLED = 24  # candidates drawn evenly, whose mean stands for those of the search
SPREAD = 0.1  # from which on different costs of equal steps are told
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


def placed(space: Space, slots: Slots, found: Footprint, machines: int) -> tuple[Slots, Room, str]:
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
    """

    trials: int
    slots: Slots
    hours: float
    expected: float | None
    longest: float
    stepping: float
    disk: float
    tried: int
    refused: tuple[str, ...] = ()


def plan(space: Space, training: TrainingConfig, room: Room, slots: Slots, n_train: int, copies: int = 2) -> Plan:
    """Hours and disk of the whole study. copies: of each trial's weights, one of them MLflow's where it is local.

    Raises InputError when no candidate can be trained.
    """
    found, ways, refused = room.footprint, {}, []
    for name, params in examples(space, SAMPLED).items():
        regime = space.regime(params, name)
        if said := next(filter(None, (room.lacking(s, space.base) for s in regime.shapes)), ""):
            refused.append(said)
            continue
        try:
            way = segments(space, training, found, regime, n_train)
            ways[name] = [(step, seconds * slots.pack / slots.gain) for step, seconds in way]
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
    return Plan(space.trials, slots, most / 3600, expected, longest, 1 - other / most, disk, tried, tuple(refused))


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


def lines(space: Space, wanted: Plan, room: Room, free: float, idle: str = "") -> list[str]:
    """What was measured and what the study takes, for people. idle: what of the machines it leaves unused, and why."""
    found, slots = room.footprint, wanted.slots
    dearest = max((s for s in space.shapes() if found.memory(s) <= room.bytes), key=found.memory)
    told = [
        f"measured  {found.place}" + (f", on {found.day}" if found.day else ""),
        f"memory    {gib(found.memory(dearest))} at the dearest step, {dearest}; a trial has {gib(room.bytes)}",
        f"step      {_steps_said(space, found)}",
        f"plan      {wanted.trials} trials, {slots}",
    ]
    if idle:
        told.append(f"          {idle}")
    if wanted.refused:
        told.append(
            f"          {len(wanted.refused)} of {wanted.tried} candidates cannot be trained ({wanted.refused[0]})"
        )
    hours = [f"{occupied(slots, wanted.hours, wanted.longest)} if nothing is pruned"]
    if wanted.expected is not None and wanted.expected < wanted.hours:
        usual = occupied(slots, wanted.expected, wanted.longest)
        hours.insert(0, f"{usual} if {space.pruning.name} keeps its share")
    told.append(f"hours     {'; '.join(hours)}")
    told[-1] += f" ({100 * wanted.stepping:.0f} % of it steps, the rest evaluation and starting)"
    if space.final is not None:
        runs = sum(space.final.runs(len(space.published), space.folds))
        each = wanted.hours / (wanted.trials * space.folds)
        told.append(f"final     {runs} runs of the whole budget more, {occupied(slots, runs * each)}")
    told.append(f"disk      {gib(wanted.disk)} of weights and checkpoints at most; {gib(free)} free")
    return told


def _steps_said(space: Space, found: Footprint) -> str:
    """The step of the base, and how far equal steps differ."""
    base = found.seconds(space.base)
    per_pixel = {s.shape: s.seconds / s.shape.pixels for s in found.steps if s.shape.pixels > 0.75 * space.base.pixels}
    low, high = (extreme(per_pixel, key=lambda s: per_pixel[s]) for extreme in (min, max))
    spread = per_pixel[high] / per_pixel[low] - 1
    said = f"{1000 * base:.3g} ms at {space.base}"
    if spread > SPREAD:
        cheap, dear = (1000 * space.base.pixels * per_pixel[s] for s in (low, high))
        more = f"{dear:.3g} ms at {high}, {100 * spread:.0f} % more"
        return f"{said}; the same pixels take {cheap:.3g} ms at {low} and {more}"
    return f"{said}; within {100 * spread:.0f} % for every shape that was tried"


def occupied(slots: Slots, hours: float, longest: float = 0.0) -> str:
    """Hours of trials as hours of what they occupy, and how long they take by the clock."""
    return _said([_occupied(slots, hours, longest)])


def in_all(plans: Sequence[Plan]) -> str:
    """The hours of studies that follow one another."""
    most = _said([_occupied(p.slots, p.hours, p.longest) for p in plans])
    usual = _said([_occupied(p.slots, p.hours if p.expected is None else p.expected, p.longest) for p in plans])
    return (
        f"in all    {most if usual == most else f'{usual} if the pruner keeps its share; {most}'} if nothing is pruned"
    )


def _occupied(slots: Slots, hours: float, longest: float) -> tuple[float, str, float]:
    """How many hours of what, and by the clock."""
    taken, what = (slots.gpus / slots.pack, "GPU-hours") if slots.gpus else (slots.cpus, "core-hours")
    return hours * slots.processes * taken, what, max(longest, hours / slots.at_once)


def _said(parts: Sequence[tuple[float, str, float]]) -> str:
    kinds = {what: sum(n for n, kind, _ in parts if kind == what) for _, what, _ in parts}
    amounts = " and ".join(f"{number(n)} {what}" for what, n in kinds.items())
    return f"{amounts} in {duration(3600 * sum(clock for *_, clock in parts))}"
