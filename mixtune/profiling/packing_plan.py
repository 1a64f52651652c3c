"""Sharing: how many trials to pack on a GPU, from the memory that one takes and the speed of several, measured."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch

from mixtune.config import parse, read_yaml, to_yaml
from mixtune.errors import InputError
from mixtune.evaluation.score import Score
from mixtune.profiling import cache, step_benchmark
from mixtune.regime import Budget, Regime
from mixtune.runtime.device import pick_device
from mixtune.runtime.memory import PeakMemory, available_memory
from mixtune.runtime.oom import is_out_of_memory
from mixtune.training.packing import TrialDroppedError, TrialPack, YieldTurn
from mixtune.training.run import Run, TrainingConfig


def together(regime: Regime, config: TrainingConfig, K: int, steps: int) -> float:
    """Steps per second of K trials that share this process, over ``steps`` of each, once all have begun.

    0 where the device's memory does not hold them. The budget must have twice as many steps.
    """
    device = pick_device(config.device)
    pack: TrialPack[None] = TrialPack(device)
    done, since = [0] * K, [0] * K
    clock: list[float] = []  # when all had begun, and when they had done their steps

    def work(i: int, turn: YieldTurn, report: Callable[[None], None]) -> None:
        def on_step(step: int, views: int) -> None:
            done[i] = step
            finished = len(clock) == 1 and sum(done) - sum(since) >= K * steps
            if (not clock and min(done) > 0) or finished:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                clock.append(time.perf_counter())
                if not finished:
                    since[:] = done
            if len(clock) == 2:
                raise TrialDroppedError
            turn()

        for _ in Run.prepare(regime, replace(config, seed=i)).reports(on_step=on_step):
            pass

    for i in range(K):
        pack.start(str(i), partial(work, i))
    errors: list[Exception] = []

    def ask(i: int) -> None:
        try:
            pack.next(str(i))
        except Exception as err:
            errors.append(err)

    asking = [threading.Thread(target=ask, args=(i,)) for i in range(K)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    if any(is_out_of_memory(err) for err in errors):
        return 0.0
    if errors:
        raise errors[0]
    return K * steps / (clock[1] - clock[0])


@dataclass(frozen=True)
class Measured:
    """one: bytes that a trial takes of the device, 0 where they are not counted; speeds: steps per second of all
    trials together, by how many share it.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    one: float
    speeds: Mapping[int, float]

    def fits(self, at_most: int, device: torch.device) -> int:
        """How many trials the device's memory holds as it is now."""
        return max(1, min(at_most, int(0.8 * available_memory(device) / self.one))) if self.one else at_most

    def told(self, fits: int) -> tuple[int, float, str]:
        """What follows where the memory holds so many. Raises KeyError when more fit than were tried."""
        best, speeds = most_useful(self.speeds.__getitem__, fits)
        each = ", ".join(f"{K}: {v:,.0f}" for K, v in speeds.items())
        said = f"{best} at a time share a GPU; steps per second by how many do: {each} (memory holds {fits})"
        return best, speeds[best] / speeds[1], said


def measure(
    config: TrainingConfig, regime: Regime, at_most: int, again: bool = False, steps: int = 60
) -> tuple[int, float, str]:
    """How many trials of this kind to pack on this machine's GPU, how many times as fast as one they are, and a
    sentence that says what was measured: now, or by another study (``measurements``) unless ``again`` is asked for.

    Trials on image files stay alone: their networks fill a GPU. The memory that one trial takes bounds how many are
    tried.
    """
    if not config.task.in_memory:
        return 1, 1.0, "one trial at a time on a GPU: its images are read from files"
    device = pick_device(config.device)
    shared = cache.place("packs", step_benchmark.identity(config), str(regime), steps)
    with contextlib.suppress(InputError, KeyError):  # none that can be read, or more fit now than fitted then
        if shared and not again:
            known = parse(read_yaml(shared), Measured, shared)
            return known.told(known.fits(at_most, device))
    found, fits = _measure(config, regime, at_most, steps, device)
    if all(found.speeds.values()):  # else memory was short, as it need not be for the next study
        cache.keep(shared, to_yaml(found))
    return found.told(fits)


def _measure(
    config: TrainingConfig, regime: Regime, at_most: int, steps: int, device: torch.device
) -> tuple[Measured, int]:
    """What was measured, and how many trials fitted meanwhile."""
    evaluate = replace(config.evaluate, sizes=config.evaluate.sizes[:1], reports=1, recalibrate=None)
    config = replace(config, evaluate=evaluate, score=Score())
    first = Run.prepare(regime, config)
    enough = Budget(4 * steps * regime.base.B / first.task.n_train + 1)
    config = replace(config, budget=enough, costs=None)

    def speed(K: int) -> float:
        return together(regime, config, K, steps)

    found = Measured(0.0, {})
    if device.type == "cuda":
        watch, before = PeakMemory(device), torch.cuda.memory_reserved(device)
        speed(1)
        found = Measured(max(1.0, watch.bytes() - before), {})
    fits = found.fits(at_most, device)
    return replace(found, speeds=most_useful(speed, fits)[1]), fits


def most_useful(speed: Callable[[int], float], at_most: int, gain: float = 1.1) -> tuple[int, dict[int, float]]:
    """How many trials to pack: doubled as long as that makes all together at least ``gain`` times as fast.

    speed(K): steps per second of K trials together, measured. Returns K and what was measured.
    """
    measured = {1: speed(1)}
    best = 1
    while 2 * best <= at_most:
        measured[2 * best] = speed(2 * best)
        if measured[2 * best] < gain * measured[best]:
            break
        best *= 2
    return best, measured
