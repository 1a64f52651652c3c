"""Footprint: the memory and time of steps and evaluations, measured on a few batch shapes where trials run.

Memory grows with the pixels of a step (S^2*B*D) and hardly with anything else, so a few shapes tell of the others.
S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mixtune.config import parse, read_yaml, to_yaml
from mixtune.errors import InputError
from mixtune.files import replace_file
from mixtune.profiling import cache, step_benchmark
from mixtune.regime import BatchShape
from mixtune.runtime.device import pick_device
from mixtune.runtime.memory import PeakMemory
from mixtune.runtime.memory import available_memory as room
from mixtune.runtime.oom import is_out_of_memory
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.training.run import TrainingConfig


class TooLargeError(InputError):
    """A step of ``shape`` did not fit into a device's memory, and every rank must begin anew to measure others."""

    def __init__(self, said: str, shape: BatchShape | None = None) -> None:
        super().__init__(said)
        self.shape = shape


@dataclass(frozen=True)
class Step:
    """A shape that was tried: seconds of a step, and bytes at its peak (``memory.Peak``)."""

    shape: BatchShape
    seconds: float
    memory: float


@dataclass(frozen=True)
class Footprint:
    """What was measured, and what follows from it for other shapes and sizes.

    place: on what; key: equal where it holds. device: "cpu" or "cuda". room: bytes that one process could have. setup:
    seconds before the first step. weights: bytes of the network. judging: seconds of one evaluation by size;
    judging_memory: bytes at its peak. too_large: the smallest shape that did not fit, where one did not. day: of the
    measurement.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    place: str
    key: str
    device: str
    room: float
    setup: float
    weights: float
    judging: Mapping[int, float]
    judging_memory: float
    steps: tuple[Step, ...]
    too_large: BatchShape | None = None
    day: str = ""

    def memory(self, shape: BatchShape) -> float:
        """Bytes at the peak of a run with this shape: measured, else from the line through what was.

        Infinite from the smallest shape on that did not fit, where the line says less than there is.
        """
        measured = {s.shape: s.memory for s in self.steps}
        if shape in measured:
            return max(self.judging_memory, measured[shape])
        likely = self._likely(shape)
        if self.too_large and shape.pixels >= self.too_large.pixels and likely <= self.room:
            return float("inf")
        return max(self.judging_memory, likely)

    def _likely(self, shape: BatchShape) -> float:
        return _line([(s.shape.pixels, s.memory) for s in self.steps], shape.pixels)

    def holds(self, room: float) -> bool:
        """Whether it is still known which shapes fit where there are ``room`` bytes now."""
        return self.too_large is None or room <= self.room or self._likely(self.too_large) > room

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of a step: measured, else at the speed per pixel between those of the nearest sizes."""
        measured = {s.shape: s.seconds for s in self.steps}
        if shape in measured:
            return measured[shape]
        # Of several shapes of one size the largest: small steps keep a device less busy.
        largest = {s.shape.S: s for s in sorted(self.steps, key=lambda s: s.shape.pixels)}
        speeds = [largest[S].seconds / largest[S].shape.pixels for S in sorted(largest)]
        return float(np.interp(shape.S, sorted(largest), speeds)) * shape.pixels

    def evaluation(self, sizes: Iterable[int]) -> float:
        """Seconds of one evaluation at these sizes: each takes a part per image and a part per pixel."""
        points = [(S**2, seconds) for S, seconds in self.judging.items()]
        return sum(_line(points, S**2) for S in sizes)


def _line(points: Sequence[tuple[int, float]], x: float) -> float:
    """The rising line of least squares, at x; through a single point, the steepest there is."""
    xs, ys = np.array(points, float).T
    slope = max(0.0, float(np.polyfit(xs, ys, 1)[0])) if len(set(xs)) > 1 else float(ys[0] / xs[0])
    return float(ys.mean() + slope * (x - xs.mean()))


def measured(
    config: TrainingConfig,
    shapes: Iterable[BatchShape],
    path: Path,
    again: bool = False,
    too_large: BatchShape | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Footprint:
    """The footprint with these shapes, which the file at ``path`` holds from then on.

    What that file holds of the same kind already is not measured again, nor what another study measured on this machine
    (``measurements``), unless ``again`` is asked for. Where a step is shared by several ranks, each calls this, and the
    first one's counts; where one of them has too little memory the others wait for it, so TooLargeError names the shape
    and fresh ranks, given it as ``too_large``, measure up to there. Raises InputError for missing data, and where not
    even the smallest shape fits.
    """
    key = step_benchmark.identity(config)
    wanted = sorted(set(shapes), key=lambda s: (s.pixels, s))
    shared = cache.place("footprints", key, [str(shape) for shape in wanted])
    own = None if again else _read(path, key, wanted)
    known = own if own or again else _of_another(shared, key, wanted, config.device)
    if not group.broadcast_flag(known is not None):
        known = _measure(config, wanted, key, too_large, group)
        if group.is_main:
            cache.keep(shared, to_yaml(known))
    if group.is_main and known is not own:
        replace_file(path, to_yaml(known).encode())
    return known  # type: ignore[return-value]  # on other ranks it is not used


def _read(path: Path, key: str, shapes: Iterable[BatchShape]) -> Footprint | None:
    """What a file holds of the same kind; None for a file that is absent, damaged or of another version."""
    try:
        known = parse(read_yaml(path), Footprint, path)
    except InputError:
        return None
    covers = known.too_large is not None or {s.shape for s in known.steps} >= set(shapes)
    return known if known.key == key and covers else None


def _of_another(path: Path | None, key: str, shapes: Iterable[BatchShape], device: str) -> Footprint | None:
    """What another study measured, with the memory that there is now."""
    known = _read(path, key, shapes) if path else None
    if known is None:
        return None
    there = room(pick_device(device))
    return replace(known, room=there) if known.holds(there) else None


def _measure(
    config: TrainingConfig, shapes: Sequence[BatchShape], key: str, too_large: BatchShape | None, group: ProcessGroup
) -> Footprint:
    began = time.perf_counter()
    stand = step_benchmark.StepBenchmark(config, group)
    setup = time.perf_counter() - began
    network, device = stand.engine.network, stand.engine.device
    weights = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    there, watch = room(device), PeakMemory(device)
    sizes = {min(config.evaluate.sizes), max(config.evaluate.sizes)}
    judging = {S: stand.judging(S) for S in sorted(sizes)}
    bits = "bf16" if config.recipe.bf16(device.type) else "float32"
    place = f"{step_benchmark.place(config)}, {bits}, torch {torch.__version__}"
    today = time.strftime("%Y-%m-%d")
    found = Footprint(place, key, device.type, there, setup, weights, judging, watch.bytes(), (), day=today)
    for shape in shapes:
        # On a CPU, who takes all memory takes others with it: what cannot fit is not tried.
        if group.broadcast_flag(shape == too_large or (len(found.steps) > 1 and found.memory(shape) > there)):
            return replace(found, too_large=shape)
        watch = PeakMemory(device)
        try:
            seconds = stand.seconds(shape)
        except Exception as err:
            if not is_out_of_memory(err):
                raise
            if found.steps and not group.is_distributed:
                return replace(found, too_large=shape)
            said = f"{place} does not hold a step of {shape} (S x B x D) in {there / 2**30:.3g} GiB"
            if found.steps:
                raise TooLargeError(said, shape) from None
            raise InputError(f"base: {said}; lower base.B: a step must take fewer pixels than that one") from None
        found = replace(found, steps=(*found.steps, Step(shape, seconds, watch.bytes())))
    return found
