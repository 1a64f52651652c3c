"""What Ray Tune, Optuna and MLflow cost per trial: a real study of millisecond trials, through the real chain.

    python -m benchmarks.overhead                 200 trials one by one, then 1,000: about three minutes

A trial reports four times with a curve of five sizes, is sampled by multivariate TPE, may be pruned, is written to the
study's database and to MLflow with its files. The clock starts at the end of the first trial and stops when MLflow is
equal to the study, which a thread of the driver writes. From the cost per trial: the share of the wall time of a study
whose trials take 60 s. Then whether the cost stays flat, and the driver's memory.
"""

from __future__ import annotations

import logging
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.common import conclude, quartiles_of
from benchmarks.readme import ROOT
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import load_config
from mixtune.evaluation.curve import Curve
from mixtune.execution import ray_tune
from mixtune.execution.coordinator import Coordinator
from mixtune.profiling.concurrency import Concurrency
from mixtune.search.callbacks import Callbacks, Candidate, State
from mixtune.search.paths import StudyPaths, locked
from mixtune.search.space import Space
from mixtune.study.stores import open_stores

REPORTS, WINDOW, TRIAL_SECONDS = 4, 100, 60.0


def quick_trial(config: dict[str, Any]) -> None:
    """A trial that trains nothing: reports a curve that its regime decides, as ``tuning.run_trial`` does."""
    from ray import tune

    began = time.perf_counter()
    sizes = config["training"]["evaluate"]["sizes"]
    shares = {e["S"]: e["p"] for phase in config["regime"]["phases"] for e in phase["mixture"]}
    noise = random.Random(Path(config["folder"]).name)  # noqa: S311
    own = 0.0
    for number in range(1, REPORTS + 1):
        top1 = {S: 0.5 + 0.1 * number + 0.1 * shares.get(S, 0.0) + 0.02 * noise.random() for S in sizes}
        rows = [
            {"S": S, "gmacs": S**2 / 1e5, "top1": min(1.0, t), "top5": 1.0, "loss": 1 - t, "ece": 0.1}
            for S, t in top1.items()
        ]
        score = statistics.mean(top1.values())
        own += time.perf_counter() - began
        tune.report(
            {
                "number": number,
                "last": number == REPORTS,
                "score": score,
                "progress": number / REPORTS,
                "loss": 1 - score,
                "lr": 0.1,
                "views_per_second": 1000.0,
                "seconds": own,
                "curve": rows,
            }
        )
        began = time.perf_counter()


def resident(pid: int | str) -> float:
    """A process's resident memory in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


class Times:
    """When trials ended, and the driver's memory then (a ``Callback``)."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.mebibytes: list[float] = []

    def started(self, trial: Candidate) -> None:
        """Not of interest."""

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Not of interest."""

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Note the time and this process's memory."""
        self.ends.append(time.perf_counter())
        self.mebibytes.append(resident("self"))


def study(trials: int, at_once: int, folder: Path) -> tuple[Times, float]:
    """Run a study; returns its times, and the seconds per trial from the first end until MLflow has everything."""
    space = load_config(
        ROOT / "search_spaces" / "digits.yaml", Space, [f"trials={trials}", f"evaluate.reports={REPORTS}"]
    )
    times, places = Times(), StudyPaths(folder)
    with locked(folder), open_stores(space, places, 4, False) as opened_study:
        coordinator = Coordinator(
            opened_study.trials, space.training(1), folder, Callbacks([times, opened_study.tracker])
        )
        ray_tune.run_trial = quick_trial
        ray_tune.connect(None, at_once, 0)
        try:
            ray_tune.run(coordinator, Concurrency(1, 0, at_once), folder)
            if not opened_study.tracker.resync():
                raise RuntimeError("MLflow did not take everything")
            done = time.perf_counter()
        finally:
            ray_tune.disconnect()
        states = [o.state for o in opened_study.trials.outcomes()]
    if len(states) != trials or "FAIL" in states:
        raise RuntimeError(f"{len(states)} of {trials} trials ended, {states.count('FAIL')} of them failed")
    return times, (done - times.ends[0]) / (trials - 1)


def windows(values: Sequence[float]) -> list[float]:
    """Milliseconds per trial over successive windows."""
    marks = values[::WINDOW]
    return [1000 * (b - a) / WINDOW for a, b in pairwise(marks)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, print."""
    p = Parser("benchmarks.overhead", __doc__.split("\n")[0])
    p.add_argument("--trials", type=int, default=200, help="of the first study (default 200)")
    p.add_argument("--many", type=int, default=1000, help="of the second (default 1000)")
    args = parse_args(p, argv)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="mixtune-overhead-") as temporary:
        one, per_trial = study(args.trials, 1, Path(temporary) / "one")
        print(f"{args.trials} trials one by one: {1000 * per_trial:.1f} ms each", flush=True)
        many, per_many = study(args.many, 2, Path(temporary) / "many")
        print(f"{args.many} trials, two at once: {1000 * per_many:.1f} ms each", flush=True)
    cost = windows(many.ends)
    gaps = [1000 * (b - a) for a, b in pairwise(one.ends)]
    half = len(cost) // 2
    flat = statistics.mean(cost[half:]) / statistics.mean(cost[:half])
    grown = many.mebibytes[-1] - many.mebibytes[args.trials - 1]
    rows = [
        {
            "what": f"Ray Tune + Optuna + MLflow per trial at {args.trials} trials, in ms",
            "ratio": 1000 * per_trial,
            "at_least": 100.0,
            "aim": 50.0,
            "until_the_last_trial_ended_ms": statistics.mean(gaps),
            "between_ends_ms": quartiles_of(gaps),
        },
        {
            "what": f"share of the wall time of {TRIAL_SECONDS:g} s trials, in %",
            "ratio": 100 * per_trial / (TRIAL_SECONDS + per_trial),
            "at_least": 0.2,
            "aim": 0.1,
        },
        {
            "what": f"cost per trial in the second half of {args.many} trials over that in the first",
            "ratio": flat,
            "at_least": 1.25,
            "aim": 1.0,
            "ms_by_hundred": cost,
            "ms_until_mlflow_has_all": 1000 * per_many,
        },
        {
            "what": f"growth of the driver's memory from trial {args.trials} to {args.many}, in KiB per trial",
            "ratio": 1024 * grown / (args.many - args.trials),
            "at_least": 100.0,
            "aim": 20.0,
            "mebibytes_by_hundred": many.mebibytes[::WINDOW],
        },
    ]
    settings = {
        "trials": args.trials,
        "many": args.many,
        "reports": REPORTS,
        **{name: version(name) for name in ("ray", "optuna", "mlflow")},
    }
    conclude("overhead", __doc__.split("\n")[0], settings, rows)
    return 0


if __name__ == "__main__":
    run_command(main)
