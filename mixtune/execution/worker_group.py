"""A trial on several ranks: Ray actors, one per bundle of the trial's placement group, that train as one device would.

Several runs of a trial may train at the same time, each by a team of ranks. The trial's own worker takes no resources:
it starts the ranks, passes on what the first of each team reports and, when one dies, starts all of them again from the
trial's checkpoints. (Ray Train would do this too, with a second controller per trial, a checkpoint format and a report
path of its own, and 27 s for a trial of 2 s.)
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
RankFunction = Callable[..., Iterator[T]]  # (ranks, *arguments); what it yields on the first rank is what comes out
log = logging.getLogger("mixtune")
MAX_RESTARTS = 3  # of all ranks, in one trial, after one of them died
PLACEMENT_TIMEOUT = 600.0  # seconds to wait for a place for every rank (a node that was lost may come back)
PEER_ERROR_TIMEOUT = 10.0  # seconds in which the other ranks may say why, when one has lost them


class RankLostError(TrainingError):
    """A rank died or cannot be reached; started again, the run may well succeed."""


class _Rank:
    """One process of a trial."""

    def where(self) -> tuple[str, str]:
        """The id and address of its node."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open(self, host: str) -> int:
        """Let the others meet here; the port."""
        self._store, port = open_store(host)
        return port

    def work(
        self,
        work: RankFunction[T],
        arguments: tuple[Any, ...],
        group: ProcessGroup,
        host: str,
        port: int,
        address: str,
    ) -> Iterator[T]:
        """Join the others and do the work; the first rank yields."""
        if group.is_distributed:
            join_group(host, port, group, address)
        for result in work(group, *arguments):
            if group.is_main:
                yield result


class _Crew:
    """The ranks of a trial, alive at once."""

    def __init__(self, group: PlacementGroup, count: int) -> None:
        kind = ray.remote(_Rank)
        self.actors = []
        for i, resource_bundle in enumerate(group.bundle_specs[:count]):
            place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)
            cpus, gpus = resource_bundle.get("CPU", 0), resource_bundle.get("GPU", 0)
            self.actors.append(kind.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place).remote())

    def results(self, work: RankFunction[T], teams: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, T]]:
        """Do the work by teams of equal size, each with its arguments: (team, what its first rank yields), as it comes.

        Raises RankLostError, or what a rank raised.
        """
        places = _answers([a.where.remote() for a in self.actors])
        world, streams = len(self.actors) // len(teams), {}
        for team, arguments in enumerate(teams):
            part = slice(team * world, (team + 1) * world)
            for stream in _started(self.actors[part], places[part], work, arguments):
                streams[stream] = team
        while streams:
            (stream,), _ = ray.wait(list(streams), num_returns=1)
            try:
                yield streams[stream], ray.get(next(stream))
            except StopIteration:
                del streams[stream]
            except Exception as err:
                team = streams.pop(stream)
                mates = [s for s in streams if streams[s] == team]
                others = _errors(mates) if isinstance(_own(err), PeerLostError) else ()
                raise _cause([err, *others]) from None

    def dismiss(self) -> None:
        """End all ranks."""
        for actor in self.actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)


def _started(
    actors: Sequence[Any], places: Sequence[tuple[str, str]], work: RankFunction[T], arguments: tuple[Any, ...]
) -> Iterator[Any]:
    """Have a team begin; the stream of each of its ranks."""
    nodes = [node for node, _ in places]
    # Ranks of one machine talk over loopback, whatever its address to others.
    host = places[0][1] if len(set(nodes)) > 1 else "127.0.0.1"
    (port,) = _answers([actors[0].open.remote(host)]) if len(actors) > 1 else (0,)
    for rank, actor in enumerate(actors):
        local = [r for r, node in enumerate(nodes) if node == nodes[rank]]
        address = places[rank][1] if len(set(nodes)) > 1 else host
        call_on_group = actor.work.options(num_returns="streaming")
        group = ProcessGroup(rank, len(actors), len(local), rank == local[0])
        yield call_on_group.remote(work, arguments, group, host, port, address)


def _answers(calls: list[Any]) -> list[Any]:
    try:
        found: list[Any] = ray.get(calls, timeout=PLACEMENT_TIMEOUT)
    except ray.exceptions.GetTimeoutError:
        raise TrainingError(
            f"the cluster had no room for {len(calls)} ranks for {PLACEMENT_TIMEOUT / 60:g} minutes"
        ) from None
    except ray.exceptions.RayError as err:
        raise _cause([err]) from None
    return found


def _errors(streams: list[Any]) -> Iterator[Exception]:
    """What the other ranks say about a failure, if they do so soon."""
    ready, _ = ray.wait(streams, num_returns=len(streams), timeout=PEER_ERROR_TIMEOUT) if streams else ([], [])
    for stream in ready:
        with contextlib.suppress(StopIteration):
            try:
                ray.get(next(stream))
            except ray.exceptions.RayError as err:
                yield err


def _own(err: Exception) -> Exception:
    return err.cause if isinstance(err, ray.exceptions.RayTaskError) else err


def _cause(errors: list[Exception]) -> Exception:
    """The error to act on: a rank's own words before the death of one before the rest, who only lost it.

    A rank whose device, or another part of its machine, was lost counts as dead.
    """
    own = [_own(err) for err in errors]
    said = [err for err in own if isinstance(err, (InputError, TrainingError)) and failure_cause(err) != "machine"]
    if said:
        return said[0]
    dead = [e for e in own if isinstance(e, ray.exceptions.RayError) and not isinstance(e, ray.exceptions.RayTaskError)]
    if dead:
        return RankLostError(f"a rank died ({_first_line(dead[0])})")
    for err in own:
        if not isinstance(err, PeerLostError):
            lost = failure_cause(err) == "machine"
            return RankLostError(f"a rank lost what it needs ({_first_line(err)})") if lost else err
    return RankLostError(str(own[0]))


def _first_line(err: Exception) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0]


def group_results(work: RankFunction[T], group: PlacementGroup, *arguments: Any) -> Iterator[T]:
    """What ``work(group, *arguments)`` yields on the first of the ranks in ``group``, one per bundle.

    Raises what ``together`` raises.
    """
    with contextlib.closing(parallel_results(work, group, [arguments], len(group.bundle_specs))) as found:
        for _, result in found:
            yield result


def parallel_results(
    work: RankFunction[T], group: PlacementGroup, teams: Sequence[tuple[Any, ...]], workers: int
) -> Generator[tuple[int, T], None, None]:
    """The same of several teams at once, ``workers`` ranks each, with their arguments: (team, what it yields).

    When a rank dies all start again, at most ``RESTARTS`` times; the work must then go on from what it kept, and yield
    its earlier results first, which are passed over. What one rank raises ends all. Raises PeerLostError when starting
    again does not help, and what a rank raises.
    """
    given = [0] * len(teams)
    for attempt in itertools.count():
        crew, told = _Crew(group, workers * len(teams)), [0] * len(teams)
        try:
            for team, result in crew.results(work, teams):
                told[team] += 1
                if told[team] > given[team]:
                    given[team] += 1
                    yield team, result
            return
        except RankLostError as err:
            if attempt == MAX_RESTARTS:
                raise PeerLostError(f"ranks died {MAX_RESTARTS + 1} times; the last time: {err}") from None
            log.warning("%s; all ranks start again from the trial's checkpoints", err)
        finally:
            crew.dismiss()


def current_group() -> PlacementGroup:
    """The placement group of the trial whose worker calls this."""
    return ray.util.get_current_placement_group()


def call_on_group(work: RankFunction[T], workers: int, cpus: int, gpus: float, *arguments: Any) -> T:
    """The only result of work on ``workers`` ranks with these resources each. Raises what a rank raises."""
    group = placement_group([resource_bundle(cpus, gpus)] * workers)
    try:
        (result,) = group_results(work, group, *arguments)
        return result
    finally:
        remove_placement_group(group)


def resource_bundle(cpus: int, gpus: float) -> dict[str, float]:
    """What one rank takes, as Ray writes it."""
    return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}
