"""Measure latency, memory and corrupted images, which a search does not: python -m analysis.measure --study NAME

The networks of a study are one network with other weights, so latency and memory are measured once, here, while nothing
else runs, and hold for all its trials. Corruptions are tried on the published regimes and the best searched one, with
the weights that MLflow keeps, on the hold-out. ``analysis.pareto --cost latency`` and ``analysis.robustness`` draw it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.finished import FinishedTrial
from analysis.record import over_severities
from analysis.runs import StudyRuns, names, read_study, store
from mixtune.cli import Parser, parse_args, run
from mixtune.config import override, parse
from mixtune.errors import InputError
from mixtune.evaluation.corruptions import robustness
from mixtune.evaluation.latency import measure_cost
from mixtune.regime import BatchShape
from mixtune.regime.files import load_regime
from mixtune.runtime.environment import environment
from mixtune.tasks.base import check_shapes, make_task
from mixtune.tracking.mlflow_reader import fetched
from mixtune.tracking.recorded import record_measured
from mixtune.training.run import TrainingConfig
from mixtune.training.run_folder import WEIGHTS

BySize = Mapping[str, Mapping[int, float]]  # metric -> size -> value


def configuration(study: StudyRuns, trial: FinishedTrial, folder: Path, data: str | None) -> TrainingConfig:
    """How a trial was trained, from the regime file that MLflow keeps. Raises InputError when it has none."""
    _, training = load_regime(fetched(study.uri, trial.run, "regime.yaml", folder))
    here = [] if data is None else [f"task.data={Path(data).expanduser().absolute()}"]
    return parse(override(training, here), TrainingConfig, f"trial {trial.number}: training")


def costs(config: TrainingConfig, sizes: Sequence[int], batch: int) -> tuple[BySize, str]:
    """Latency (seconds per image) and peak memory (bytes) of the study's network at every size; and where and how."""
    task = make_task(config.task, "validation", config.device)
    network = task.network(0)
    found = {S: measure_cost(network, S, batch, task.device) for S in sizes}
    here = environment()
    n = torch.get_num_threads()
    place = here["gpu"] if task.device.type == "cuda" else f"{here['cpu']}, {n} thread{'s' * (n != 1)}"
    values = {"latency": {S: c.latency for S, c in found.items()}, "memory": {S: c.memory for S, c in found.items()}}
    return values, f"batch {batch}, float32, {place}"


def corrupted(config: TrainingConfig, weights: Path, S: int) -> BySize:
    """Top-1 at S by corruption, mean over severities, with the batch-norm statistics that the trial was judged with."""
    task = make_task(config.task, "validation", config.device, config.evaluate.recalibrate)
    network = task.network(0)
    task.load_weights(network, weights)
    task.evaluate(network, [S])
    return over_severities(robustness(task, network, S))


def measure(study: StudyRuns, batch: int | None, S: int | None, data: str | None) -> None:
    """Measure and log, a line for each thing done. Raises InputError where data or weights are missing."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = configuration(study, study.trials[0], folder, data)
        if S is not None:
            try:
                check_shapes([BatchShape(S, 1)], config.task)
            except ValueError as err:
                raise InputError(f"--corruptions {S}: {err}") from None
        if batch is not None:
            values, how = costs(config, study.trials[0].curve.sizes, batch)
            for t in study.trials:
                record_measured(study.uri, t.run, values)
            record_measured(study.uri, study.parent, {}, {"mixtune.latency": how})
            print(f"latency and peak memory of {config.task.network} ({how})")
            for size, seconds in values["latency"].items():
                print(f"  {size:4d} px  {1e3 * seconds:9.3f} ms  {values['memory'][size] / 2**20:9.1f} MiB")
        for t in study.shown if S is not None else []:
            assert S is not None
            weights = fetched(study.uri, t.run, WEIGHTS, folder)
            found = corrupted(configuration(study, t, folder, data), weights, S)
            record_measured(study.uri, t.run, found)
            said = "  ".join(f"{k.partition('/')[2]} {100 * v[S]:.1f}" for k, v in found.items())
            print(f"corrupted at {S} px: {names([t])[0]:<14} {said}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.measure", (__doc__ or "").split("\n")[0])
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    p.add_argument("--latency", type=int, metavar="BATCH", help="measure latency and peak memory in batches of this")
    p.add_argument("--corruptions", type=int, metavar="S", help="measure top-1 under corruptions at this image size")
    p.add_argument("--data", metavar="FOLDER", help="where the data set lies (default: where the search had it)")
    args: Any = parse_args(p, argv)
    for flag, value in (("--latency", args.latency), ("--corruptions", args.corruptions)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, not {value}")
    study = read_study(store(args.tracking_uri, args.study), args.study)
    neither = args.latency is None and args.corruptions is None
    batch, S = (64, study.base.S) if neither else (args.latency, args.corruptions)
    measure(study, batch, S, args.data)
    return 0


if __name__ == "__main__":
    run(main)
