"""Measure how many trials to pack on a GPU: the steps per second of several that share one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch

from mixtune.evaluation.score import Score
from mixtune.profiling.step_benchmark import load_task
from mixtune.regime import BatchShape, Budget, Regime
from mixtune.regime.literature import fixed
from mixtune.runtime.device import pick_device
from mixtune.runtime.oom import is_out_of_memory
from mixtune.training.packing import TrialDroppedError, TrialPack, YieldTurn
from mixtune.training.run import Run, TrainingConfig

TIMED_STEPS = 60  # of each trial
WORTH = 1.1  # how many times as fast twice as many trials must be to be packed


def steps_per_second(regime: Regime, config: TrainingConfig, K: int, steps: int = TIMED_STEPS) -> float:
    """Return the steps per second of K trials that share this process, over ``steps`` of each, once all have begun.

    0 where the device's memory does not hold them. The budget must have twice as many steps.
    """
    device = pick_device(config.device)
    pack: TrialPack[None] = TrialPack(device)
    done, before = [0] * K, 0  # steps of each trial; of all, when the clock was started
    clock: list[float] = []  # when all trials had begun, and when they had done their steps

    def train(i: int, turn: YieldTurn, report: Callable[[None], None]) -> None:
        def on_step(step: int, views: int) -> None:
            nonlocal before
            done[i] = step
            if min(done) > 0 if not clock else len(clock) == 1 and sum(done) - before >= K * steps:
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                clock.append(time.perf_counter())
                before = before or sum(done)
            if len(clock) == 2:
                raise TrialDroppedError
            turn()

        for _ in Run.prepare(regime, replace(config, seed=i)).reports(on_step=on_step):
            pass

    for i in range(K):
        pack.start(str(i), partial(train, i))
    with ThreadPoolExecutor(K) as pool:
        trials = [pool.submit(pack.next, str(i)) for i in range(K)]
    errors = [err for trial in trials if (err := trial.exception()) is not None]
    if any(is_out_of_memory(err) for err in errors):
        return 0.0
    if errors:
        raise errors[0]
    return K * steps / (clock[1] - clock[0])


def measure_packing(
    config: TrainingConfig, base: BatchShape, at_most: int, steps: int = TIMED_STEPS
) -> dict[int, float]:
    """Return the steps per second of all trials together by how many share the GPU: doubled as long as it pays."""
    evaluate = replace(config.evaluate, sizes=config.evaluate.sizes[:1], reports=1, recalibrate=None)
    enough = Budget(4 * steps * base.B / load_task(config).n_train + 1)
    config = replace(config, evaluate=evaluate, score=Score(), budget=enough, costs=None)
    speeds: dict[int, float] = {}
    K = 1
    while at_most >= K:
        speeds[K] = steps_per_second(fixed(base), config, K, steps)
        if K > 1 and speeds[K] < WORTH * speeds[K // 2]:
            break
        K *= 2
    return speeds


def best_pack(speeds: Mapping[int, float], at_most: int) -> int:
    """Return how many trials to pack by these speeds: doubled as long as all are ``WORTH`` times as fast."""
    best = 1
    while 2 * best <= at_most and speeds.get(2 * best, 0.0) >= WORTH * speeds[best]:
        best *= 2
    return best
