"""Telling: what was measured and what a study takes, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from mixtune.cli import duration
from mixtune.profiling.concurrency import Concurrency, processes_per_machine, unused_gpus
from mixtune.profiling.feasibility import Room, gib, number
from mixtune.profiling.forecast import Plan
from mixtune.profiling.resource_profile import Footprint
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig
from mixtune.training.torch_compile import compiling_pays

SPREAD = 0.1  # from which on different costs of equal steps are told


def lines(
    space: Space,
    wanted: Plan,
    room: Room,
    free: float,
    nodes: Sequence[tuple[float, float]],
    training: TrainingConfig,
) -> list[str]:
    """What was measured and what the study takes of these machines (CPUs and GPUs of each), for people."""
    found, slots = room.footprint, wanted.slots
    dearest = max((s for s in space.shapes() if found.memory(s) <= room.bytes), key=found.memory)
    told = [
        f"measured  {found.place}" + (f", on {found.day}" if found.day else ""),
        f"memory    {gib(found.memory(dearest))} at the dearest step, {dearest}; a trial has {gib(room.bytes)}",
        f"step      {_steps_said(space, found)}",
        f"plan      {wanted.trials} trials, {slots}",
    ]
    if idle := unused_gpus(space, slots, nodes):
        told.append(f"          {idle}")
    if wanted.refused:
        told.append(
            f"          {len(wanted.refused)} of {wanted.tried} candidates cannot be trained ({wanted.refused[0]})"
        )
    if wanted.ahead:
        told.append(f"loader    {_loader_said(wanted, nodes)}")
    hours = [f"{occupied(slots, wanted.hours, wanted.longest)} if nothing is pruned"]
    if wanted.expected is not None and wanted.expected < wanted.hours:
        usual = occupied(slots, wanted.expected, wanted.longest)
        hours.insert(0, f"{usual} if {space.pruning.name} keeps its share")
    told.append(f"hours     {'; '.join(hours)}")
    told[-1] += f" ({100 * wanted.stepping:.0f} % of it steps, the rest evaluation and starting)"
    if said := uncompiled(training, found.device, wanted):
        told.append(f"          {said}")
    if space.final is not None:
        runs = sum(space.final.runs(len(space.published), space.folds))
        each = wanted.hours / (wanted.trials * space.folds)
        told.append(f"final     {runs} runs of the whole budget more, {occupied(slots, runs * each)}")
    told.append(f"disk      {gib(wanted.disk)} of weights and checkpoints at most; {gib(free)} free")
    return told


def uncompiled(training: TrainingConfig, device: str, plan: Plan) -> str:
    """That the hours are those of steps which are not compiled, where trials are long enough to compile theirs.

    What it would gain is not measured: that takes the better part of a minute per shape, as long as all else together.
    """
    workers = plan.slots.workers
    captured = workers == 1 and training.task.in_memory
    synced = workers > 1 and training.recipe.sync_bn
    stepping = 3600 * plan.longest * plan.stepping * plan.slots.gain / plan.slots.pack
    if device != "cuda" or captured or synced or not compiling_pays(stepping):
        return ""
    return "of steps issued one by one; trials as long as these compile theirs where it pays, and take less"


def _loader_said(wanted: Plan, nodes: Sequence[tuple[float, float]]) -> str:
    """What images made ahead of time take of a process and, where one has several, of a machine."""
    slots, n = wanted.slots, wanted.readers
    each = "a trial" if slots.processes == 1 else "each of its processes"
    who = f"{n} reader{'s' * (n > 1)} for {each}" if n else f"no readers, {each} decodes"
    together = min(slots.at_once * slots.processes, max(processes_per_machine(slots.cpus, slots.gpus, nodes)))
    said = f"{who}; at most {gib(wanted.ahead)} of images made ahead"
    return said + (f", {gib(together * wanted.ahead)} of a machine that has {together} at once" * (together > 1))


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


def occupied(slots: Concurrency, hours: float, longest: float = 0.0) -> str:
    """Hours of trials as hours of what they occupy, and how long they take by the clock."""
    return _said([_occupied(slots, hours, longest)])


def in_all(plans: Sequence[Plan]) -> str:
    """The hours of studies that follow one another."""
    most = _said([_occupied(p.slots, p.hours, p.longest) for p in plans])
    usual = _said([_occupied(p.slots, p.hours if p.expected is None else p.expected, p.longest) for p in plans])
    return (
        f"in all    {most if usual == most else f'{usual} if the pruner keeps its share; {most}'} if nothing is pruned"
    )


def _occupied(slots: Concurrency, hours: float, longest: float) -> tuple[float, str, float]:
    """How many hours of what, and by the clock."""
    taken, what = (slots.gpus / slots.pack, "GPU-hours") if slots.gpus else (slots.cpus, "core-hours")
    return hours * slots.processes * taken, what, max(longest, hours / slots.at_once)


def _said(parts: Sequence[tuple[float, str, float]]) -> str:
    kinds = {what: sum(n for n, kind, _ in parts if kind == what) for _, what, _ in parts}
    amounts = " and ".join(f"{number(n)} {what}" for what, n in kinds.items())
    return f"{amounts} in {duration(3600 * sum(clock for *_, clock in parts))}"
