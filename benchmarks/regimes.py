"""Does training on mixed sizes pay? A fixed size against MixSize B+ and D+ on CIFAR-10, over seeds, on test images.

    python -m benchmarks.regimes cpu --data FOLDER                  two cores, a quarter of an hour, a small network
    python -m benchmarks.regimes gpu --data FOLDER --minutes 9      ResNet-44 as in MixSize; repeat until it says done
    python -m benchmarks.regimes gpu60 --data FOLDER --minutes 9    the same in 60 epochs and equal compute alone

Every run keeps a checkpoint in --work, so the command goes on where it was stopped. Results go to
benchmarks/results/PLAN.json with hardware, versions, commit and seeds. The verdict is on the mean top-1 over sizes: the
difference to the fixed size, paired by seed, with its 95 % interval; an interval that holds 0 is "no difference".
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from benchmarks.common import RESULTS, hardware
from benchmarks.readme import ROOT
from benchmarks.verdict import verdict
from mixtune.cli import Parser, parse_args, run_command
from mixtune.evaluation.bn_recalibration import Recalibration
from mixtune.files import atomic_write, digest
from mixtune.optim.recipe import Recipe
from mixtune.regime import BatchShape, Budget, published
from mixtune.runtime.device import pick_device
from mixtune.tasks.classification_config import ClassificationConfig
from mixtune.training.checkpoint import non_default_fields
from mixtune.training.packing import TrialPack, YieldTurn
from mixtune.training.run import Evaluation, Run, TrainingConfig


@dataclass(frozen=True)
class Plan:
    """What is compared: ``regimes`` against the first of them, for every way to ``spend`` the budget.

    processes: that train at the same time, with ``packed`` runs in each, which share its GPU. device: what it is for.
    """

    network: str
    base: BatchShape
    epochs: float
    sizes: tuple[int, ...]
    recipe: Recipe
    spend: tuple[Literal["compute", "epochs"], ...]
    seeds: int
    processes: int
    samples: int | None = None
    regimes: tuple[str, ...] = ("fixed", "mixsize_b", "mixsize_d")
    packed: int = 1
    device: Literal["cpu", "cuda"] = "cpu"


PLANS = {
    "cpu": Plan(
        "cifar_resnet8",
        BatchShape(16, 64),
        epochs=10,
        sizes=(8, 12, 16, 20, 24, 32),
        recipe=Recipe(lr=0.1, weight_decay=5e-4, warmup=0.1),
        spend=("compute",),
        seeds=4,
        processes=2,
        samples=10_000,
    ),
    # The MixSize authors' recipe: 0.1, divided by 10 after epochs 81, 122 and 164 of 200, batch 64.
    "gpu": Plan(
        "cifar_resnet44",
        BatchShape(32, 64),
        epochs=200,
        sizes=(16, 20, 24, 28, 32, 40, 48, 64),
        recipe=Recipe(lr=0.1, weight_decay=1e-4, schedule="step", warmup=0.0),
        spend=("compute", "epochs"),
        seeds=3,
        processes=1,
        packed=6,  # a seed's runs end together, and can be compared
        device="cuda",
    ),
}
PLANS["gpu60"] = replace(PLANS["gpu"], epochs=60, spend=("compute",), packed=9)


class TimeUpError(Exception):
    """This piece of the benchmark has used its minutes."""


@dataclass(frozen=True)
class Job:
    """One run of a plan."""

    regime: str
    spend: Literal["compute", "epochs"]
    seed: int


def jobs(plan: Plan) -> list[Job]:
    """All runs, seed by seed, so that what is there at any time can be compared."""
    return [Job(r, spend, seed) for seed in range(1, plan.seeds + 1) for spend in plan.spend for r in plan.regimes]


def train_once(
    plan: Plan, job: Job, data: str, work: Path, deadline: float, turn: Callable[[], None] = lambda: None
) -> dict[str, Any] | None:
    """Train one run on the whole training set and judge it on the test set; None when the time was up before.

    Two curves: with the running batch-norm statistics, and with statistics chosen per size on held-back images.
    ``turn`` is called after every step and between the batches of an evaluation.
    """
    if time.time() > deadline:
        return None
    regime = published(job.regime, plan.base, plan.sizes, 4)
    task = ClassificationConfig("cifar10", plan.network, data, samples=plan.samples)
    evaluate, budget = Evaluation(plan.sizes, 1, Recalibration(("train",), images=2560)), Budget(plan.epochs, job.spend)
    threads = max(1, len(os.sched_getaffinity(0)) // plan.processes)
    config = TrainingConfig(task, budget, evaluate, plan.recipe, seed=job.seed, threads=threads, device=plan.device)
    prepared = Run.prepare(regime, config, "test")
    prepared.task.pause = turn

    def stop(step: int, views: int) -> None:
        if time.time() > deadline:
            raise TimeUpError
        turn()

    try:
        (report,) = prepared.reports(work / f"{job.regime}-{job.spend}-{job.seed}.pt", every=20.0, on_step=stop)
    except TimeUpError:
        return None
    s = prepared.schedule
    curves = {
        "running": prepared.task.evaluate(prepared.network, plan.sizes, calibrated=False),
        "calibrated": report.curve,
    }
    return {
        "regime": job.regime,
        "spend": job.spend,
        "seed": job.seed,
        "steps": len(s),
        "epochs": s.samples / prepared.task.n_train,
        "pixels": s.pixels,
        "seconds": report.seconds,
        "top1": {name: {str(p.S): p.metrics["top1"] for p in curve.points} for name, curve in curves.items()},
    }


def in_processes(
    plan: Plan, missing: Sequence[Job], data: str, work: Path, deadline: float
) -> Iterator[dict[str, Any] | None]:
    """The results of ``train_once``, as they come."""
    with ProcessPoolExecutor(plan.processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train_once, plan, job, data, work, deadline) for job in missing]):
            yield future.result()


def packed(
    plan: Plan, missing: Sequence[Job], data: str, work: Path, deadline: float
) -> Iterator[dict[str, Any] | None]:
    """The same of runs that share this process and its GPU, their steps in turn."""
    pack: TrialPack[dict[str, Any] | None] = TrialPack(pick_device(plan.device))

    def once(job: Job, turn: YieldTurn, report: Callable[[dict[str, Any] | None], None]) -> None:
        report(train_once(plan, job, data, work, deadline, turn))

    def train(job: Job) -> dict[str, Any] | None:
        pack.start(str(job), partial(once, job))
        result = pack.next(str(job))
        pack.next(str(job))  # to its end, which frees what it holds
        return result

    with ThreadPoolExecutor(plan.packed) as pool:
        for future in as_completed([pool.submit(train, job) for job in missing]):
            yield future.result()


def table(plan: Plan, runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Top-1 in per cent per size, mean and deviation over seeds, and the verdicts."""
    for spend in plan.spend:
        for statistic in ("running", "calibrated"):
            yield f"\nequal {spend}, {statistic} batch-norm statistics: top-1 in %, mean ± deviation over seeds"
            yield f"{'regime':<11}{'steps':>8}{'epochs':>8}" + "".join(f"{S:>14}" for S in [*plan.sizes, "mean"])
            means: dict[str, dict[int, float]] = {}
            for regime in plan.regimes:
                found = [r for r in runs if (r["regime"], r["spend"]) == (regime, spend)]
                if not found:
                    continue
                rows = [[100 * r["top1"][statistic][str(S)] for S in plan.sizes] for r in found]
                means[regime] = {r["seed"]: statistics.mean(row) for r, row in zip(found, rows, strict=True)}
                columns = [*zip(*rows, strict=True), tuple(means[regime].values())]
                cells = (
                    f"{statistics.mean(c):7.2f} ± {statistics.stdev(c) if len(c) > 1 else math.nan:4.2f}"
                    for c in columns
                )
                yield f"{regime:<11}{found[0]['steps']:>8,}{found[0]['epochs']:>8.1f}" + "".join(
                    f"{c:>14}" for c in cells
                )
            base = means.get(plan.regimes[0], {})
            for regime in plan.regimes[1:]:
                pairs = [means[regime][s] - base[s] for s in sorted(base) if s in means.get(regime, {})]
                if pairs:
                    yield f"{regime} against {plan.regimes[0]}, mean over sizes: {verdict(pairs)}"


def parser() -> Parser:
    """The command's flags."""
    p = Parser("benchmarks.regimes", __doc__.split("\n")[0])
    p.add_argument("plan", choices=sorted(PLANS))
    p.add_argument("--data", required=True, metavar="FOLDER", help="holds cifar-10-batches-py")
    p.add_argument("--minutes", type=float, default=math.inf, help="stop after this long; the same command goes on")
    p.add_argument("--work", metavar="FOLDER", help="checkpoints (default: PLAN in benchmarks/work, which git ignores)")
    p.add_argument("--out", metavar="FILE", help="results (default: benchmarks/results/PLAN.json)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run what is missing, print."""
    args = parse_args(parser(), argv)
    plan = PLANS[args.plan]
    pick_device(plan.device)
    out = Path(args.out or RESULTS / f"{args.plan}.json").absolute()
    work = Path(args.work or ROOT / "benchmarks" / "work" / args.plan).absolute()
    deadline = time.time() + 60 * args.minutes
    named, made_on = digest(non_default_fields(plan)), hardware()  # the commit that the runs start from
    runs: list[dict[str, Any]] = []
    if out.exists() and (old := json.loads(out.read_text()))["plan"] == named:
        runs = old["runs"]
    done = {(r["regime"], r["spend"], r["seed"]) for r in runs}
    missing = [j for j in jobs(plan) if (j.regime, j.spend, j.seed) not in done]
    for result in (packed if plan.packed > 1 else in_processes)(plan, missing, args.data, work, deadline):
        if result is not None:
            runs.append(result)
            content = {"plan": named, "settings": non_default_fields(plan), "hardware": made_on, "runs": runs}
            atomic_write(out, json.dumps(content, indent=1).encode())
            place = f"{result['regime']}, equal {result['spend']}, seed {result['seed']}"
            print(f"{len(runs)} of {len(jobs(plan))}: {place}: {result['seconds']:.0f} s", flush=True)
    runs.sort(key=lambda r: (r["seed"], r["spend"], plan.regimes.index(r["regime"])))
    print("\n".join(table(plan, runs)))
    left = len(jobs(plan)) - len(runs)
    print("\ndone" if not left else f"\n{left} of {len(jobs(plan))} runs are not finished: the same command goes on")
    return 0


if __name__ == "__main__":
    run_command(main)
