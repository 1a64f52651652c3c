"""How much more do trials that share a GPU in one process get done than one trial, or than a process each?

    python -m benchmarks.packing

ResNet-44 on MixSize B+ shapes of 32x64 with random images on the GPU. The peer is what a search with fractional GPUs
does: one process per trial, which the GPU serves by turns, each with the same steps issued one by one. Ray starts them
where it is installed; elsewhere they are started plainly, which is the same to the GPU, and the result says so.
``--device cpu`` rehearses the command in small, writes nothing and measures nothing.
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

from benchmarks.common import conclude, side_by_side, spread
from benchmarks.trial import description, images, network_of, steps, wait
from mixtune.cli import Parser, parse_args, run
from mixtune.training.run import Run
from mixtune.training.sharing import together

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
                while len(list(Path(at).iterdir())) < trials:
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

    from mixtune.study.running import tuning

    gpus = int(device == "cuda")
    tuning.connect(None, os.cpu_count() or 1, gpus)
    work = ray.remote(num_cpus=0.01, num_gpus=gpus / trials)(alone)
    try:
        yield lambda every: ray.get([work.remote(*one) for one in every])
    finally:
        tuning.disconnect()


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
    regime, config = description(args.device)
    ray = importlib.util.find_spec("ray") is not None
    with (under_ray if ray else plainly)(args.device, args.trials) as start, images(args.device):
        found = side_by_side(
            {
                "one": lambda: together(regime, config, 1, args.steps),
                "packed": lambda: together(regime, config, args.trials, args.steps),
                "processes": lambda: processes(start, args.device, args.steps, args.trials),
            },
            args.repeats,
        )
    middle = {k: spread(v)["median"] for k, v in found.items()}
    measured = {k: spread(v) for k, v in found.items()}
    peer = "under Ray with fractional GPUs" if ray else "without Ray, which the GPU serves as Ray's fractions of it"
    rows = [
        {
            "what": f"GPU: steps per second of {args.trials} packed trials / of 1",
            "ratio": middle["packed"] / middle["one"],
            "at_least": 2.7,
            "aim": 5,
            "steps_per_second": measured,
        },
        {
            "what": f"GPU: {args.trials} packed trials / a process per trial {peer}",
            "ratio": middle["packed"] / middle["processes"],
            "at_least": 15,
            "aim": 30,
            "steps_per_second": measured,
        },
    ]
    settings = {"device": args.device, "network": network_of(args.device), "steps": args.steps, "trials": args.trials}
    small = args.device == "cpu"
    conclude("packing", __doc__.split("\n")[0], settings, rows, write=not small)
    return 0


if __name__ == "__main__":
    run(main)
