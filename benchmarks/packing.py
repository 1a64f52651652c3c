"""How much more do trials that share a GPU in one process get done than one trial, or than a process each?

    python -m benchmarks.packing

ResNet-44 on MixSize B+ shapes of 32x64 with random images on the GPU. The peer is what a search with fractional GPUs
does: one process per trial, which the GPU serves by turns, each with the same steps issued one by one. Ray starts them
where it is installed; elsewhere they are started plainly, which is the same to the GPU, and the result says so. What is
measured is written at once: the first ratio stays if the second fails. ``--device cpu`` rehearses the command in small,
writes nothing and measures nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import conclude, quartiles_of, side_by_side
from benchmarks.trial import description, images, network_of, steps, wait
from mixtune.cli import Parser, parse_args, run_command
from mixtune.errors import TrainingError
from mixtune.profiling.packing import steps_per_second
from mixtune.runtime.device import pick_device
from mixtune.training.run import Run

PATIENCE = 180.0  # seconds for all trials to be ready
Start = Callable[[list[tuple[str, int, int, str, int]]], list[tuple[float, float]]]  # runs ``alone`` of each


def alone(device: str, count: int, seed: int, at: str, trials: int) -> tuple[float, float]:
    """One trial in its own process, its steps issued one by one: when its ``count`` timed steps began and ended.

    They begin when all trials are ready, which they say by a file each in the folder ``at``.
    """
    with images(device):
        trial = Run.prepare(*description(device))
        began, warm = 0.0, min(10, count)
        for step in steps(trial, trial.schedule, captured=False, seed=seed):
            if step == warm:
                wait(device)
                Path(at, str(seed)).touch()
                until = time.monotonic() + PATIENCE
                while len(list(Path(at).iterdir())) < trials:
                    if time.monotonic() > until:
                        raise TrainingError(
                            f"not all of {trials} trials were ready in {PATIENCE:g} s; one may have died"
                        )
                    time.sleep(0.01)
                began = time.time()
            if step == warm + count:
                break
        wait(device)
        return began, time.time()


def processes(start: Start, device: str, count: int, trials: int) -> float:
    """Steps per second of all trials together, a process and a share of the GPU each."""
    with tempfile.TemporaryDirectory() as at:
        spans = start([(device, count, i, at, trials) for i in range(trials)])
    return trials * count / (max(end for _, end in spans) - min(began for began, _ in spans))


@contextlib.contextmanager
def under_ray(device: str, trials: int) -> Iterator[Start]:
    """Ray tasks with a fraction of the GPU each."""
    import ray

    from mixtune.execution import ray_tune

    gpus = int(device == "cuda")
    ray_tune.connect(None, os.cpu_count() or 1, gpus)
    work = ray.remote(num_cpus=0.01, num_gpus=gpus / trials)(alone)
    try:
        yield lambda every: ray.get([work.remote(*one) for one in every])
    finally:
        ray_tune.disconnect()


@contextlib.contextmanager
def plainly(device: str, trials: int) -> Iterator[Start]:
    """Processes of Python's own."""
    with ProcessPoolExecutor(trials, mp_context=get_context("spawn")) as pool:
        yield lambda every: list(pool.map(alone, *zip(*every, strict=True)))


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.packing", __doc__.split("\n")[0])
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--trials", type=int, default=8)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    args = parse_args(parser(), argv)
    d, n = args.device, args.trials
    pick_device(d)
    regime, config = description(d)
    settings = {"device": d, "network": network_of(d), "steps": args.steps, "trials": n}
    rows: list[dict[str, Any]] = []

    def row(what: str, sides: dict[str, Callable[[], float]], at_least: float, aim: float) -> None:
        measured = {k: quartiles_of(v) for k, v in side_by_side(sides, args.repeats).items()}
        ours, theirs = (side["median"] for side in measured.values())
        goal = {"at_least": at_least, "aim": aim, "steps_per_second": measured}
        rows.append({"what": what, "ratio": ours / theirs} | goal)
        conclude("packing", __doc__.split("\n")[0], settings, rows, write=d == "cuda")

    packed = {"packed": lambda: steps_per_second(regime, config, n, args.steps)}
    with images(d):
        one = {"one": lambda: steps_per_second(regime, config, 1, args.steps)}
        row(f"GPU: steps per second of {n} packed trials / of 1", packed | one, 2.7, 5)
        ray = importlib.util.find_spec("ray") is not None
        peer = "under Ray with fractional GPUs" if ray else "without Ray, which the GPU serves as Ray's fractions of it"
        with (under_ray if ray else plainly)(d, n) as start:
            each = {"processes": lambda: processes(start, d, args.steps, n)}
            row(f"GPU: {n} packed trials / a process per trial {peer}", packed | each, 15, 30)
    return 0


if __name__ == "__main__":
    run_command(main)
