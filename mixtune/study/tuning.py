"""Ray Tune runs the trials; Optuna, through ``sampling.Trials``, decides what to try and when to stop.

Ray's own OptunaSearch never prunes and records stopped trials as complete, so the bridge is ours. Any exception in a
searcher or scheduler ends a Ray experiment, so none leaves them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# Read by Ray when it is imported or started: its own console output off, no logger files, no usage report.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mixtune.config import parse
from mixtune.errors import InputError, TrainingError
from mixtune.regime.files import regime_from_dict
from mixtune.study.bridge import Bridge
from mixtune.study.preflight import Slots
from mixtune.training.loop import Report
from mixtune.training.run import Run, TrainingConfig
from mixtune.training.trained import save_result

T = TypeVar("T")
log = logging.getLogger("mixtune")


def connect(address: str | None, cpus: int, gpus: int) -> None:
    """Start a Ray cluster on this machine, or join the one at ``address``. Raises InputError when that fails.

    A local cluster listens on all interfaces, but asks for the token that Ray keeps in the home folder (its default).
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        # Ray's memory monitor would end the whole experiment; the kernel's killer ends one trial.
        os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
        # Ray starts workers through a shell and does not quote the interpreter: a path with a space in it needs it.
        interpreter = shlex.quote(sys.executable)
        if interpreter != sys.executable:
            quiet["runtime_env"] = {"py_executable": interpreter}
        ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=2**28, **quiet)
        return
    try:
        ray.init(address, **quiet)
    except Exception as err:
        raise InputError(
            f"--address {address}: no Ray cluster answers there ({str(err).splitlines()[0]}); if it asks for a token, "
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        ) from None


def disconnect() -> None:
    """Stop the local cluster, or leave the other one."""
    with contextlib.suppress(Exception):
        ray.shutdown()


def cluster() -> tuple[float, float]:
    """CPUs and GPUs of the cluster in all."""
    there = ray.cluster_resources()
    return there.get("CPU", 0.0), there.get("GPU", 0.0)


def call(function: Callable[..., T], slots: Slots, *arguments: Any) -> T:
    """Run a function once where a trial would run, with a trial's share of the machine. Raises what it raises."""
    remote = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus)(function)
    try:
        result: T = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayTaskError as err:
        raise (err.cause if isinstance(err.cause, InputError) else err) from None
    return result


def metrics_of(report: Report, score: float, last: bool) -> dict[str, Any]:
    """A report as the plain values that Ray carries to the driver."""
    return {
        "number": report.number,
        "last": last,
        "score": score,
        "progress": report.progress,
        "loss": report.loss,
        "lr": report.lr,
        "views_per_second": report.views_per_second,
        "seconds": report.seconds,
        "curve": report.curve.rows(),
    }


def run_trial(config: dict[str, Any]) -> None:
    """What a Ray worker runs: train one regime and report. Bad luck is reported as ``failed``, not raised."""
    try:
        regime, _ = regime_from_dict(config["regime"], "regime")
        training = parse(config["training"], TrainingConfig, "training")
        job = Run.prepare(regime, training)
        for report in job.reports(Path(config["checkpoint"])):
            last = report.step == len(job.schedule)
            if last:
                save_result(Path(config["folder"]), job, report)
            tune.report(metrics_of(report, training.score.of(report.curve), last))
    except (InputError, TrainingError) as err:
        tune.report({"failed": str(err)})
    except Exception as err:
        Path(config["folder"], "error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        tune.report({"failed": f"{type(err).__name__}: {err}"[:1000]})


class _Searcher(Searcher):  # type: ignore[misc]
    """Asks the bridge for candidates and tells it of ends."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge: Bridge | None = bridge

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """A configuration, or FINISHED."""
        assert self.bridge is not None
        try:
            configuration = self.bridge.suggest(trial_id)
            return str(Searcher.FINISHED) if configuration is None else configuration
        except Exception:
            log.exception("no candidate could be made; no further trials are started")
            return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Ray's word that a trial ended, for whatever reason."""
        assert self.bridge is not None
        try:
            self.bridge.end(trial_id, error)
        except Exception:
            log.exception("the end of a trial could not be recorded; resuming the study repeats it")

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the study is in Optuna's storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bridge": None}  # holds open databases


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops what Optuna prunes."""

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge: Bridge | None = bridge

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP."""
        assert self.bridge is not None
        try:
            stop = self.bridge.report(trial.trial_id, result)
        except Exception:
            log.exception("a report could not be recorded; the trial goes on")
            stop = False
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "bridge": None}


def run(bridge: Bridge, slots: Slots, folder: Path) -> None:
    """Run trials until the study has as many as it asks for."""
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failed trials are told of by the listeners
    # One experiment folder per start: Ray merges two of the same name.
    name = f"start-{len(list((folder / 'ray').glob('start-*'))) + 1:03d}"
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": slots.cpus, "gpu": slots.gpus}),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(bridge),
            scheduler=_Scheduler(bridge),
            num_samples=-1,
            max_concurrent_trials=slots.at_once,
            reuse_actors=slots.gpus == 0,  # a worker's imports cost seconds; on a GPU a fresh process frees its memory
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name=name, storage_path=str((folder / "ray").absolute()), verbose=0),
    )
    tuner.fit()
