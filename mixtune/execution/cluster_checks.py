"""Visible: that a cluster takes this process's actors, and that every machine of it sees the study's folder and data.

Looked at before a trial is sent there, since it is said of trials only that their workers died.
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
from mixtune.files import replace_file
from mixtune.search.space import Space

ANSWER_TIMEOUT = 120.0  # seconds for a machine to answer: it starts a process
MAX_ENTRIES = 1000  # of a folder that are looked for
FILE_VISIBLE_TIMEOUT = 10.0  # seconds for a new file to be seen on storage over a network
log = logging.getLogger("mixtune")


def named_paths(space: Space) -> dict[str, str]:
    """The files and folders that trials read, by the key that names them."""
    distill = space.recipe.distill
    found = {"task.weights": space.task.weights, "recipe.distill.weights": distill.weights if distill else None}
    if space.task.needs_data:
        found["task.data"] = space.task.data
    return {key: path for key, path in found.items() if path not in (None, "pretrained")}  # type: ignore[misc]


def list_contents(path: str) -> list[str]:
    """The path itself, and what lies in a folder and in the folders in it (an image folder's classes), at most."""
    first = _entries(path)
    return [path, *first, *itertools.chain.from_iterable(map(_entries, first))]


def _entries(path: str) -> list[str]:
    if not Path(path).is_dir():
        return []
    with os.scandir(path) as there:
        found = (e.path for e in there if not e.name.startswith((".", "lost+found")))
        return sorted(itertools.islice(found, MAX_ENTRIES))


def check_machines(folder: Path, paths: Mapping[str, str]) -> None:
    """Ask every machine that may run trials. Ray must be connected.

    Raises InputError naming the first machine that does not see the study's ``folder``, cannot write there, lacks one
    of ``paths``, or cannot run mixtune.
    """
    mark = folder / f".seen-{uuid4().hex}"
    replace_file(mark, b"")
    wanted = {key: list_contents(path) for key, path in paths.items()}
    try:
        asked = []
        for node in ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                ask = ray.remote(num_cpus=0, max_retries=0)(missing_on_machine).options(scheduling_strategy=there)
                asked.append((name, ask.remote(str(mark), wanted)))
        until = time.monotonic() + ANSWER_TIMEOUT
        for name, answer in asked:
            _judge(name, answer, max(0.1, until - time.monotonic()))
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def check_token(address: str) -> None:
    """Start an actor, and end it. Ray must be connected.

    Raises InputError where it is not let live: a process that uses a token does not hear a cluster that takes none, and
    of all that it asks for the cluster ends the actors.
    """

    class Probe:  # pickled with its code: a machine need not have mixtune
        def ready(self) -> None:
            """Nothing to do."""

    probe = ray.remote(num_cpus=0)(Probe).remote()
    try:
        ray.get(probe.ready.remote(), timeout=ANSWER_TIMEOUT)
    except ray.exceptions.RayActorError as err:
        said = str(err).strip().splitlines()[-1]
        mode = "disabled" if os.environ.get("RAY_AUTH_MODE") == "token" else "token"
        raise InputError(
            f"--address {address}: the cluster ends what is started there ({said}); where it takes "
            f"{'no' if mode == 'disabled' else 'a'} token, set RAY_AUTH_MODE={mode}"
        ) from None
    except ray.exceptions.GetTimeoutError:
        log.warning(
            "--address %s: no process could be started in %g s; the cluster may be busy", address, ANSWER_TIMEOUT
        )
    finally:
        ray.kill(probe)


def _judge(machine: str, answer: ray.ObjectRef, seconds: float) -> None:
    try:
        said = ray.get(answer, timeout=seconds)
    except ray.exceptions.RayTaskError as err:
        cause = str(err.cause).split("\n")[0]
        raise InputError(
            f"--address: machine {machine} cannot run mixtune ({cause}); every machine needs the same environment"
        ) from None
    except ray.exceptions.RayError as err:  # lost, or too busy to start a process: trials go elsewhere, or wait
        log.warning("machine %s does not answer (%s)", machine, type(err).__name__)
        return
    if said is not None:
        key, what = said
        raise InputError(f"{key}: machine {machine} {what}")


def missing_on_machine(mark: str, wanted: Mapping[str, Sequence[str]]) -> tuple[str, str] | None:
    """On a machine: which setting names something that it does not see, and what is wrong; None for nothing.

    wanted: ``contents`` of what each setting names; a mount point without its storage is an empty folder.
    """
    folder = Path(mark).parent
    until = time.monotonic() + FILE_VISIBLE_TIMEOUT
    while not Path(mark).exists():
        if time.monotonic() > until:
            what = "does not see this folder (or another one under that path); name one that every machine mounts"
            return f"--out {folder}", what
        time.sleep(0.2)
    if not os.access(folder, os.W_OK):
        return f"--out {folder}", f"cannot write there as {getpass.getuser()}"
    for key, paths in wanted.items():
        if missing := next((path for path in paths if not Path(path).exists()), None):
            return key, f"has no {missing}; put it on storage that every machine mounts, or copy it there"
    return None
