"""How much more do trials that share a GPU in one process get done than one trial, or than a process each under Ray?

    python -m benchmarks.packing

ResNet-44 on MixSize B+ shapes of 32x64 with random images on the GPU. The peer is what a search with fractional GPUs
does: one Ray task per trial with its share of the GPU, each with the same steps issued one by one. ``--device cpu``
rehearses the command in small, writes nothing and measures nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from benchmarks.common import conclude, random_images, side_by_side, spread
from mixtune.cli import Parser, parse_args, run
from mixtune.regime import BatchShape, Budget, Regime, published
from mixtune.training.recipe import Recipe
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.sharing import together
from mixtune.training.task import TaskConfig

BASE, SIZES = BatchShape(32, 64), (16, 24, 32, 48)


def description(device: str, network: str) -> tuple[Regime, TrainingConfig]:
    """The trial that all of them run, each with its own seed."""
    task, evaluate = TaskConfig("cifar10", network), Evaluation((32,), 1)
    config = TrainingConfig(task, Budget(20), evaluate, Recipe(), device=device, threads=1)  # type: ignore[arg-type]
    return published("mixsize_b", BASE, SIZES, 4), config


def alone(device: str, network: str, images: int, steps: int, seed: int, at: str, trials: int) -> tuple[float, float]:
    """One trial in its own process, its steps issued one by one: when its timed steps began and ended.

    They begin when all trials are ready, which they say by a file each in the folder ``at``.
    """
    from pathlib import Path

    import torch

    from mixtune.training.engine import Engine

    with random_images(images):
        regime, config = description(device, network)
        trial = Run.prepare(regime, config)
        trial.network.train()
        engine = Engine(trial.task, trial.network, trial.recipe, seed, recorder="off")
        began = 0.0
        for step, batch in enumerate(engine.batches(trial.schedule, seed, 0)):
            if step == min(10, steps):
                Path(at, str(seed)).touch()
                while len(list(Path(at).iterdir())) < trials:
                    time.sleep(0.01)
                began = time.time()
            if step == min(10, steps) + steps:
                break
            engine.train_on(batch, 0.01, step, 1.0, trial.schedule.shapes[trial.schedule.index[step]])
        if device == "cuda":
            torch.cuda.synchronize()
        return began, time.time()


def under_ray(device: str, network: str, images: int, steps: int, trials: int) -> float:
    """Steps per second of all trials together, a process and a share of the GPU each."""
    import tempfile

    import ray

    share = 1 / trials if device == "cuda" else 0
    work = ray.remote(num_cpus=0.01, num_gpus=share)(alone)
    with tempfile.TemporaryDirectory() as at:
        waiting = [work.remote(device, network, images, steps, i, at, trials) for i in range(trials)]
        spans = ray.get(waiting)
    return float(trials * steps / (max(end for _, end in spans) - min(began for began, _ in spans)))


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
    small = args.device == "cpu"
    network, images = ("cifar_resnet8", 2000) if small else ("cifar_resnet44", 50_000)
    regime, config = description(args.device, network)
    from mixtune.study import tuning

    tuning.connect(None, os.cpu_count() or 1, 0 if small else 1)
    try:
        with random_images(images):
            found = side_by_side(
                {
                    "one": lambda: together(regime, config, 1, args.steps),
                    "packed": lambda: together(regime, config, args.trials, args.steps),
                    "processes": lambda: under_ray(args.device, network, images, args.steps, args.trials),
                },
                args.repeats,
            )
    finally:
        tuning.disconnect()
    middle = {k: spread(v)["median"] for k, v in found.items()}
    measured = {k: spread(v) for k, v in found.items()}
    rows = [
        {
            "what": f"GPU: steps per second of {args.trials} packed trials / of 1",
            "ratio": middle["packed"] / middle["one"],
            "at_least": 2.7,
            "aim": 5,
            "steps_per_second": measured,
        },
        {
            "what": f"GPU: {args.trials} packed trials / a process per trial under Ray with fractional GPUs",
            "ratio": middle["packed"] / middle["processes"],
            "at_least": 15,
            "aim": 30,
            "steps_per_second": measured,
        },
    ]
    settings = {"device": args.device, "network": network, "steps": args.steps, "trials": args.trials}
    conclude("packing", __doc__.split("\n")[0], settings, rows, write=not small)
    return 0


if __name__ == "__main__":
    run(main)
