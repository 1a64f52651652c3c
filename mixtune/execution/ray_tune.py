"""Run trials with Ray Tune; Optuna, through the coordinator, decides what to try and when to stop.

Ray's own OptunaSearch never prunes and records stopped trials as complete, so searcher and scheduler are ours. Any
exception in one of them ends a Ray experiment, so none leaves them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

# Read by Ray when it is imported or started: its own console output, logger files and record off, no usage report.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(10**9))
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from mixtune.errors import DISK_FULL, DiskFullError, InputError, TrainingError, disk_full_error
from mixtune.execution import executor, worker_group
from mixtune.execution.coordinator import Coordinator
from mixtune.execution.janitor import Janitor
from mixtune.execution.trial import TrialSpec, failure_cause, failure_message
from mixtune.execution.watchdog import Watchdog, treat_memory_kills_as_deaths
from mixtune.profiling.concurrency import Concurrency
from mixtune.runtime.process_group import ProcessGroup
from mixtune.secrets import masked

T = TypeVar("T")
log = logging.getLogger("mixtune")
_janitor: Janitor | None = None  # of the local cluster


def connect(address: str | None, cpus: int, gpus: int) -> None:
    """Start a Ray cluster on this machine, or join the one at ``address``. Raises InputError when that fails.

    A local cluster listens on loopback only, and asks for the token that Ray keeps in the home folder.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        # Loopback only: Ray's switch for desktops, where listening on all interfaces makes the firewall ask. It is read
        # when Ray is imported, here and in what it starts.
        global _janitor
        _janitor = Janitor()
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
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
    global _janitor
    # Ray ends this process without a word when another thread's garbage collection meets one of its objects meanwhile.
    gc.collect()
    gc.disable()
    with contextlib.suppress(Exception):
        ray.shutdown()
    gc.enable()
    if _janitor is not None:
        _janitor.close()
        _janitor = None


def cluster() -> tuple[float, float]:
    """Return the CPUs and GPUs of the cluster in all."""
    resources = ray.cluster_resources()
    return resources.get("CPU", 0.0), resources.get("GPU", 0.0)


def nodes() -> list[tuple[float, float]]:
    """Return the CPUs and GPUs of every node of the cluster."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def call(function: Callable[..., T], concurrency: Concurrency, *arguments: Any) -> T:
    """Call a function once where a trial would run, with a trial's share of the machine; return what it returns.

    Where trials have several ranks, it is called on each of them, with their process group as one more argument. Raises
    what the function raises, and TrainingError when its process dies.
    """
    if concurrency.workers > 1:
        on_ranks: T = worker_group.call_on_group(
            _on_rank, concurrency.workers, concurrency.cpus, concurrency.gpus, function, arguments
        )
        return on_ranks
    # Once, in a process that ends with it: what it had of a GPU is free then, and what killed it would kill it again.
    remote = ray.remote(num_cpus=concurrency.cpus, num_gpus=concurrency.gpus, max_calls=1, max_retries=0)(function)
    try:
        result: T = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayTaskError as err:
        if isinstance(err.cause, OSError) and err.cause.errno in DISK_FULL:
            raise disk_full_error(err.cause.filename or "a file") from None
        raise (err.cause if isinstance(err.cause, InputError) else err) from None
    except ray.exceptions.RayError:
        raise TrainingError("the process that was to measure steps died (out of memory, or killed)") from None
    return result


def _on_rank(group: ProcessGroup, function: Callable[..., T], arguments: tuple[Any, ...]) -> Iterator[T]:
    yield function(*arguments, group)


def run_trial(config: dict[str, Any]) -> None:
    """Train one regime and report to Ray: what a worker runs."""
    train_and_report(config, tune.report)


def train_and_report(
    config: dict[str, Any], report: Callable[[dict[str, Any]], None], pause: Callable[[], None] = lambda: None
) -> None:
    """Train one regime and ``report``; failures are reported, not raised. pause: see ``trial.trial_reports``."""
    folder = Path(config["folder"])
    try:
        with contextlib.closing(executor.train_trial(TrialSpec.from_config(config), pause)) as reports:
            for each in reports:
                report(each)
    except DiskFullError as err:
        report({"no_room": str(err)})
    except (InputError, TrainingError) as err:
        report({"failed": str(err), "cause": failure_cause(err)})
    except Exception as err:
        if isinstance(err, OSError) and err.errno in DISK_FULL:
            report({"no_room": str(disk_full_error(err.filename or folder))})
            return
        with contextlib.suppress(OSError):
            (folder / "error.txt").write_text(masked(traceback.format_exc()), encoding="utf-8")
        report({"failed": failure_message(err, folder), "cause": failure_cause(err)})


class _Searcher(Searcher):  # type: ignore[misc]
    """Asks the coordinator for candidates and tells it of ends."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self.coordinator: Coordinator | None = coordinator

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return a configuration; None for "not now"; or FINISHED."""
        assert self.coordinator is not None
        try:
            configuration = self.coordinator.suggest(trial_id)
            return str(Searcher.FINISHED) if configuration is None and self.coordinator.done else configuration
        except Exception:
            log.exception("no candidate could be made; no further trials are started")
            return str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the coordinator that a trial ended, for whatever reason."""
        assert self.coordinator is not None
        try:
            self.coordinator.end(trial_id, error)
        except Exception:
            log.exception("the end of a trial could not be recorded; resuming the study repeats it")

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study is in Optuna's storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "coordinator": None}  # holds open databases


class _Scheduler(FIFOScheduler):  # type: ignore[misc]
    """Stops what Optuna prunes."""

    def __init__(self, coordinator: Coordinator) -> None:
        super().__init__()
        self.coordinator: Coordinator | None = coordinator

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Take a report; return CONTINUE or STOP."""
        assert self.coordinator is not None
        try:
            stop = self.coordinator.report(trial.trial_id, result)
        except Exception:
            log.exception("a report could not be recorded; the trial goes on")
            stop = False
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "coordinator": None}


def _resources(concurrency: Concurrency) -> dict[str, float] | tune.PlacementGroupFactory:
    """Return what Ray reserves for a trial: next to nothing for one that shares a process with others, a bundle per
    process for one that has several.
    """
    if concurrency.pack > 1:
        return {"cpu": 0.01}
    if concurrency.processes == 1:
        return {"cpu": concurrency.cpus, "gpu": concurrency.gpus}
    return tune.PlacementGroupFactory(
        [{}, *[worker_group.resource_bundle(concurrency.cpus, concurrency.gpus)] * concurrency.processes]
    )


def run(
    coordinator: Coordinator,
    concurrency: Concurrency,
    folder: Path,
    trial: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Run trials until the study has as many as it asks for. Raises ClusterLostError when Ray itself dies.

    ``trial``: what a worker runs instead of ``run_trial``, where several trials share another process.
    """
    treat_memory_kills_as_deaths()
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the callbacks tell of failed trials
    # One experiment folder per start: Ray merges two of the same name.
    name = f"start-{len(list((folder / 'ray').glob('start-*'))) + 1:03d}"
    tuner = tune.Tuner(
        tune.with_resources(trial or run_trial, _resources(concurrency)),
        tune_config=tune.TuneConfig(
            search_alg=_Searcher(coordinator),
            scheduler=_Scheduler(coordinator),
            num_samples=-1,
            max_concurrent_trials=concurrency.at_once,
            # A worker's imports cost seconds; on a GPU a fresh process frees its memory.
            reuse_actors=trial is not None or concurrency.gpus == 0,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=str((folder / "ray").absolute()), verbose=0, callbacks=[Watchdog(coordinator)]
        ),
    )
    tuner.fit()
