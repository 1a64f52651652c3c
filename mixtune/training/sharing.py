"""Sharing: how many trials to pack on a GPU, from the memory that one takes and the speed of several, measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from mixtune.regime import Budget, Regime
from mixtune.training.device import pick_device
from mixtune.training.memory import Peak, room
from mixtune.training.packing import DroppedError, Pack, Turn
from mixtune.training.run import Run, TrainingConfig
from mixtune.training.score import Score
from mixtune.training.shortage import lacking


def together(regime: Regime, config: TrainingConfig, K: int, steps: int) -> float:
    """Steps per second of K trials that share this process, over ``steps`` of each, once all have begun.

    0 where the device's memory does not hold them. The budget must have twice as many steps.
    """
    device = pick_device(config.device)
    pack: Pack[None] = Pack(device)
    done, since = [0] * K, [0] * K
    clock: list[float] = []  # when all had begun, and when they had done their steps

    def work(i: int, turn: Turn, report: Callable[[None], None]) -> None:
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
                raise DroppedError
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
    if any(lacking(err) for err in errors):
        return 0.0
    if errors:
        raise errors[0]
    return K * steps / (clock[1] - clock[0])


def measure(config: TrainingConfig, regime: Regime, at_most: int, steps: int = 60) -> tuple[int, float, str]:
    """How many trials of this kind to pack on this machine's GPU, how many times as fast as one they are, and a
    sentence that says what was measured.

    Trials on image files stay alone: their networks fill a GPU. The memory that one trial takes bounds how many are
    tried.
    """
    device = pick_device(config.device)
    evaluate = replace(config.evaluate, sizes=config.evaluate.sizes[:1], reports=1, recalibrate=None)
    config = replace(config, evaluate=evaluate, score=Score())
    first = Run.prepare(regime, config)
    if first.task.pixels is None:
        return 1, 1.0, "one trial at a time on a GPU: its images are read from files"
    enough = Budget(4 * steps * regime.base.B / first.task.n_train + 1)
    config = replace(config, budget=enough, costs=None)

    def speed(K: int) -> float:
        return together(regime, config, K, steps)

    fits = at_most
    if device.type == "cuda":
        watch, before = Peak(device), torch.cuda.memory_reserved(device)
        speed(1)
        one = max(1.0, watch.bytes() - before)
        fits = max(1, min(at_most, int(0.8 * room(device) / one)))
    best, measured = most_useful(speed, fits)
    told = ", ".join(f"{K}: {v:,.0f}" for K, v in measured.items())
    said = f"{best} at a time share a GPU; steps per second by how many do: {told} (memory holds {fits})"
    return best, measured[best] / measured[1], said


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
