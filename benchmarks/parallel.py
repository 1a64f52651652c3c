"""Two workers against one on two cores: the same real trials, and what asynchronous pruning leaves idle.

    python -m benchmarks.parallel                 about five minutes on two cores

Throughput: six published regimes of the digits space, trained to the end with one thread each, one at a time and two at
a time, in turn, from when every worker has done its first trial until the last trial begins. Beside it, what the
machine itself gives: the same training in two bare processes against one. Idle: a pruned search with two workers; what
a worker does is noted by itself, so that its time between two trials is idle time whatever it was waiting for. Beside
it, from the same trials: what halving in rounds (nobody goes on before everybody has reported) would leave idle.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.common import conclude, quartiles_of, side_by_side
from benchmarks.readme import ROOT
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import load_config
from mixtune.execution import ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import Concurrency
from mixtune.search.callbacks import Callbacks
from mixtune.search.paths import StudyPaths, locked
from mixtune.search.space import Space
from mixtune.search.trial_result import TrialResult
from mixtune.study.stores import open_stores
from mixtune.training.run import Run

_run_trial = ray_tune.run_trial


def timed_trial(config: dict[str, Any]) -> None:
    """A real trial that notes when it began and when it ended, stopped or not, on this machine's clock."""
    began = time.time()
    try:
        _run_trial(config)
    finally:
        (Path(config["folder"]) / "busy").write_text(f"{began} {time.time()}")


def study(workers: int, changes: Sequence[str], folder: Path) -> tuple[list[tuple[float, float]], list[TrialResult]]:
    """Run a search; returns (began, ended) of every trial in seconds, and the outcomes, both by number."""
    space = load_config(ROOT / "search_spaces" / "digits.yaml", Space, changes)
    with locked(folder), open_stores(space, StudyPaths(folder), 4, False) as opened_study:
        coordinator = Coordinator(opened_study.trials, space.training(1), folder, Callbacks([opened_study.tracker]))
        ray_tune.run_trial = timed_trial
        ray_tune.connect(None, workers, 0)
        try:
            ray_tune.run(coordinator, Concurrency(1, 0, workers), folder)
        finally:
            ray_tune.disconnect()
        outcomes = opened_study.trials.outcomes()
    if len(outcomes) != space.trials or any(o.state == "FAIL" for o in outcomes):
        raise RuntimeError(f"{len(outcomes)} of {space.trials} trials ended: {[o.reason for o in outcomes]}")
    marks = [(folder / "trials" / f"{o.number:04d}" / "busy").read_text().split() for o in outcomes]
    return [(float(a), float(b)) for a, b in marks], outcomes


def makespan(busy: Sequence[tuple[float, float]]) -> float:
    """Seconds from the first beginning to the last end."""
    return max(b for _, b in busy) - min(a for a, _ in busy)


def trial_rate(busy: Sequence[tuple[float, float]], workers: int) -> float:
    """Trials per second while every worker has been warm and there was another trial to begin."""
    begin, end = sorted(b for _, b in sorted(busy)[:workers])[-1], max(a for a, _ in busy)
    done = sum(max(0.0, min(b, end) - max(a, begin)) / (b - a) for a, b in busy)
    return done / (end - begin)


def train_alone(changes: Sequence[str]) -> None:
    """What a trial trains, without a search: the digits space's fixed size, on one thread."""
    space = load_config(ROOT / "search_spaces" / "digits.yaml", Space, changes)
    regime = space.regime(space.published_params("fixed", 4), "fixed")
    for _ in Run.prepare(regime, space.training(1)).reports():
        pass


def bare(processes: int, changes: Sequence[str], runs: int = 2) -> float:
    """Runs per second in so many processes at once, without Ray, Optuna or MLflow; each has made one run before."""
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context) for _ in range(processes)]
    try:
        for f in [pool.submit(train_alone, changes) for pool in pools]:
            f.result()
        began = time.perf_counter()
        for f in [pool.submit(train_alone, changes) for pool in pools for _ in range(runs)]:
            f.result()
        return processes * runs / (time.perf_counter() - began)
    finally:
        for pool in pools:
            pool.shutdown()


def idle(busy: Sequence[tuple[float, float]], workers: int) -> float:
    """Share of the workers' time, until the last trial began (then there is nothing left to do), without a trial."""
    begin, end = min(a for a, _ in busy), max(a for a, _ in busy)
    used = sum(min(b, end) - a for a, b in busy if a < end)
    return 1 - used / (workers * (end - begin))


def idle_in_rounds(seconds: Sequence[float], rungs: Sequence[int], last: int, workers: int) -> float:
    """What halving in rounds would leave idle: all run to a rung, the better half goes on, and everyone waits.

    ``seconds``: each trial's for the whole budget; ``rungs``: reports at which is halved, of ``last``. The order of the
    trials stands for their rank. Trials are handed to the first free worker; checkpoints are taken to cost nothing.
    """
    used = spent = 0.0
    left, before = list(seconds), 0
    for rung in (*rungs, last):
        free = [0.0] * workers
        for one in left:
            part = one * (rung - before) / last
            at = free.index(min(free))
            free[at] += part
            used += part
        spent += max(free)
        left, before = left[: max(1, len(left) // 2)], rung
    return 1 - used / (workers * spent)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    p = Parser("benchmarks.parallel", __doc__.split("\n")[0])
    p.add_argument("--repeats", type=int, default=2, help="of the throughput (default 2)")
    p.add_argument("--trials", type=int, default=14, help="of the pruned search (default 14)")
    p.add_argument("--epochs", type=float, default=2.0, help="of a trial (default 2)")
    args = parse_args(p, argv)
    logging.basicConfig(level=logging.WARNING)
    common = [f"budget.epochs={args.epochs:g}", "evaluate.reports=6"]
    fixed = [*common, "trials=6", "pruner.name=none", "pruner.options={}"]
    spans: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="mixtune-parallel-") as temporary:
        count = iter(range(1000))

        def throughput(workers: int) -> float:
            busy, _ = study(workers, fixed, Path(temporary) / str(next(count)))
            spans[workers].append(makespan(busy))
            return trial_rate(busy, workers)

        sides = {
            "one": lambda: throughput(1),
            "two": lambda: throughput(2),
            "bare one": lambda: bare(1, common),
            "bare two": lambda: bare(2, common),
        }
        found = side_by_side(sides, args.repeats)
        busy, outcomes = study(2, [*common, f"trials={args.trials}"], Path(temporary) / "pruned")
    ratios = [two / one for one, two in zip(found["one"], found["two"], strict=True)]
    limits = [two / one for one, two in zip(found["bare one"], found["bare two"], strict=True)]
    whole_spans = [one / two for one, two in zip(spans[1], spans[2], strict=True)]
    whole = [b - a for (a, b), o in zip(busy, outcomes, strict=True) if o.state == "COMPLETE"]
    typical = [whole[i % len(whole)] for i in range(args.trials)]  # pruned trials as if they had gone on
    rows = [
        {
            "what": "throughput of two workers over that of one, on two cores",
            "ratio": quartiles_of(ratios)["median"],
            "at_least": 1.6,
            "aim": 1.9,
            "ratios": quartiles_of(ratios),
            "with_start_and_end": quartiles_of(whole_spans),
            "trials_per_second": {name: quartiles_of(values) for name, values in found.items()},
        },
        {
            "what": "the same over what two bare processes reach over one",
            "ratio": quartiles_of(ratios)["median"] / quartiles_of(limits)["median"],
            "at_least": 0.9,
            "aim": 1.0,
            "bare": quartiles_of(limits),
        },
        {
            "what": "two workers' idle time in a search with asynchronous pruning, in %",
            "ratio": 100 * idle(busy, 2),
            "at_least": 10.0,
            "aim": 3.0,
            "states": [o.state for o in outcomes],
            "same_trials_in_rounds_percent": 100 * idle_in_rounds(typical, [2, 4], 6, 2),
        },
    ]
    settings = {
        "trials": args.trials,
        "epochs": args.epochs,
        "threads_per_worker": 1,
        **{name: version(name) for name in ("ray", "optuna", "mlflow")},
    }
    conclude("parallel", __doc__.split("\n")[0], settings, rows)
    return 0


if __name__ == "__main__":
    run_command(main)
