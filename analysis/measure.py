"""Measure latency, memory and the primary metric on corrupted images: python -m analysis.measure --study NAME

All trials of a study train the same architecture, so latency and memory are measured once and recorded for every trial.
Corruptions are measured on the validation images, for the published regimes and the best searched one, with the weights
in MLflow. ``analysis.pareto --cost latency`` and ``analysis.robustness`` draw the results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from analysis.add_runs import mean_over_severities
from analysis.finished_trial import FinishedTrial
from analysis.study_runs import StudyRuns, read_study, tracking_uri, trial_names
from mixtune.cli import Parser, parse_args, run_command
from mixtune.config import override, parse
from mixtune.errors import InputError
from mixtune.evaluation.corruptions import robustness
from mixtune.evaluation.latency import measure_cost
from mixtune.regime import BatchShape
from mixtune.regime.files import load_regime
from mixtune.runtime.environment import describe_environment
from mixtune.tasks.base import check_shapes, make_task
from mixtune.tracking.mlflow_reader import fetched
from mixtune.tracking.recorded import record_measured
from mixtune.training.run import TrainingConfig
from mixtune.training.run_folder import WEIGHTS

MetricsBySize = Mapping[str, Mapping[int, float]]  # metric -> size -> value


def training_config(study: StudyRuns, trial: FinishedTrial, folder: Path, data: str | None) -> TrainingConfig:
    """Return the configuration that a trial was trained with, from the regime file in MLflow.

    ``folder``: where the file is downloaded to; ``data``: the data set's folder, where it has moved. Raises InputError
    when MLflow holds no such file.
    """
    _, training = load_regime(fetched(study.uri, trial.run, "regime.yaml", folder))
    moved = [] if data is None else [f"task.data={Path(data).expanduser().absolute()}"]
    return parse(override(training, moved), TrainingConfig, f"trial {trial.number}: training")


def measure_costs(config: TrainingConfig, sizes: Sequence[int], batch: int) -> tuple[MetricsBySize, str]:
    """Return latency (seconds per image) and peak memory (bytes) by size, and the conditions they were measured in."""
    task = make_task(config.task, "validation", config.device)
    network = task.network(0)
    costs = {S: measure_cost(network, S, batch, task.device) for S in sizes}
    machine = describe_environment()
    n = torch.get_num_threads()
    device = machine["gpu"] if task.device.type == "cuda" else f"{machine['cpu']}, {n} thread{'s' * (n != 1)}"
    values = {"latency": {S: c.latency for S, c in costs.items()}, "memory": {S: c.memory for S, c in costs.items()}}
    return values, f"batch {batch}, float32, {device}"


def measure_corruptions(config: TrainingConfig, weights: Path, S: int) -> MetricsBySize:
    """Return the primary metric at size S by corruption, mean over severities; recalibrated as the trial was."""
    task = make_task(config.task, "validation", config.device, config.evaluate.recalibrate)
    network = task.network(0)
    task.load_weights(network, weights)
    task.evaluate(network, [S])
    return mean_over_severities(robustness(task, network, S), task.metrics.primary.name)


def measure_study(study: StudyRuns, batch: int | None, S: int | None, data: str | None) -> None:
    """Measure, record in MLflow and print. Raises InputError where data or weights are missing.

    ``batch``: batch size for latency and memory, or None; ``S``: test size for corruptions, or None; ``data``: as in
    ``training_config``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = training_config(study, study.trials[0], folder, data)
        if S is not None:
            try:
                check_shapes([BatchShape(S, 1)], config.task)
            except ValueError as err:
                raise InputError(f"--corruptions {S}: {err}") from None
        if batch is not None:
            values, conditions = measure_costs(config, study.trials[0].curve.sizes, batch)
            for t in study.trials:
                record_measured(study.uri, t.run, values)
            record_measured(study.uri, study.parent, {}, {"mixtune.latency": conditions})
            print(f"latency and peak memory of {config.task.network} ({conditions})")
            for size, seconds in values["latency"].items():
                print(f"  {size:4d} px  {1e3 * seconds:9.3f} ms  {values['memory'][size] / 2**20:9.1f} MiB")
        for t in study.shown if S is not None else []:
            assert S is not None
            weights = fetched(study.uri, t.run, WEIGHTS, folder)
            values = measure_corruptions(training_config(study, t, folder, data), weights, S)
            record_measured(study.uri, t.run, values)
            shown = study.metrics.primary.shown
            columns = "  ".join(f"{name.partition('/')[2]} {shown(v[S], 1)}" for name, v in values.items())
            print(f"corrupted at {S} px: {trial_names([t])[0]:<14} {columns}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, print."""
    p = Parser("analysis.measure", (__doc__ or "").split("\n")[0])
    p.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    p.add_argument("--tracking-uri", metavar="URI", help="MLflow store (default: sqlite:///studies/NAME/mlflow.db)")
    p.add_argument("--latency", type=int, metavar="BATCH", help="measure latency and peak memory in batches of this")
    p.add_argument("--corruptions", type=int, metavar="S", help="measure under corruptions, at this image size")
    p.add_argument("--data", metavar="FOLDER", help="where the data set lies (default: where the search had it)")
    args: Any = parse_args(p, argv)
    for flag, value in (("--latency", args.latency), ("--corruptions", args.corruptions)):
        if value is not None and value < 1:
            raise InputError(f"{flag} must be at least 1, not {value}")
    study = read_study(tracking_uri(args.tracking_uri, args.study), args.study)
    neither = args.latency is None and args.corruptions is None
    batch, S = (64, study.base.S) if neither else (args.latency, args.corruptions)
    measure_study(study, batch, S, args.data)
    return 0


if __name__ == "__main__":
    run_command(main)
