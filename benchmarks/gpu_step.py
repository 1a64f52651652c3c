"""How much faster than eager bf16 is the engine's step on one GPU, and how near is it to what the memory allows?

    python -m benchmarks.gpu_step

ResNet-44 on MixSize B+ shapes of 32x64: whole captured steps against the same steps issued one by one; the mixture in
random order against the same steps sorted by shape; the slowest shape against the fastest. ResNet-50 at 224: images per
second against (copy bandwidth of this GPU / 346 MB), the traffic of an image with fused norms. The images are random:
speed does not depend on them. ``--device cpu`` rehearses the command in small, writes nothing and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import conclude, random_images, side_by_side, spread
from mixtune.cli import Parser, parse_args, run
from mixtune.regime import BatchShape, Budget, Schedule, published
from mixtune.training.compiling import compiled
from mixtune.training.engine import Engine
from mixtune.training.networks import create
from mixtune.training.recipe import Recipe
from mixtune.training.run import Evaluation, Run, TrainingConfig
from mixtune.training.task import TaskConfig

BASE, SIZES = BatchShape(32, 64), (16, 24, 32, 48)
TRAFFIC = 346e6  # bytes that a ResNet-50 step moves per image of 224 px: fused norms, bf16


def seconds_per_step(device: str, network: str, steps: int, captured: bool, order: str = "random", S: int = 0) -> float:
    """Of a mixture, or of its shape of size S, after ten steps to warm up."""
    task = TaskConfig("cifar10", network)
    config = TrainingConfig(task, Budget(4), Evaluation((32,), 1), Recipe(), device=device)  # type: ignore[arg-type]
    trial = Run.prepare(published("mixsize_b", BASE, SIZES, 4), config)
    s, warm = trial.schedule, min(10, steps)
    index = np.resize(s.index[[i for i, shape in enumerate(s) if shape.S == S or not S]], warm + steps)
    if order == "sorted":
        index[warm:].sort()
    schedule = Schedule(s.shapes, index, s.cost)
    trial.network.train()
    engine = Engine(trial.task, trial.network, trial.recipe, 0, recorder=None if captured else "off")
    engine.prepare(schedule, schedule.progress, 0, lambda _: None)
    began = 0.0
    for step, batch in enumerate(engine.batches(schedule, 0, 0)):
        if step == warm:
            wait(device)
            began = time.perf_counter()
        engine.train_on(batch, 0.01, step, 1.0, schedule.shapes[index[step]])
    wait(device)
    return (time.perf_counter() - began) / steps


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: str, size: int) -> float:
    """Bytes per second read and written by a copy on the device."""
    a, b = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    b.copy_(a)
    wait(device)
    began = time.perf_counter()
    for _ in range(10):
        b.copy_(a)
    wait(device)
    return 20 * size / (time.perf_counter() - began)


def images_per_second(device: str, B: int, S: int, steps: int, make: Callable[..., Any] = compiled) -> float:
    """ResNet-50 training, bf16, channels last, compiled, on random images that are on the device."""
    network = create("resnet50", 1000).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = Recipe().optimizer(network, captured=True)
    forward = make(network)
    images = torch.randn(B, 3, S, S, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (B,), device=device)
    began = 0.0
    for step in range(5 + steps):
        if step == 5:
            wait(device)
            began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wait(device)
    return B * steps / (time.perf_counter() - began)


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.gpu_step", __doc__.split("\n")[0])
    p.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--steps", type=int, default=300)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    args = parse_args(parser(), argv)
    small = args.device == "cpu"
    network, d, n = "cifar_resnet8" if small else "cifar_resnet44", args.device, args.steps
    with random_images(2000 if small else 50_000):
        steps = side_by_side(
            {
                "eager": lambda: seconds_per_step(d, network, n, captured=False),
                "engine": lambda: seconds_per_step(d, network, n, captured=True),
                "sorted": lambda: seconds_per_step(d, network, n, captured=True, order="sorted"),
            },
            args.repeats,
        )
        by_size = side_by_side(
            {str(S): lambda S=S: seconds_per_step(d, network, n, captured=True, S=S) for S in SIZES},  # type: ignore[misc]
            args.repeats,
        )
    large: dict[str, Callable[[], float]] = {
        "images": (lambda: images_per_second(d, 2, 32, 1, lambda x: x))
        if small
        else (lambda: images_per_second(d, 256, 224, 20)),
        "roofline": lambda: bandwidth(d, 2**20 if small else 2**31) / TRAFFIC,
    }
    roof = side_by_side(large, args.repeats)
    middle = {k: spread(v)["median"] for k, v in (steps | by_size | roof).items()}
    sizes = [middle[str(S)] for S in SIZES]
    measured = {k: spread(v) for k, v in steps.items()}
    rows = [
        {
            "what": "GPU: ResNet-44 mixture of 32x64, eager bf16 step / engine's step",
            "ratio": middle["eager"] / middle["engine"],
            "at_least": 5,
            "aim": 8,
            "seconds": measured,
        },
        {
            "what": "GPU: random-order mixture / the same steps sorted by shape",
            "ratio": middle["engine"] / middle["sorted"],
            "at_least": 1.03,
            "aim": 1.01,
            "seconds": measured,
        },
        {
            "what": "GPU: slowest / fastest shape of a constant-budget regime",
            "ratio": max(sizes) / min(sizes),
            "at_least": 1.05,
            "aim": 1.02,
            "seconds": {k: spread(v) for k, v in by_size.items()},
        },
        {
            "what": "GPU: ResNet-50 at 224, images per second / memory roofline",
            "ratio": middle["images"] / middle["roofline"],
            "at_least": 0.45,
            "aim": 0.60,
            "per_second": {k: spread(v) for k, v in roof.items()},
        },
    ]
    settings = {"device": d, "network": network, "steps": n, "sizes": SIZES, "base": str(BASE)}
    conclude("gpu_step", __doc__.split("\n")[0], settings, rows, write=not small)
    return 0


if __name__ == "__main__":
    run(main)
