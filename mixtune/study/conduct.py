"""A study from start to end: lock its folder, open or resume it, run what remains, leave the best regime behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mixtune.config import plain
from mixtune.errors import InputError
from mixtune.regime import Regime
from mixtune.regime.files import save_regime
from mixtune.study import carry, estimate, hosting, preflight, tracking, tuning
from mixtune.study.books import Books, begun, opened
from mixtune.study.bridge import Bridge
from mixtune.study.console import Console, results_table
from mixtune.study.estimate import Ready
from mixtune.study.events import Listeners
from mixtune.study.feasible import infeasible
from mixtune.study.folder import Places, locked, save
from mixtune.study.named import check_named
from mixtune.study.sampling import Outcome, Trials
from mixtune.study.space import Space

log = logging.getLogger("mixtune")
RESTARTS = 3  # a fault of Ray itself ends an experiment; the study goes on in a new one


@dataclass(frozen=True)
class Result:
    """How a search ended."""

    outcomes: list[Outcome]
    best: Outcome | None
    interrupted: bool
    remaining: int
    experiment: str
    best_file: Path | None
    infeasible: Mapping[int, str] = field(default_factory=dict)  # candidates that could not be trained, with the reason
    took: str = ""  # beside what was planned; empty where trials remain


def conduct(
    space: Space,
    source: str,
    places: Places,
    draw: Callable[[str, str, Path], list[Path]],
    write: Callable[[str], None],
    resume: bool = False,
    proxy: Mapping[str, float] | None = None,
) -> Result:
    """Run a study to its end, or as far as it gets.

    ``draw(tracking uri, study, folder)`` makes the figures. Raises InputError before anything is written when the
    space, its data, the resources or the stores are not usable. The same call on a folder that holds the study
    continues it; with ``resume`` nothing else is done: a folder without the study is an InputError. proxy: scores of
    the regimes to be tried on the task that they were found on, see ``carry``.
    """
    check_named(space)
    stride = preflight.check_sizes(space, source)
    space = _absolute(space)
    n_train = preflight.check_data(space, source)
    slots = estimate.slots_of(space, places)
    tracking.check(places.tracking_uri)

    with locked(places.folder), contextlib.ExitStack() as at_the_end:
        at_the_end.callback(tuning.disconnect)
        # What does not fit is refused before the study is begun, so that it may be begun with another base.
        ready = None if resume or begun(space, places) else _ready(space, slots, places, n_train, space.trials, write)
        with opened(space, places, stride, resume, proxy) as books:
            trials = books.trials
            _say_what_happens(trials, books.stale, places, write)
            interrupted = False
            if trials.remaining():
                try:
                    ready = ready or _ready(space, slots, places, n_train, trials.remaining(), write)
                    write(f"score: {space.score}")
                    with _terminable():
                        _run(books, space, ready, places, n_train, write)
                except KeyboardInterrupt:
                    interrupted = True
                finally:
                    tuning.disconnect()
                    books.settle()
            return _close(trials, books.tracker, places, space, draw, interrupted)


def _ready(
    space: Space, slots: preflight.Slots, places: Places, n_train: int, left: int, write: Callable[[str], None]
) -> Ready:
    if places.address is None:
        tuning.connect(None, *preflight.local_resources())
    with _terminable():
        return estimate.ready(space, slots, places, n_train, left, write)


def _run(books: Books, space: Space, ready: Ready, places: Places, n_train: int, write: Callable[[str], None]) -> None:
    trials = books.trials
    refuse = partial(infeasible, space, n_train=n_train, room=ready.room)
    console = Console(space.trials, trials.best(), write)
    console.header()
    listeners = Listeners([console, books.tracker])
    attempt = 0
    while (left := trials.remaining()) and attempt < RESTARTS:
        bridge = Bridge(books.ledger, ready.training, places.folder, listeners, refuse)
        fault: Exception | None = None
        try:
            hosting.run(bridge, ready.slots, places.folder, ready.training.device, ready.gpus)
        except KeyboardInterrupt:
            bridge.interrupt()
            raise
        except Exception as err:
            fault = err
            bridge.interrupt()
        if bridge.halted:
            raise InputError(bridge.halted)
        books.settle()
        attempt = 1 if trials.remaining() < left else attempt + 1  # in a row without a trial finished
        if fault is not None:
            if attempt == RESTARTS:
                raise fault
            log.warning("Ray ended the experiment (%s); starting it again", str(fault).split("\n")[0])
            tuning.disconnect()
            tuning.connect(places.address, *preflight.local_resources())
            signal.signal(signal.SIGTERM, _interrupt)


def _close(
    trials: Trials,
    tracker: tracking.Tracker,
    places: Places,
    space: Space,
    draw: Callable[[str, str, Path], list[Path]],
    interrupted: bool,
) -> Result:
    best, best_file = trials.best(), None
    artifacts = [places.folder / name for name in (estimate.MEASURED, estimate.PLANNED)]
    if best is not None:
        best_file = places.folder / "best.yaml"
        kept = places.folder / "trials" / f"{best.number:04d}" / "regime.yaml"
        if kept.exists():
            save(best_file, kept.read_text(encoding="utf-8"))
        else:  # run by another machine of a cluster without a shared folder
            training = replace(space.training(), recipe=space.recipe_of(best.params))
            save_regime(best_file, regime_of(space, best), plain(training))
        artifacts.append(best_file)
        if tracker.flush():  # figures are drawn from what MLflow holds
            artifacts += draw(places.tracking_uri, space.study, places.folder / "figures")
    remaining = trials.remaining()
    summary: dict[str, Any] = {}
    if best is not None:
        summary = {"score": best.score, "trial": best.number, "family": best.published or "searched"}
        summary["regime"] = str(regime_of(space, best))
    outcomes = trials.outcomes()
    agreed = carry.agreement(outcomes)
    try:
        tracker.finish("FINISHED" if not remaining else "KILLED", summary, artifacts, agreed.tags if agreed else {})
    except Exception as err:
        log.warning("MLflow could not be brought up to date: %s", str(err).split("\n")[0])
    took = estimate.compared(places.folder, trials.hours()) if not remaining else ""
    refused = trials.infeasible()
    return Result(outcomes, best, interrupted, remaining, tracker.experiment, best_file, refused, took)


def regime_of(space: Space, outcome: Outcome) -> Regime:
    """The regime that a finished trial trained."""
    return space.regime(outcome.params, outcome.published)


def table(space: Space, result: Result) -> str:
    """The best trials beside the published regimes."""
    lines = results_table(result.outcomes, lambda o: regime_of(space, o))
    if result.infeasible:
        first = next(iter(result.infeasible.values()))
        lines += f"\n{len(result.infeasible)} candidates could not be trained ({first})"
    if agreed := carry.agreement(result.outcomes):
        lines += f"\n{agreed}"
    return f"{lines}\n{result.took}" if result.took else lines


def _say_what_happens(trials: Trials, stale: int, places: Places, write: Callable[[str], None]) -> None:
    name, total, left = trials.space.study, trials.space.trials, trials.remaining()
    if not trials.resumed:
        write(f"study {name}: {total} trials, in {places.folder}")
    elif left:
        broken = f"; {stale} that were cut off start again" if stale else ""
        write(f"study {name} goes on: {total - left} of {total} trials are done{broken}")
    else:
        write(f"study {name} has all its {total} trials already; ask for more with --trials {total + 10}")


def _absolute(space: Space) -> Space:
    """Ray's workers run in other folders, so data and weights are named in full."""
    task, recipe = space.task, space.recipe
    if task.dataset != "digits":
        task = replace(task, data=_full(task.data or os.environ.get("MIXTUNE_DATA", "data")))
    if task.weights not in (None, "pretrained"):
        task = replace(task, weights=_full(task.weights))
    if recipe.distill is not None and recipe.distill.weights != "pretrained":
        recipe = replace(recipe, distill=replace(recipe.distill, weights=_full(recipe.distill.weights)))
    return replace(space, task=task, recipe=recipe)


def _full(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a search as Ctrl-C does. To be entered after Ray is started, which takes the signal for itself."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
