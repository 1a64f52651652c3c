"""How much faster than a plain PyTorch loop does the engine train a small network on mixed sizes, on this CPU?

    python -m benchmarks.cpu_loop --data FOLDER

The plain loop has a DataLoader per size, as the MixSize authors' has, torchvision's transforms on PIL images, and the
same optimiser, learning rates and gradient smoothing. Both sides train on the same crops of the same images in the same
order, so they learn the same; the losses beside the times say so. Also: the share of a trial's wall time outside
forward, backward and optimiser, and the time of a mixture in random order against the same steps sorted by shape.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import conclude, quartiles_of, side_by_side
from mixtune.cli import Parser, parse_args, run_command
from mixtune.data import datasets, sources
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, Schedule, published
from mixtune.runtime.device import available_cpus
from mixtune.tasks.classification import Classification
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.run import Evaluation, Run, TrainingConfig

SIZES, BASE = (8, 12, 16, 24), BatchShape(16, 64)
SEED = 0


def config(folder: str, epochs: float, threads: int, reports: int = 1) -> TrainingConfig:
    """A short training of ResNet-8 on 10,000 images of CIFAR-10."""
    task = ClassificationConfig("cifar10", "cifar_resnet8", folder, samples=10_000)
    evaluate = Evaluation(SIZES, reports)
    return TrainingConfig(task, Budget(epochs), evaluate, Recipe(weight_decay=5e-4), seed=SEED, threads=threads)


def prepared(folder: str, epochs: float, threads: int, regime: str = "mixsize_b", reports: int = 1) -> Run:
    """A run that is ready to start."""
    return Run.prepare(published(regime, BASE, SIZES, 4), config(folder, epochs, threads, reports))


class PlainViews(Dataset[tuple[Tensor, int]]):
    """Item i -> image i at one size, by torchvision's transforms; where to crop is given, to be the engine's crop."""

    def __init__(self, source: sources.Pixels, mean: Sequence[float], std: Sequence[float], S: int) -> None:
        from torchvision import transforms

        self.images, self.labels = source.images.numpy(), source.labels
        self.pad = transforms.Pad(4)
        steps = [transforms.Resize(S), transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.finish = transforms.Compose(steps)

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[Tensor, int]:
        from PIL import Image
        from torchvision.transforms import functional as TF

        i, y, x, mirrored = key
        image = TF.crop(self.pad(Image.fromarray(self.images[i])), y, x, 32, 32)
        return self.finish(TF.hflip(image) if mirrored else image), int(self.labels[i])


def plain(trial: Run, workers: int) -> tuple[float, float]:
    """Seconds of the plain loop over the run's steps, and its mean loss over them."""
    dataset = datasets.load_dataset("cifar10", trial.config.task.data)
    keys: dict[int, list[list[tuple[int, int, int, int]]]] = {S: [] for S in SIZES}
    assert isinstance(trial.task, Classification)
    source = trial.task.train_source
    assert trial.task.pixels is not None
    assert isinstance(source, sources.Pixels)
    for drawn in trial.task.pixels.draw(trial.schedule, SEED):
        keys[drawn.shape.S].append(list(zip(*drawn.choices.tolist(), strict=True)))
    network = trial.task.network(SEED).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.train()
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": trial.recipe.weight_decay},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=trial.recipe.lr,
        momentum=trial.recipe.momentum,
    )
    rates = trial.recipe.learning_rates(trial.schedule.progress)
    losses, running = [], None
    began = time.perf_counter()
    loaders: dict[int, Iterator[tuple[Tensor, Tensor]]] = {
        S: iter(DataLoader(PlainViews(source, dataset.mean, dataset.std, S), batch_sampler=k, num_workers=workers))
        for S, k in keys.items()
    }
    for lr, shape in zip(rates, trial.schedule, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        images, labels = next(loaders[shape.S])
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), float("inf"))
        running = norm if running is None else 0.9 * running + 0.1 * norm
        for p in network.parameters():
            assert p.grad is not None
            p.grad.mul_(running / norm)
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    return seconds, statistics.mean(losses)


def engine(trial: Run) -> tuple[float, float]:
    """The same of the engine's loop: from the first view to the last step, without the evaluation at the end."""
    marks: dict[str, float] = {}
    evaluate = trial.task.evaluate

    def timed(*arguments: Any) -> Any:
        marks["trained"] = time.perf_counter()
        return evaluate(*arguments)

    trial.task.evaluate = timed  # type: ignore[method-assign, assignment]
    began = time.perf_counter()
    *_, last = trial.reports()
    return marks["trained"] - began, last.loss


def outside(folder: str, threads: int) -> dict[str, float]:
    """Shares of a trial's wall time, preparation to last report: its steps, its evaluation, and all the rest."""
    from mixtune.training.step import Engine

    spent = {"steps": 0.0, "evaluation": 0.0}

    def clocked(name: str, function: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    step = Engine.step
    began = time.perf_counter()
    try:
        Engine.step = clocked("steps", step)  # type: ignore[method-assign]
        trial = prepared(folder, 2, threads, reports=4)
        trial.task.evaluate = clocked("evaluation", trial.task.evaluate)  # type: ignore[method-assign]
        for _ in trial.reports():
            pass
    finally:
        Engine.step = step  # type: ignore[method-assign]
    whole = time.perf_counter() - began
    shares = {name: seconds / whole for name, seconds in spent.items()}
    return shares | {"rest": 1 - sum(shares.values())}


def order_seconds(folder: str, threads: int, ordered: bool) -> float:
    """Seconds of a mixture's steps, in random order or sorted by shape."""
    trial = prepared(folder, 1, threads)
    s = trial.schedule
    index = np.sort(s.index) if ordered else s.index
    same = Schedule(s.shapes, index, s.cost, s.phase_steps)
    seconds, _ = engine(Run(trial.task, trial.network, same, trial.config, trial.recipe))
    return seconds


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.cpu_loop", __doc__.split("\n")[0])
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds cifar-10-batches-py")
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--epochs", type=float, default=1.0)
    p.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the plain loop; its best counts")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    args = parse_args(parser(), argv)
    torch.set_num_threads(threads := available_cpus())
    trial = prepared(args.data, args.epochs, threads)
    losses: dict[str, float] = {}
    trials = {w: plain(prepared(args.data, args.epochs / 4, threads), w)[0] for w in args.workers}
    workers = min(trials, key=trials.__getitem__)
    print(f"the plain loop is fastest with {workers} workers per size: {trials}", flush=True)

    def side(name: str) -> float:
        fresh = prepared(args.data, args.epochs, threads)
        seconds, losses[name] = plain(fresh, workers) if name == "plain" else engine(fresh)
        return seconds

    prepared(args.data, args.epochs, threads)  # the data set is read before the clocks start
    found = side_by_side({n: lambda n=n: side(n) for n in ("plain", "engine")}, args.repeats)  # type: ignore[misc]
    orders = side_by_side(
        {n: lambda o=(n == "sorted"): order_seconds(args.data, threads, o) for n in ("random", "sorted")},  # type: ignore[misc]
        args.repeats,
    )
    shares = [outside(args.data, threads) for _ in range(args.repeats)]
    rest = quartiles_of([s["rest"] for s in shares])
    sides = {name: quartiles_of(seconds) for name, seconds in found.items()}
    ordered = {name: quartiles_of(seconds) for name, seconds in orders.items()}
    rows = [
        {
            "what": f"CPU: plain PyTorch loop with a DataLoader per size / engine, {len(trial.schedule)} steps",
            "ratio": sides["plain"]["median"] / sides["engine"]["median"],
            "at_least": 1.5,
            "aim": 3.0,
            "seconds": sides,
            "mean_loss": losses,
        },
        {
            "what": "CPU: share of a trial's wall time outside its steps and evaluations",
            "ratio": rest["median"],
            "at_least": 0.10,
            "aim": 0.05,
            "shares": {name: quartiles_of([s[name] for s in shares]) for name in shares[0]},
        },
        {
            "what": "CPU: random-order mixture / the same steps sorted by shape",
            "ratio": ordered["random"]["median"] / ordered["sorted"]["median"],
            "at_least": 1.03,
            "aim": 1.01,
            "seconds": ordered,
        },
    ]
    settings = {
        "network": "cifar_resnet8",
        "data": "10,000 images of CIFAR-10",
        "regime": str(published("mixsize_b", BASE, SIZES, 4)),
        "threads": threads,
        "workers of the plain loop": workers,
    }
    conclude("cpu_loop", __doc__.split("\n")[0], settings, rows)
    return 0


if __name__ == "__main__":
    run_command(main)
