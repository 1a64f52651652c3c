"""Compiling: whether ``torch.compile`` earns its time back in a run, decided from the run's own step times and said.

Compiling takes the better part of a minute per batch shape (measured: 45 s for ResNet-50 on an H200, where steps are
then 1.46 times as fast), so it is for long runs of large networks. The shape with the most work left is compiled first;
what that cost and gained decides about the others. Nothing falls back in silence: whole graphs, one per shape, no
dynamic sizes, and a network that cannot be compiled is said to be one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixtune.errors import TrainingError
from mixtune.regime import BatchShape
from mixtune.training.shortage import lacking

Forward = Callable[[Tensor], Any]
EXPECTED_GAIN, EXPECTED_SECONDS = 1.3, 60.0  # before anything is measured: modest, and per shape
TIMED = 5  # steps of a shape whose median counts; one before them warms up


def compiled(network: nn.Module) -> Forward:
    """The network compiled for every input shape that it meets, each as one whole graph. The weights are shared."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    forward: Forward = torch.compile(network, dynamic=False, fullgraph=True)
    return forward


class Compiler:
    """Watches the first steps of a run and chooses each shape's forward.

    left: steps to come, by shape. ``wait`` returns when the device has done what it was given.
    """

    def __init__(
        self,
        network: nn.Module,
        left: Mapping[BatchShape, int],
        say: Callable[[str], None],
        wait: Callable[[], None],
        make: Callable[[nn.Module], Forward] = compiled,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._network, self._say, self._wait, self._make, self._clock = network, say, wait, make, clock
        self._left = dict(left)
        self._eager: dict[BatchShape, list[float]] = {shape: [] for shape in left}
        self._fast: list[float] = []
        self._first: BatchShape | None = None  # the shape that is tried
        self._compiled: Forward | None = None
        self._chosen: frozenset[BatchShape] = frozenset()
        self.decided = False

    def forward(self, shape: BatchShape) -> Forward:
        """What computes a batch of this shape."""
        if self._compiled is not None and (shape == self._first or shape in self._chosen):
            return self._compiled
        return self._network

    def step(self, shape: BatchShape, work: Callable[[], Tensor]) -> Tensor:
        """Do a step of this shape, timed until all is decided."""
        self._left[shape] -= 1
        if self.decided:
            return work()
        self._wait()
        began = self._clock()
        try:
            loss = work()
        except Exception as err:
            if self._first is None or lacking(err) or isinstance(err, TrainingError):
                raise
            self._stop(f"they could not be compiled ({type(err).__name__}: {str(err).splitlines()[0][:200]})")
            return work()
        self._wait()
        self._take(shape, self._clock() - began)
        return loss

    def _take(self, shape: BatchShape, seconds: float) -> None:
        if self._first is None:
            self._eager[shape].append(seconds)
            if all(len(times) > TIMED or not self._left[s] for s, times in self._eager.items()):
                self._look()
        elif shape == self._first:
            self._fast.append(seconds)
            if len(self._fast) > TIMED + 1 or not self._left[shape]:
                self._choose()

    def _seconds(self, shape: BatchShape) -> float:
        """Of a step issued one by one."""
        times = self._eager[shape]
        return statistics.median(times[1:] or times)

    def _look(self) -> None:
        rest = {s: n * self._seconds(s) for s, n in self._left.items() if n}
        saved, cost = sum(rest.values()) * (1 - 1 / EXPECTED_GAIN), EXPECTED_SECONDS * len(rest)
        if saved <= cost:
            self._stop(f"compiling {len(rest)} shapes would cost about {cost:.0f} s to save about {saved:.0f} s")
            return
        self._first = max(rest, key=rest.__getitem__)
        self._compiled = self._make(self._network)

    def _choose(self) -> None:
        assert self._first is not None
        fast = statistics.median(self._fast[2:] or self._fast[-1:])
        cost, gain = self._fast[0] - fast, self._seconds(self._first) / fast
        said = f"a step of {self._first} took {cost:.0f} s to compile and is {gain:.2f} times as fast"
        if gain <= 1:
            self._stop(said)
            return
        worth = {s for s, n in self._left.items() if n * self._seconds(s) * (1 - 1 / gain) > cost}
        self._chosen = frozenset(worth | {self._first})
        self.decided = True
        rest = ", ".join(map(str, sorted(set(self._left) - self._chosen))) or "none"
        self._say(f"steps are compiled: {said}; not worth it: {rest}")

    def _stop(self, reason: str) -> None:
        self._first, self._compiled, self.decided = None, None, True
        self._say(f"steps are not compiled: {reason}")
