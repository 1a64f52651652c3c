"""Compiling: whether ``torch.compile`` earns its time back in a run, decided from the run's own step times and said.

Compiling takes the better part of a minute per batch shape (measured: 45 s for ResNet-50 on an H200, where steps are
then 1.46 times as fast), so it is for long runs of large networks. Each shape is decided once it is met, from its own
steps and how many of it are left; what compiling cost and gained so far stands for what it will. Nothing falls back in
silence: whole graphs, one per shape, no dynamic sizes, and a network that cannot be compiled is said to be one.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.errors import TrainingError
from mixtune.regime import BatchShape, Schedule
from mixtune.runtime.device import Watch
from mixtune.runtime.oom import is_out_of_memory

Forward = Callable[[Tensor], Any]
Kind = tuple[BatchShape, bool]  # of a step: its shape (of all ranks), and whether all but the head is frozen
EXPECTED_GAIN, EXPECTED_SECONDS = 1.3, 60.0  # before anything is measured: modest, and per kind
TIMED = 5  # steps of a kind whose median counts; one before them warms up, and one more where they are compiled


def compiled(network: nn.Module) -> Forward:
    """The network compiled for every input shape that it meets, each as one whole graph. The weights are shared."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    forward: Forward = torch.compile(network, dynamic=False, fullgraph=True)
    return forward


def should_pay(seconds: float) -> bool:
    """Whether compiling should, where nothing was measured, for steps that take these seconds issued one by one."""
    return seconds * (1 - 1 / EXPECTED_GAIN) > EXPECTED_SECONDS


def by_kind(schedule: Schedule, progress: np.ndarray, start: int, frozen: float) -> Counter[Kind]:
    """The steps from ``start`` on, by kind. progress: share of the budget spent before each step. [n_steps]"""
    still = (progress < frozen).tolist()
    return Counter((schedule.shapes[i], f) for i, f in zip(schedule.index[start:].tolist(), still[start:], strict=True))


class State(IntEnum):
    """How far a kind of step is decided."""

    TIMED = 0  # issued one by one, the first of them timed
    WAITING = 1  # timed, until it is known what compiling gives
    TRIED = 2  # compiled, the first of them timed
    COMPILED = 3
    EAGER = 4  # not worth it, as far as is known
    UNFIT = 5  # no faster, or it cannot be compiled


OPEN = (State.TIMED, State.WAITING, State.TRIED)


class Compiler:
    """Watches the first steps of each kind and chooses what computes the others.

    left: steps to come, by kind. share: gives every rank what the first one has (``Ranks.share_state``): all begin to
    compile at the same step, as each waits for the slowest, and the first one's watch decides.
    """

    def __init__(
        self,
        network: nn.Module,
        left: Mapping[Kind, int],
        say: Callable[[str], None],
        watch: Watch,
        share: Callable[[Callable[[], dict[str, Any] | None]], dict[str, Any] | None] = lambda load: load(),
        make: Callable[[nn.Module], Forward] = compiled,
    ) -> None:
        self._network, self._say, self._watch, self._share, self._make = network, say, watch, share, make
        self._left = dict(left)
        self._state = dict.fromkeys(sorted(left), State.TIMED)
        self._marks: dict[Kind, list[tuple[Any, Any]]] = {kind: [] for kind in left}
        self._eager: dict[Kind, float] = {}  # seconds of a step issued one by one
        self._cost: dict[Kind, float] = {}  # seconds to compile it
        self._gain: dict[Kind, float] = {}  # how many times as fast it then is
        self._failed: dict[Kind, str] = {}
        self._news: set[Kind] = set()  # decided, and not said yet
        self._compiled: Forward | None = None

    def forward(self, kind: Kind) -> Forward:
        """What computes a batch of this kind."""
        if self._state[kind] not in (State.TRIED, State.COMPILED) or kind in self._failed:
            return self._network
        if self._compiled is None:
            self._compiled = self._make(self._network)
        return self._compiled

    def step(self, kind: Kind, work: Callable[[], Tensor]) -> Tensor:
        """Do a step of this kind, timed until it is decided."""
        self._left[kind] -= 1
        state = self._state[kind]
        if state not in (State.TIMED, State.TRIED):
            return work()
        began = self._watch.mark()
        try:
            loss = work()
        except Exception as err:
            if state == State.TIMED or kind in self._failed or is_out_of_memory(err) or isinstance(err, TrainingError):
                raise
            first_line = str(err).partition("\n")[0]
            self._failed[kind] = f"{type(err).__name__}: {first_line[:200]}"
            loss = work()
        marks = self._marks[kind]
        marks.append((began, self._watch.mark()))
        if len(marks) > TIMED + (state == State.TRIED) or not self._left[kind]:
            # By counts alone, which every rank has: all come here at the same step.
            decided = self._share(lambda: {"states": [int(s) for s in self._decide(kind).values()]})
            assert decided is not None
            self._state = dict(zip(self._state, map(State, decided["states"]), strict=True))
            marks.clear()
            self._tell()
        return loss

    def _decide(self, kind: Kind) -> dict[Kind, State]:
        """How far each kind is decided, now that this one was timed."""
        state = dict(self._state)
        times = [self._watch.seconds(*marks) for marks in self._marks[kind]]
        if state[kind] == State.TRIED:
            state[kind] = self._verdict(kind, times)
        else:
            self._eager[kind] = statistics.median(times[1:] or times)
            state[kind] = State.WAITING
        for other in sorted(state, key=self._saved, reverse=True):
            if state[other] not in (State.WAITING, State.EAGER):
                continue
            if self._saved(other) <= self._expected_cost():
                state[other] = State.EAGER
            elif self._gain or State.TRIED not in state.values():  # before anything is known, one at a time
                state[other] = State.TRIED
        self._news |= {k for k, s in state.items() if s not in OPEN and s != self._state[k]}
        return state

    def _verdict(self, kind: Kind, times: list[float]) -> State:
        if kind in self._failed:
            return State.UNFIT
        fast = statistics.median(times[2:] or times[-1:])
        self._cost[kind], self._gain[kind] = max(0.0, times[0] - fast), self._eager[kind] / fast
        return State.COMPILED if self._gain[kind] > 1 else State.UNFIT

    def _expected_cost(self) -> float:
        """What compiling one more kind should cost."""
        return statistics.median(self._cost.values()) if self._cost else EXPECTED_SECONDS

    def _saved(self, kind: Kind) -> float:
        """The seconds that it should save; 0 where that kind was not timed."""
        if self._failed and not self._gain:
            return 0.0
        gain = statistics.median(self._gain.values()) if self._gain else EXPECTED_GAIN
        return self._left[kind] * self._eager.get(kind, 0.0) * (1 - 1 / gain)

    def _tell(self) -> None:
        """Say what was decided, as soon as that is so of all that was met: kinds that come together make one line."""
        if any(s in OPEN and (s != State.TIMED or self._marks[k]) for k, s in self._state.items()):
            return
        news, self._news = sorted(self._news), set()
        won = [k for k in news if self._state[k] == State.COMPILED]
        lost = [k for k in news if self._state[k] == State.UNFIT and k not in self._failed]
        failed = [k for k in news if k in self._failed]
        rest = [k for k in news if self._state[k] == State.EAGER and self._left[k]]
        said = []
        if won:
            said.append(f"steps are compiled: {_names(won)} ({self._found(won)})")
        if lost:
            said.append(f"steps are not compiled: {_names(lost)} ({self._found(lost)})")
        if failed:
            said.append(f"steps are not compiled: {_names(failed)} could not be ({self._failed[failed[0]]})")
        if rest and said:
            said.append(f"not worth it: {_names(rest)}")
        elif rest:
            cost, saved = self._expected_cost() * len(rest), max(0.0, sum(map(self._saved, rest)))
            said.append(
                f"steps are not compiled: compiling {_names(rest)} would cost about {cost:.0f} s "
                f"to save about {saved:.0f} s"
            )
        if said:
            self._say("; ".join(said))

    def _found(self, kinds: Iterable[Kind]) -> str:
        costs, gains = ([f"{of[k]:{form}}" for k in kinds] for of, form in ((self._cost, ".0f"), (self._gain, ".2f")))
        return f"{_range(costs)} s to compile, {_range(gains)} times as fast"


def _names(kinds: Iterable[Kind]) -> str:
    return ", ".join(f"{shape}{' with frozen layers' * frozen}" for shape, frozen in kinds)


def _range(numbers: list[str]) -> str:
    low, high = min(numbers, key=float), max(numbers, key=float)
    return low if low == high else f"{low} to {high}"
