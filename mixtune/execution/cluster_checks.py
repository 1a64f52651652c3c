"""Cluster checks: that a cluster accepts this process's actors, and that its machines have the study's folder and data.

They are made before trials start, because of a trial that fails for these reasons Ray says only that its worker died.
"""

from __future__ import annotations

import contextlib
import getpass
import itertools
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mixtune.errors import InputError
from mixtune.files import atomic_write
from mixtune.search.space import Space

ANSWER_TIMEOUT = 120.0  # seconds: a machine starts a process to answer
MAX_ENTRIES = 1000  # of a folder that are checked
FILE_VISIBLE_TIMEOUT = 10.0  # seconds for a new file to appear on network storage
log = logging.getLogger("mixtune")


def named_paths(space: Space) -> dict[str, str]:
    """Return the files and folders that trials read, by the key that names them."""
    distill = space.recipe.distill
    paths = {"task.weights": space.task.weights, "recipe.distill.weights": distill.weights if distill else None}
    if space.task.needs_data:
        paths["task.data"] = space.task.data
    return {key: path for key, path in paths.items() if path not in (None, "pretrained")}  # type: ignore[misc]


def list_contents(path: str) -> list[str]:
    """Return the path and, of a folder, its entries and those of its folders (an image folder's classes).

    At most ``MAX_ENTRIES`` of each folder.
    """
    entries = _entries(path)
    return [path, *entries, *itertools.chain.from_iterable(map(_entries, entries))]


def _entries(path: str) -> list[str]:
    if not Path(path).is_dir():
        return []
    with os.scandir(path) as entries:
        paths = (e.path for e in entries if not e.name.startswith((".", "lost+found")))
        return sorted(itertools.islice(paths, MAX_ENTRIES))


def check_machines(folder: Path, paths: Mapping[str, str]) -> None:
    """Check every machine that may run trials. Ray must be connected.

    Raise InputError naming the first machine that does not see the study's ``folder``, cannot write there, lacks one of
    ``paths``, or cannot run mixtune.
    """
    marker = folder / f".seen-{uuid4().hex}"
    atomic_write(marker, b"")
    contents = {key: list_contents(path) for key, path in paths.items()}
    try:
        answers = []
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                task = ray.remote(num_cpus=0, max_retries=0)(missing_on_machine).options(scheduling_strategy=on_node)
                answers.append((name, task.remote(str(marker), contents)))
        deadline = time.monotonic() + ANSWER_TIMEOUT
        for name, answer in answers:
            _check_answer(name, answer, max(0.1, deadline - time.monotonic()))
    finally:
        with contextlib.suppress(OSError):
            marker.unlink()


def check_token(address: str) -> None:
    """Start an actor, and end it. Ray must be connected.

    Raise InputError where the cluster kills it: so does one that takes no token, of a process that uses one, while all
    other requests of that process succeed.
    """

    class Probe:  # pickled with its code: a machine need not have mixtune
        def ready(self) -> None:
            """Nothing to do."""

    probe = ray.remote(num_cpus=0)(Probe).remote()
    try:
        ray.get(probe.ready.remote(), timeout=ANSWER_TIMEOUT)
    except ray.exceptions.RayActorError as err:
        last_line = str(err).strip().splitlines()[-1]
        mode = "disabled" if os.environ.get("RAY_AUTH_MODE") == "token" else "token"
        raise InputError(
            f"--address {address}: the cluster ends what is started there ({last_line}); where it takes "
            f"{'no' if mode == 'disabled' else 'a'} token, set RAY_AUTH_MODE={mode}"
        ) from None
    except ray.exceptions.GetTimeoutError:
        log.warning(
            "--address %s: no process could be started in %g s; the cluster may be busy", address, ANSWER_TIMEOUT
        )
    finally:
        ray.kill(probe)


def _check_answer(machine: str, answer: ray.ObjectRef, timeout: float) -> None:
    try:
        problem = ray.get(answer, timeout=timeout)
    except ray.exceptions.RayTaskError as err:
        cause = str(err.cause).split("\n")[0]
        raise InputError(
            f"--address: machine {machine} cannot run mixtune ({cause}); every machine needs the same environment"
        ) from None
    except ray.exceptions.RayError as err:  # lost, or too busy to start a process: trials go elsewhere, or wait
        log.warning("machine %s does not answer (%s)", machine, type(err).__name__)
        return
    if problem is not None:
        key, sentence = problem
        raise InputError(f"{key}: machine {machine} {sentence}")


def missing_on_machine(marker: str, contents: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """Return a setting of which this machine lacks something, and what is wrong with it; None where nothing is missing.

    marker: a file in the study's folder. contents: ``list_contents`` of what each setting names, because a mount point
    without its storage is an empty folder.
    """
    folder = Path(marker).parent
    deadline = time.monotonic() + FILE_VISIBLE_TIMEOUT
    while not Path(marker).exists():
        if time.monotonic() > deadline:
            problem = "does not see this folder (or another one under that path); name one that every machine mounts"
            return f"--out {folder}", problem
        time.sleep(0.2)
    if not os.access(folder, os.W_OK):
        return f"--out {folder}", f"cannot write there as {getpass.getuser()}"
    for key, paths in contents.items():
        if missing := next((path for path in paths if not Path(path).exists()), None):
            return key, f"has no {missing}; put it on storage that every machine mounts, or copy it there"
    return None
