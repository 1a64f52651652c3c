"""How much faster than eager bf16 is the engine's step on one GPU, and how near is it to what the memory allows?

    python -m benchmarks.gpu_step

ResNet-44 on MixSize B+ shapes of 32x64: whole captured steps against the same steps issued one by one; the mixture in
random order against the same steps sorted by shape; the slowest shape against the fastest. ResNet-50 at 224, as the
engine steps it where images are read from files (issued one by one, compiled once that pays), but with images that are
on the device: images per second against (copy bandwidth of this GPU / 346 MB), the traffic of an image with fused
norms; beside it the bare compiled loop on one batch that is there already. The images are random: speed does not depend
on them. What is measured is written at once: the first network's rows stay if the second fails.
``--device cpu`` rehearses the command in small, writes nothing and measures nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.common import conclude, quartiles_of, random_images, side_by_side
from benchmarks.trial import BASE, SIZES, description, images, large, network_of, steps, wait
from mixtune.cli import Parser, parse_args, run_command
from mixtune.regime import Schedule
from mixtune.runtime.device import pick_device
from mixtune.training.run import Run
from mixtune.training.torch_compile import compile_network

TRAFFIC = 346e6  # bytes that a ResNet-50 step moves per image of 224 px: fused norms, bf16
IMAGENET = 90 * 1_281_167  # images of a whole training: by what is left of it the engine decides
WARM_UP = 20  # steps of ResNet-50; the engine has timed, compiled and timed again after 13


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


def images_per_second(step: Callable[[], Any], B: int, device: str, count: int) -> float:
    """Over ``count`` steps of B images."""
    wait(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return B * count / (time.perf_counter() - began)


def engines_step(trial: Run, say: Callable[[str], None]) -> Callable[[], Any]:
    """The next step of a run as long as ImageNet's, issued one by one and compiled where the engine finds it to pay."""
    s = trial.schedule
    long = Schedule(s.shapes, np.zeros(IMAGENET // s.shapes[0].B, np.int16), s.cost)
    return steps(trial, long, captured=False, say=say).__next__


def bare_step(trial: Run, make: Callable[..., Any] = compile_network) -> Callable[[], Any]:
    """A step without engine: forward, cross-entropy, backward and optimiser, on one batch that is on the device."""
    shape, device = trial.schedule.shapes[0], trial.task.device
    forward, optimizer = make(trial.network.train()), trial.recipe.optimizer(trial.network, captured=True)
    inputs = torch.randn(shape.B, 3, shape.S, shape.S, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (shape.B,), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(forward(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def small_network(device: str, count: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of ResNet-44."""
    with images(device):
        orders = side_by_side(
            {
                "eager": lambda: seconds_per_step(device, count, captured=False),
                "engine": lambda: seconds_per_step(device, count, captured=True),
                "sorted": lambda: seconds_per_step(device, count, captured=True, order="sorted"),
            },
            repeats,
        )
        by_size = side_by_side(
            {str(S): lambda S=S: seconds_per_step(device, count, captured=True, S=S) for S in SIZES},  # type: ignore[misc]
            repeats,
        )
    measured, shapes = ({k: quartiles_of(v) for k, v in side.items()} for side in (orders, by_size))
    sizes = [shape["median"] for shape in shapes.values()]
    return [
        {
            "what": "GPU: ResNet-44 mixture of 32x64, eager bf16 step / engine's step",
            "ratio": measured["eager"]["median"] / measured["engine"]["median"],
            "at_least": 5,
            "aim": 8,
            "seconds": measured,
        },
        {
            "what": "GPU: random-order mixture / the same steps sorted by shape",
            "ratio": measured["engine"]["median"] / measured["sorted"]["median"],
            "at_least": 1.03,
            "aim": 1.01,
            "seconds": measured,
        },
        {
            "what": "GPU: slowest / fastest shape of a constant-budget regime",
            "ratio": max(sizes) / min(sizes),
            "at_least": 1.05,
            "aim": 1.02,
            "seconds": shapes,
        },
    ]


def large_network(device: str, repeats: int) -> list[dict[str, Any]]:
    """The row of ResNet-50."""
    small, said = device == "cpu", list[str]()
    regime, config = large(device)
    base = regime.base
    with random_images(200 if small else 2048, base.S):
        engine = engines_step(Run.prepare(regime, config), said.append)
        bare = bare_step(Run.prepare(regime, config), (lambda network: network) if small else compile_network)
        for step in (engine, bare):
            images_per_second(step, base.B, device, 1 if small else WARM_UP)
        count = 1 if small else 20
        found = side_by_side(
            {
                "engine": lambda: images_per_second(engine, base.B, device, count),
                "bare": lambda: images_per_second(bare, base.B, device, count),
                "roofline": lambda: bandwidth(device, 2**20 if small else 2**31) / TRAFFIC,
            },
            repeats,
        )
    measured = {k: quartiles_of(v) for k, v in found.items()}
    return [
        {
            "what": "GPU: ResNet-50 at 224, the engine's images per second / memory roofline",
            "ratio": measured["engine"]["median"] / measured["roofline"]["median"],
            "at_least": 0.45,
            "aim": 0.60,
            "per_second": measured,
            "said": said,
        }
    ]


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
    d, n = args.device, args.steps
    pick_device(d)
    settings = {"device": d, "network": network_of(d), "steps": n, "sizes": SIZES, "base": str(BASE)}
    rows: list[dict[str, Any]] = []
    for part in (lambda: small_network(d, n, args.repeats), lambda: large_network(d, args.repeats)):
        rows += part()
        conclude("gpu_step", __doc__.split("\n")[0], settings, rows, write=d == "cuda")
    return 0


if __name__ == "__main__":
    run_command(main)
