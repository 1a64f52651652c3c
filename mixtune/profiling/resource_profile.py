"""Measure the memory and time of one network on one device, on a few batch shapes that tell of all others.

Memory grows with the pixels of a step (S^2*B*D) and hardly with anything else: one line, memory ~ a + b * pixels.
S, B, D as in ``regime.shapes``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from mixtune.errors import InputError
from mixtune.profiling.step_benchmark import StepBenchmark, describe_device
from mixtune.regime import BatchShape
from mixtune.runtime.memory import PeakMemory, available_memory
from mixtune.runtime.oom import is_out_of_memory
from mixtune.runtime.process_group import SINGLE_PROCESS, ProcessGroup
from mixtune.search.space import Space
from mixtune.training.run import TrainingConfig


@dataclass(frozen=True)
class MeasuredStep:
    """The seconds of a step of this shape, and the bytes at its peak."""

    shape: BatchShape
    seconds: float
    memory: float


@dataclass(frozen=True)
class ResourceProfile:
    """What was measured, and what follows for other shapes and sizes. Times in seconds, memory in bytes.

    measured_on: network, data set and device; device: "cpu" or "cuda". available_memory: of one process; setup: before
    the first step; weights: of the network; evaluation: seconds by image size. packing: steps per second of all trials
    that share a GPU, by how many they are. key: equal where the profile holds.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    measured_on: str
    day: str
    device: str
    available_memory: float
    setup: float
    weights: float
    evaluation: Mapping[int, float]
    evaluation_memory: float
    steps: tuple[MeasuredStep, ...]
    packing: Mapping[int, float] = field(default_factory=dict)
    key: str = ""

    def memory(self, shape: BatchShape) -> float:
        """Return the bytes at the peak of a run with this shape."""
        fixed, per_pixel = self._memory_line()
        return max(self.evaluation_memory, fixed + per_pixel * shape.pixels)

    def memory_exceeded(self, shape: BatchShape, base: BatchShape) -> str:
        """Return why a step of this shape does not fit, with the base.B that would fit; empty where it fits."""
        needed, available = self.memory(shape), self.available_memory
        if needed <= available:
            return ""
        fixed, per_pixel = self._memory_line()
        # Batches are in proportion to the base's: the largest base.B whose step at this size has so few images.
        pixels = (available - fixed) / per_pixel if per_pixel and available > self.evaluation_memory else 0.0
        images = int(pixels / (shape.S**2 * shape.D))
        fits = ((images + 1) * base.B - 1) // shape.B if images > 0 else 0
        hint = f"base.B {fits} would fit" if fits else "no batch would fit: leave the size out or take another network"
        return (
            f"at {shape.S} px a batch of {shape.B * shape.D} needs about {gib(needed)} and a trial has "
            f"{gib(available)} of {'the GPU' if self.device == 'cuda' else 'the machine'}: {hint}"
        )

    def step_seconds(self, shape: BatchShape) -> float:
        """Return the seconds of a step: measured, or at a speed per pixel between those of the nearest sizes."""
        for step in self.steps:
            if step.shape == shape:
                return step.seconds
        # Of several shapes of one size the largest counts: small steps keep a device less busy.
        speeds = {s.shape.S: s.seconds / s.shape.pixels for s in sorted(self.steps, key=lambda s: s.shape.pixels)}
        sizes = sorted(speeds)
        return float(np.interp(shape.S, sizes, [speeds[S] for S in sizes])) * shape.pixels

    def evaluation_seconds(self, sizes: Iterable[int]) -> float:
        """Return the seconds of one evaluation at all these sizes: each takes a part per image and one per pixel."""
        fixed, per_pixel = _line([(S**2, seconds) for S, seconds in self.evaluation.items()])
        return sum(fixed + per_pixel * S**2 for S in sizes)

    def _memory_line(self) -> tuple[float, float]:
        return _line([(step.shape.pixels, step.memory) for step in self.steps])


def _line(points: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return a, b of y = a + b*x with the slope of least squares, at least 0, above which no point lies.

    Through a single point: the line from the origin, the steepest there is.
    """
    x, y = np.array(list(points), float).T
    slope = max(0.0, float(np.polyfit(x, y, 1)[0])) if len(set(x)) > 1 else float(y[0] / x[0])
    return float((y - slope * x).max()), slope


def benchmark_shapes(space: Space) -> list[BatchShape]:
    """Return the shapes to measure: the base, a half and a quarter of it for the memory line, and of the smallest and
    the largest size the one with the most distinct images, which is dearest to load.
    """
    base, shapes = space.base, space.shapes()
    ends = [max((s for s in shapes if s.S == S), key=lambda s: s.B) for S in (shapes[0].S, shapes[-1].S)]
    return sorted({*ends, *(replace(base, B=max(1, base.B // k)) for k in (1, 2, 4))})


def measure_profile(
    config: TrainingConfig, shapes: Iterable[BatchShape], group: ProcessGroup = SINGLE_PROCESS
) -> ResourceProfile:
    """Return the profile with these shapes, as far as they fit. Each process of a group calls this.

    Raises InputError for missing data and where not even the smallest shape fits.
    """
    began = time.perf_counter()
    benchmark = StepBenchmark(config, group)
    setup = time.perf_counter() - began
    network, device = benchmark.engine.network, benchmark.engine.device
    available, peak = available_memory(device), PeakMemory(device)
    profile = ResourceProfile(
        measured_on=describe_device(config),
        day=time.strftime("%Y-%m-%d"),
        device=device.type,
        available_memory=available,
        setup=setup,
        weights=sum(t.nbytes for t in (*network.parameters(), *network.buffers())),
        evaluation={
            S: benchmark.evaluation_seconds(S) for S in (min(config.evaluate.sizes), max(config.evaluate.sizes))
        },
        evaluation_memory=peak.bytes(),
        steps=(),
    )
    for shape in sorted(set(shapes), key=lambda s: (s.pixels, s)):
        # On a CPU, a step that takes all memory ends other processes: one that cannot fit is not tried.
        if group.broadcast_flag(len(profile.steps) > 1 and profile.memory(shape) > available):
            break
        peak = PeakMemory(device)
        try:
            seconds = benchmark.step_seconds(shape)
        except Exception as err:
            if not is_out_of_memory(err):
                raise
            if profile.steps and not group.is_distributed:  # there is less memory than the device says
                return replace(profile, available_memory=0.99 * profile.memory(shape))
            raise InputError(
                f"base: {profile.measured_on} does not hold a step of {shape} (S x B x D) in {gib(available)}; lower "
                "base.B: a step must take fewer pixels than that one"
            ) from None
        profile = replace(profile, steps=(*profile.steps, MeasuredStep(shape, seconds, peak.bytes())))
    return profile


def gib(size: float) -> str:
    """Return bytes as GiB or MiB."""
    return f"{three_digits(size / 2**30)} GiB" if size >= 2**27 else f"{three_digits(size / 2**20)} MiB"


def three_digits(value: float) -> str:
    """Return the number with three digits, or with all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
