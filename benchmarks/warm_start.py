"""How soon does a trial train whose shapes were seen before in this process, against one in a new process?

    python -m benchmarks.warm_start [--data FOLDER] [--device cuda]

Cold: from the start of a new Python process to the end of the first step of every batch shape: imports, reading the
data, network, and on a GPU its context and the captures. Warm: the same of the next trial in that process, with another
seed. Without --data the images are random, and reading them is not part of the time.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Literal

from benchmarks.common import conclude, quartiles_of, random_images
from benchmarks.readme import ROOT
from mixtune.cli import Parser, parse_args, run_command


def first_steps(
    device: Literal["cpu", "cuda"],
    data: str | None,
    seed: int,
    network: str,
    base: tuple[int, int],
    sizes: tuple[int, ...],
) -> None:
    """Prepare a trial and do one step of every shape."""
    import torch

    from mixtune.optim.recipe import Recipe
    from mixtune.regime import BatchShape, Budget, published
    from mixtune.tasks.classification_config import ClassificationConfig
    from mixtune.training.run import Evaluation, Run, TrainingConfig
    from mixtune.training.step import Engine

    task, evaluate = ClassificationConfig("cifar10", network, data), Evaluation(sizes, 1)
    config = TrainingConfig(task, Budget(2), evaluate, Recipe(), seed=seed, device=device)
    trial = Run.prepare(published("mixsize_b", BatchShape(*base), sizes, 4), config)
    trial.network.train()
    engine = Engine(trial.task, trial.network, trial.recipe, seed)
    engine.prepare(trial.schedule, trial.schedule.progress, 0, lambda _: None)
    seen = set()
    for step, batch in enumerate(engine.batches(trial.schedule, seed, 0)):
        index = int(trial.schedule.index[step])
        if index not in seen:
            seen.add(index)
            engine.step(batch, 0.01, step, 1.0, trial.schedule.shapes[index])
        if len(seen) == len(trial.schedule.shapes):
            break
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def child(began: float, device: Literal["cpu", "cuda"], data: str | None) -> None:
    """In the new process: a cold trial and a warm one."""
    network, base, sizes = (
        ("cifar_resnet44", (32, 64), (16, 24, 32, 48))
        if device == "cuda"
        else ("cifar_resnet8", (16, 64), (8, 12, 16, 24))
    )
    with contextlib.nullcontext() if data else random_images(50_000):
        first_steps(device, data, 0, network, base, sizes)
        cold = time.time()
        first_steps(device, data, 1, network, base, sizes)
        warm = time.time()
    print(json.dumps({"cold": cold - began, "warm": warm - cold, "network": network}))


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.warm_start", __doc__.split("\n")[0])
    p.add_argument("--data", metavar="FOLDER", help="holds cifar-10-batches-py")
    p.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--child", type=float, metavar="TIME", help="used by the command itself")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    args = parse_args(parser(), argv)
    if args.child is not None:
        child(args.child, args.device, args.data)
        return 0
    from mixtune.runtime.device import pick_device

    device = pick_device(args.device).type
    words = [sys.executable, "-m", "benchmarks.warm_start", "--device", device]
    words += ["--data", args.data] if args.data else []
    found = []
    for i in range(args.repeats):
        done = subprocess.run(  # noqa: S603
            [*words, "--child", repr(time.time())], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
        )
        if done.returncode:
            return done.returncode  # it has said why
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(
            f"  {i + 1} of {args.repeats}  cold {found[-1]['cold']:.2f} s, warm {found[-1]['warm']:.2f} s", flush=True
        )
    sides = {side: quartiles_of([f[side] for f in found]) for side in ("cold", "warm")}
    row = {
        "what": "warm start of a trial whose shapes were seen / cold start",
        "ratio": sides["warm"]["median"] / sides["cold"]["median"],
        "at_least": 0.2,
        "aim": 0.05,
        "seconds": sides,
    }
    settings = {"network": found[0]["network"], "images": (args.data and "CIFAR-10") or "random"}
    conclude(f"warm_start_{device}", __doc__.split("\n")[0], settings, [row])
    return 0


if __name__ == "__main__":
    run_command(main)
