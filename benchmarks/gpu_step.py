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

from benchmarks.common import conclude, side_by_side, spread
from benchmarks.trial import BASE, SIZES, description, images, network_of, steps, wait
from mixtune.cli import Parser, parse_args, run
from mixtune.regime import Schedule
from mixtune.training.compiling import compiled
from mixtune.training.learning.recipe import Recipe
from mixtune.training.networks import create
from mixtune.training.run import Run

TRAFFIC = 346e6  # bytes that a ResNet-50 step moves per image of 224 px: fused norms, bf16


def seconds_per_step(device: str, count: int, captured: bool, order: str = "random", S: int = 0) -> float:
    """Of a mixture, or of its shape of size S, after ten steps to warm up."""
    trial = Run.prepare(*description(device, epochs=4))
    s, warm = trial.schedule, min(10, count)
    index = np.resize(s.index[[i for i, shape in enumerate(s) if shape.S == S or not S]], warm + count)
    if order == "sorted":
        index[warm:].sort()
    began = 0.0
    for step in steps(trial, Schedule(s.shapes, index, s.cost), captured):
        if step == warm:
            wait(device)
            began = time.perf_counter()
    wait(device)
    return (time.perf_counter() - began) / count


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


def images_per_second(device: str, B: int, S: int, count: int, make: Callable[..., Any] = compiled) -> float:
    """ResNet-50 training, bf16, channels last, compiled, on random images that are on the device."""
    network = create("resnet50", 1000).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = Recipe().optimizer(network, captured=True)
    forward = make(network)
    inputs = torch.randn(B, 3, S, S, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (B,), device=device)
    began = 0.0
    for step in range(5 + count):
        if step == 5:
            wait(device)
            began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    wait(device)
    return B * count / (time.perf_counter() - began)


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
    small, d, n = args.device == "cpu", args.device, args.steps
    with images(d):
        orders = side_by_side(
            {
                "eager": lambda: seconds_per_step(d, n, captured=False),
                "engine": lambda: seconds_per_step(d, n, captured=True),
                "sorted": lambda: seconds_per_step(d, n, captured=True, order="sorted"),
            },
            args.repeats,
        )
        by_size = side_by_side(
            {str(S): lambda S=S: seconds_per_step(d, n, captured=True, S=S) for S in SIZES},  # type: ignore[misc]
            args.repeats,
        )
    large: dict[str, Callable[[], float]] = {
        "images": (lambda: images_per_second(d, 2, 32, 1, lambda x: x))
        if small
        else (lambda: images_per_second(d, 256, 224, 20)),
        "roofline": lambda: bandwidth(d, 2**20 if small else 2**31) / TRAFFIC,
    }
    roof = side_by_side(large, args.repeats)
    middle = {k: spread(v)["median"] for k, v in (orders | by_size | roof).items()}
    sizes = [middle[str(S)] for S in SIZES]
    measured = {k: spread(v) for k, v in orders.items()}
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
    settings = {"device": d, "network": network_of(d), "steps": n, "sizes": SIZES, "base": str(BASE)}
    conclude("gpu_step", __doc__.split("\n")[0], settings, rows, write=not small)
    return 0


if __name__ == "__main__":
    run(main)
