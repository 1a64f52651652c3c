"""torch.compile: compile a run's steps where that saves more time than it takes, decided from the run's own step times.

Compiling takes up to a minute per batch shape (measured: 45 s for ResNet-50 on an H200, where steps are then 1.46 times
as fast), so it pays in long runs of large networks. Each kind of step is decided when it first comes, from its measured
time and the number of steps left; earlier kinds tell what compiling costs and gains. Compiled are whole graphs, one per
shape, without dynamic sizes. Every decision is announced, also that a network cannot be compiled.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.errors import TrainingError
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.device import DeviceTimer
from mixtune.runtime.oom import is_out_of_memory

CompiledForward = Callable[[Tensor], Any]
StepKind = tuple[BatchShape, bool]  # the whole step's shape, and whether all layers but the head are frozen
EXPECTED_SPEEDUP, EXPECTED_COMPILE_SECONDS = 1.3, 60.0  # assumed until a kind of step was compiled
MEASURED_STEPS = (
    5  # of a kind, whose median counts; one step before them warms up, and one more where they are compiled
)


def compile_network(network: nn.Module) -> CompiledForward:
    """Return the network compiled anew for every input shape, each as one whole graph. It shares the weights."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    forward: CompiledForward = torch.compile(network, dynamic=False, fullgraph=True)
    return forward


def count_step_kinds(schedule: Schedule, progress: np.ndarray, start: int, frozen: float) -> Counter[StepKind]:
    """Return the number of steps of each kind from step ``start`` on.

    progress: share of the budget spent before each step, [n_steps]; below ``frozen`` only the head is trained.
    """
    shapes = [schedule.shapes[i] for i in schedule.index[start:].tolist()]
    return Counter(zip(shapes, (progress[start:] < frozen).tolist(), strict=True))


class CompileState(IntEnum):
    """How a kind of step is computed, and whether that is decided."""

    TIMING_EAGER = 0  # uncompiled; its first steps are timed
    WAITING = 1  # uncompiled, until another kind shows what compiling gains
    TIMING_COMPILED = 2  # compiled; its first steps are timed
    COMPILED = 3
    EAGER = 4  # uncompiled: compiling would not pay, as far as is known
    REJECTED = 5  # uncompiled: compiled steps are no faster, or they cannot be compiled


UNDECIDED = (CompileState.TIMING_EAGER, CompileState.WAITING, CompileState.TIMING_COMPILED)


class Compiler:
    """Times the first steps of each kind and decides whether the others are compiled.

    remaining: number of steps to come, by kind. broadcast: returns in every process what the first one has
    (``ProcessGroup.broadcast_state``), so that the first one's timer decides and all compile at the same step.
    """

    def __init__(
        self,
        network: nn.Module,
        remaining: Mapping[StepKind, int],
        say: Callable[[str], None],
        timer: DeviceTimer,
        broadcast: Callable[[Callable[[], dict[str, Any] | None]], dict[str, Any] | None] = lambda load: load(),
        compile_fn: Callable[[nn.Module], CompiledForward] = compile_network,
    ) -> None:
        self._network, self._say, self._timer, self._broadcast, self._compile = (
            network,
            say,
            timer,
            broadcast,
            compile_fn,
        )
        self._remaining = dict(remaining)
        self._states = dict.fromkeys(sorted(remaining), CompileState.TIMING_EAGER)
        self._marks: dict[StepKind, list[tuple[Any, Any]]] = {kind: [] for kind in remaining}
        self._eager_seconds: dict[StepKind, float] = {}  # of one uncompiled step
        self._compile_seconds: dict[StepKind, float] = {}
        self._speedups: dict[StepKind, float] = {}  # seconds of an uncompiled step over those of a compiled one
        self._failures: dict[StepKind, str] = {}
        self._unannounced: set[StepKind] = set()
        self._compiled: CompiledForward | None = None

    def forward(self, kind: StepKind) -> CompiledForward:
        """Return what computes the network in a step of this kind."""
        if self._states[kind] not in (CompileState.TIMING_COMPILED, CompileState.COMPILED) or kind in self._failures:
            return self._network
        if self._compiled is None:
            self._compiled = self._compile(self._network)
        return self._compiled

    def step(self, kind: StepKind, work: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a step of this kind, which ``work`` does; time it while the kind is undecided."""
        self._remaining[kind] -= 1
        state = self._states[kind]
        if state not in (CompileState.TIMING_EAGER, CompileState.TIMING_COMPILED):
            return work()
        start = self._timer.mark()
        try:
            loss = work()
        except Exception as err:
            if (
                state == CompileState.TIMING_EAGER
                or kind in self._failures
                or is_out_of_memory(err)
                or isinstance(err, TrainingError)
            ):
                raise
            first_line = str(err).partition("\n")[0]
            self._failures[kind] = f"{type(err).__name__}: {first_line[:200]}"
            loss = work()
        marks = self._marks[kind]
        marks.append((start, self._timer.mark()))
        if len(marks) > MEASURED_STEPS + (state == CompileState.TIMING_COMPILED) or not self._remaining[kind]:
            # The condition is of counts alone, which are equal in all processes: they come here at the same step.
            decision = self._broadcast(lambda: {"states": [int(s) for s in self._decide(kind).values()]})
            assert decision is not None
            self._states = dict(zip(self._states, map(CompileState, decision["states"]), strict=True))
            marks.clear()
            self._announce()
        return loss

    def _decide(self, kind: StepKind) -> dict[StepKind, CompileState]:
        """Return the new state of every kind, now that this one was timed."""
        states = dict(self._states)
        times = [self._timer.seconds(*marks) for marks in self._marks[kind]]
        if states[kind] == CompileState.TIMING_COMPILED:
            states[kind] = self._judge(kind, times)
        else:
            self._eager_seconds[kind] = statistics.median(times[1:] or times)
            states[kind] = CompileState.WAITING
        for other in sorted(states, key=self._expected_saving, reverse=True):
            if states[other] not in (CompileState.WAITING, CompileState.EAGER):
                continue
            if self._expected_saving(other) <= self._expected_compile_seconds():
                states[other] = CompileState.EAGER
            elif self._speedups or CompileState.TIMING_COMPILED not in states.values():  # the first one alone
                states[other] = CompileState.TIMING_COMPILED
        self._unannounced |= {k for k, s in states.items() if s not in UNDECIDED and s != self._states[k]}
        return states

    def _judge(self, kind: StepKind, times: list[float]) -> CompileState:
        if kind in self._failures:
            return CompileState.REJECTED
        fast = statistics.median(times[2:] or times[-1:])
        self._compile_seconds[kind], self._speedups[kind] = max(0.0, times[0] - fast), self._eager_seconds[kind] / fast
        return CompileState.COMPILED if self._speedups[kind] > 1 else CompileState.REJECTED

    def _expected_compile_seconds(self) -> float:
        """Return the seconds that compiling one more kind should take."""
        return statistics.median(self._compile_seconds.values()) if self._compile_seconds else EXPECTED_COMPILE_SECONDS

    def _expected_saving(self, kind: StepKind) -> float:
        """Return the seconds that compiling this kind should save; 0 where it was not timed."""
        if self._failures and not self._speedups:
            return 0.0
        speedup = statistics.median(self._speedups.values()) if self._speedups else EXPECTED_SPEEDUP
        return self._remaining[kind] * self._eager_seconds.get(kind, 0.0) * (1 - 1 / speedup)

    def _announce(self) -> None:
        """Say what was decided, in one line, once no kind that came so far is undecided."""
        if any(s in UNDECIDED and (s != CompileState.TIMING_EAGER or self._marks[k]) for k, s in self._states.items()):
            return
        decided, self._unannounced = sorted(self._unannounced), set()
        compiled = [k for k in decided if self._states[k] == CompileState.COMPILED]
        slower = [k for k in decided if self._states[k] == CompileState.REJECTED and k not in self._failures]
        failed = [k for k in decided if k in self._failures]
        eager = [k for k in decided if self._states[k] == CompileState.EAGER and self._remaining[k]]
        parts = []
        if compiled:
            parts.append(f"steps are compiled: {_names(compiled)} ({self._measured(compiled)})")
        if slower:
            parts.append(f"steps are not compiled: {_names(slower)} ({self._measured(slower)})")
        if failed:
            parts.append(f"steps are not compiled: {_names(failed)} could not be ({self._failures[failed[0]]})")
        if eager and parts:
            parts.append(f"not worth it: {_names(eager)}")
        elif eager:
            cost = self._expected_compile_seconds() * len(eager)
            saving = max(0.0, sum(map(self._expected_saving, eager)))
            parts.append(
                f"steps are not compiled: compiling {_names(eager)} would cost about {cost:.0f} s "
                f"to save about {saving:.0f} s"
            )
        if parts:
            self._say("; ".join(parts))

    def _measured(self, kinds: Sequence[StepKind]) -> str:
        seconds = [f"{self._compile_seconds[k]:.0f}" for k in kinds]
        speedups = [f"{self._speedups[k]:.2f}" for k in kinds]
        return f"{_range(seconds)} s to compile, {_range(speedups)} times as fast"


def _names(kinds: Iterable[StepKind]) -> str:
    return ", ".join(f"{shape}{' with frozen layers' * frozen}" for shape, frozen in kinds)


def _range(numbers: list[str]) -> str:
    low, high = min(numbers, key=float), max(numbers, key=float)
    return low if low == high else f"{low} to {high}"
