"""Worker group: train a trial in several processes, Ray actors with one bundle of the trial's placement group each.

Several runs of a trial may train at the same time, each in a team of processes. The trial's own Ray Tune worker takes
no resources: it starts the actors, passes on what the first process of each team yields and, when one dies, starts all
again, which go on from the trial's checkpoints. (Ray Train would do this too, with a second controller per trial, a
checkpoint format and a report path of its own, and 27 s for a trial of 2 s.)
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from mixtune.errors import InputError, TrainingError
from mixtune.execution.trial import failure_cause
from mixtune.runtime.process_group import PeerLostError, ProcessGroup
from mixtune.runtime.rendezvous import join_group, open_store

T = TypeVar("T")
RankFunction = Callable[..., Iterator[T]]  # (process group, *arguments) -> results; those of the first rank count
log = logging.getLogger("mixtune")
MAX_RESTARTS = 3  # of a trial's processes, after one of them died
PLACEMENT_TIMEOUT = 600.0  # seconds for all actors to start (a node that was lost may come back)
PEER_ERROR_TIMEOUT = 10.0  # seconds to wait for the errors of a team's other processes, when one has lost a peer
LOOPBACK = "127.0.0.1"


class RankLostError(TrainingError):
    """A process died or cannot be reached; started again, the run may well succeed."""


class _RankActor:
    """One process of a trial."""

    def node(self) -> tuple[str, str]:
        """Return the id and the address of the node it runs on."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open_store(self, host: str) -> int:
        """Return the port of a store at which the team meets."""
        self._store, port = open_store(host)
        return port

    def results(
        self,
        function: RankFunction[T],
        arguments: tuple[Any, ...],
        group: ProcessGroup,
        host: str,
        port: int,
        address: str,
    ) -> Iterator[T]:
        """Join the team and call the function; yield its results in the first process."""
        if group.is_distributed:
            join_group(host, port, group, address)
        for result in function(group, *arguments):
            if group.is_main:
                yield result


class _Actors:
    """The processes of a trial."""

    def __init__(self, group: PlacementGroup, count: int) -> None:
        actor_class = ray.remote(_RankActor)
        self._actors = []
        for i, resources in enumerate(group.bundle_specs[:count]):
            options = {
                "num_cpus": resources.get("CPU", 0),
                "num_gpus": resources.get("GPU", 0),
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i),
            }
            self._actors.append(actor_class.options(**options).remote())

    def results(self, function: RankFunction[T], teams: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """Yield (team, result) of teams of equal size, one for each tuple of arguments, in the order of arrival.

        Raise RankLostError, or what a process raised.
        """
        nodes = _get_all([actor.node.remote() for actor in self._actors])
        size, team_of_stream = len(self._actors) // len(teams), {}
        for team, arguments in enumerate(teams):
            part = slice(team * size, (team + 1) * size)
            for stream in _start_team(self._actors[part], nodes[part], function, arguments):
                team_of_stream[stream] = team
        while team_of_stream:
            (stream,), _ = ray.wait(list(team_of_stream), num_returns=1)
            try:
                yield team_of_stream[stream], ray.get(next(stream))
            except StopIteration:
                del team_of_stream[stream]
            except Exception as err:
                team = team_of_stream.pop(stream)
                peers = [s for s, t in team_of_stream.items() if t == team]
                peer_errors = _errors(peers) if isinstance(_unwrapped(err), PeerLostError) else ()
                raise _first_cause([err, *peer_errors]) from None

    def kill(self) -> None:
        """End all processes."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _start_team(
    actors: Sequence[Any], nodes: Sequence[tuple[str, str]], function: RankFunction[T], arguments: tuple[Any, ...]
) -> Iterator[Any]:
    """Start the function in a team; yield each process's stream of results. nodes: id and address, by process."""
    ids = [node_id for node_id, _ in nodes]
    one_node = len(set(ids)) == 1  # its processes talk over loopback, whatever its address to others
    addresses = [LOOPBACK if one_node else address for _, address in nodes]
    host = addresses[0]
    (port,) = _get_all([actors[0].open_store.remote(host)]) if len(actors) > 1 else (0,)
    for rank, (actor, address) in enumerate(zip(actors, addresses, strict=True)):
        local_ranks = [r for r, node_id in enumerate(ids) if node_id == ids[rank]]
        group = ProcessGroup(rank, len(actors), len(local_ranks), rank == local_ranks[0])
        method = actor.results.options(num_returns="streaming")
        yield method.remote(function, arguments, group, host, port, address)


def _get_all(calls: list[Any]) -> list[Any]:
    try:
        values: list[Any] = ray.get(calls, timeout=PLACEMENT_TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        raise TrainingError(
            f"the cluster had no room for {len(calls)} ranks for {PLACEMENT_TIMEOUT / 60:g} minutes"
        ) from None
    except ray.exceptions.RayError as err:
        raise _first_cause([err]) from None
    return values


def _errors(streams: list[Any]) -> Iterator[Exception]:
    """Yield the errors of these streams that come within ``PEER_ERROR_TIMEOUT``."""
    ready, _ = ray.wait(streams, num_returns=len(streams), timeout=PEER_ERROR_TIMEOUT) if streams else ([], [])
    for stream in ready:
        with contextlib.suppress(StopIteration):
            try:
                ray.get(next(stream))
            except ray.exceptions.RayError as err:
                yield err


def _unwrapped(err: Exception) -> Exception:
    return err.cause if isinstance(err, ray.exceptions.RayTaskError) else err


def _first_cause(errors: list[Exception]) -> Exception:
    """Return the error to act on: one that a process raised itself, else the death of one, else the loss of a peer.

    A process that lost its device, or another part of its machine, counts as dead.
    """
    causes = [_unwrapped(err) for err in errors]
    for err in causes:
        if isinstance(err, (InputError, TrainingError)) and failure_cause(err) != "machine":
            return err
    for err in causes:
        if isinstance(err, ray.exceptions.RayError) and not isinstance(err, ray.exceptions.RayTaskError):
            return RankLostError(f"a rank died ({_first_line(err)})")
    for err in causes:
        if not isinstance(err, PeerLostError):
            lost = failure_cause(err) == "machine"
            return RankLostError(f"a rank lost what it needs ({_first_line(err)})") if lost else err
    return RankLostError(str(causes[0]))


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]


def group_results(function: RankFunction[T], group: PlacementGroup, *arguments: Any) -> Iterator[T]:
    """Yield what ``function(process group, *arguments)`` yields in the first of the processes, one per bundle.

    Raise what ``parallel_results`` raises.
    """
    with contextlib.closing(parallel_results(function, group, [arguments], len(group.bundle_specs))) as results:
        for _, result in results:
            yield result


def parallel_results(
    function: RankFunction[T], group: PlacementGroup, teams: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, T], None, None]:
    """Yield (team, result) of several teams at once, with ``workers`` processes and the given arguments each.

    When a process dies all start again, at most ``MAX_RESTARTS`` times; the function must then continue from its
    checkpoints and yield its earlier results first, which are skipped. What one process raises ends all. Raise
    PeerLostError when starting again does not help, and what a process raises.
    """
    yielded = [0] * len(teams)
    for attempt in itertools.count():
        actors, received = _Actors(group, workers * len(teams)), [0] * len(teams)
        try:
            for team, result in actors.results(function, teams):
                received[team] += 1
                if received[team] > yielded[team]:
                    yielded[team] += 1
                    yield team, result
            return
        except RankLostError as err:
            if attempt == MAX_RESTARTS:
                raise PeerLostError(f"ranks died {MAX_RESTARTS + 1} times; the last time: {err}") from None
            log.warning("%s; all ranks start again from the trial's checkpoints", err)
        finally:
            actors.kill()


def current_group() -> PlacementGroup:
    """Return the placement group of the trial whose worker calls this."""
    return ray.util.get_current_placement_group()


def call_on_group(function: RankFunction[T], workers: int, cpus: int, gpus: float, *arguments: Any) -> T:
    """Return the only result of a function on ``workers`` processes with these resources each.

    Raise what a process raises.
    """
    group = placement_group([resource_bundle(cpus, gpus)] * workers)
    try:
        (result,) = group_results(function, group, *arguments)
        return result
    finally:
        remove_placement_group(group)


def resource_bundle(cpus: int, gpus: float) -> dict[str, float]:
    """Return the resources of one process, as Ray writes them."""
    return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}
