"""Writes a study to MLflow as it happens: a callback that only queues, and one thread that has the queue written.

Nobody waits for MLflow. What does not fit into the queue, or what MLflow does not take, is forgotten: ``resync`` makes
it again from the study. Only which runs lack something is remembered, so that none of them is closed before.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mixtune.errors import DiskFullError, InputError
from mixtune.evaluation.curve import Curve
from mixtune.search.callbacks import Candidate, State
from mixtune.search.optuna_study import OptunaStudy
from mixtune.search.space import Space
from mixtune.tracking.mlflow_reader import cause
from mixtune.tracking.mlflow_runs import RunGoneError, is_permanent
from mixtune.tracking.opening import refused, system_metrics
from mixtune.tracking.resync import StudyState, close_parent, forget_unsent, open_study, project
from mixtune.tracking.run_content import RunContent, RunKey

log = logging.getLogger("mixtune")
QUEUED = 2000  # events; a trial of four reports has six
MERGED = 256  # events that are written together
LINGER_SECONDS = 0.25  # MLflow is so far behind at least; the events of a short trial are one by then
PAUSE_SECONDS = 1.0  # after MLflow did not answer; what happens meanwhile is forgotten
RESYNC_RETRY_SECONDS = 10.0  # a resync is tried again until it has made no progress for so long
APART_SECONDS = 60.0  # from one resync to the next while trials run
SILENT_SECONDS = 30.0  # whoever waits for MLflow does so until it has done nothing for so long ...
LONGEST_SECONDS = 600.0  # ... and no longer than this in all


@dataclass(frozen=True)
class _Event:
    """Something that happened to a trial, by the name of the callback; at: milliseconds since 1970."""

    name: str
    trial: Candidate
    details: tuple[Any, ...] = ()
    at: int = field(default_factory=lambda: int(1000 * time.time()))

    @property
    def key(self) -> RunKey:
        return RunKey.of(self.trial.number, self.trial.repeat)


_Job = tuple["Future[None]", Callable[[], None]]  # what the thread does after all events before it


class MlflowWriter:
    """Writes a study's trials to MLflow (a ``Callback``): one child run each, under the study's parent run."""

    def __init__(self, uri: str, space: Space, folder: Path, trials: OptunaStudy) -> None:
        """Open the store and the study's parent run; ``folder``: the study's. Raises InputError when it cannot."""
        self.uri, self._folder, self._trials = uri, folder, trials
        self._study = open_study(trials, space, folder, uri)
        try:
            self._runs = self._study.open()
        except Exception as err:
            raise refused(uri, err) from None
        self._system = system_metrics(uri, self._runs.parent)
        self._queue: queue.Queue[_Event | _Job | None] = queue.Queue(QUEUED)
        self._gaps: dict[RunKey, bool] = {}  # runs that lack something, and whether their trials have ended
        self._begun: set[RunKey] = set()  # runs that were made
        self._failed_at = -math.inf  # when MLflow did not answer; infinitely long ago while it does
        self._resync_due, self._resynced_at = False, -math.inf
        self._hurry, self._closing = threading.Event(), False
        self._thread = threading.Thread(target=self._write_queue, name="mlflow", daemon=True)
        self._thread.start()

    @property
    def experiment(self) -> str:
        """The experiment's id."""
        return self._runs.experiment

    @property
    def parent(self) -> str:
        """The parent run's id."""
        return self._runs.parent

    @property
    def behind(self) -> bool:
        """Whether MLflow is known to lack something of the study."""
        return bool(self._gaps) or self._resync_due

    def started(self, trial: Candidate) -> None:
        """Queue the trial's child run; that of a repeat is made at its end."""
        if trial.repeat is None:
            self._put(_Event("started", trial))

    def reported(self, trial: Candidate, report: Mapping[str, Any], score: float) -> None:
        """Queue the metrics of one report."""
        if trial.repeat is None:
            self._put(_Event("reported", trial, (report, score)))

    def ended(self, trial: Candidate, state: State, score: float | None, reason: str, curve: Curve | None) -> None:
        """Queue the end of the child run; one that was interrupted is discarded, because its trial runs again."""
        if trial.repeat is None or state == "COMPLETE":
            self._put(_Event("ended", trial, (state, score, reason, curve)))
        missing = self._resync_due or any(list(self._gaps.values()))
        if missing and self._answers and time.monotonic() > self._resynced_at + APART_SECONDS:
            self.start_resync()

    def _put(self, event: _Event) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._forget(event.key, event.name == "ended")

    def start_resync(self) -> None:
        """Have MLflow made equal to the study, without waiting for it."""
        self._resynced_at = time.monotonic()
        try:
            self._queue.put_nowait((Future(), self._resync_of(StudyState.read(self._trials))))
        except queue.Full:
            self._resync_due = True

    def resync(self) -> bool:
        """Make MLflow equal to the study; False, after one sentence, when it is not so in time.

        Waits until MLflow has done nothing for ``SILENT_SECONDS``, ``LONGEST_SECONDS`` at most. Raises DiskFullError
        when its disk is full.
        """
        state = StudyState.read(self._trials)
        try:
            self._wait_for(self._resync_of(state))
        except DiskFullError:
            raise
        except Exception as err:
            lacks = f"{len(state.missing_in(self._runs))} of {len(state.ended)} runs"
            log.warning("MLflow lacks %s (%s); the same command makes it equal to the study", lacks, cause(err))
            return False
        return True

    def flush(self) -> bool:
        """Wait, as ``resync`` does, until all that was queued is written or forgotten; False when some of it is not."""
        self._wait_for(lambda: None)
        return not self.behind

    def finish(self, status: str, files: Sequence[Path]) -> bool:
        """Close the parent run, with figures and files as artifacts; False when MLflow does not take it."""
        self._stop_watching()
        try:
            self._wait_for(lambda: close_parent(self._study.client, self.parent, status, files))
        except Exception as err:
            log.warning("MLflow lacks the end of the study (%s); the same command makes it equal to it", cause(err))
            return False
        return True

    def close(self) -> None:
        """End the thread after what it is at, and let go of the store. What is queued is forgotten."""
        self._stop_watching()
        self._closing = True
        self._hurry.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout=RESYNC_RETRY_SECONDS)
        self._study.close()

    def _stop_watching(self) -> None:
        if self._system is not None:
            self._system.finish()
            self._system = None

    def _wait_for(self, act: Callable[[], None]) -> None:
        """Have the thread do something. Raises what that raises, and TimeoutError."""
        job: _Job = Future(), act
        began, queued = time.monotonic(), False
        while not job[0].done():
            self._hurry.set()
            with contextlib.suppress(queue.Full, TimeoutError):
                if not queued:
                    self._queue.put(job, timeout=0.1)
                    queued = True
                job[0].exception(timeout=0.1)
            now = time.monotonic()
            if now > min(max(began, self._runs.answered) + SILENT_SECONDS, began + LONGEST_SECONDS):
                raise TimeoutError("it does not answer")
        job[0].result()

    def _write_queue(self) -> None:
        """What the thread does."""
        while not self._closing:
            batch = [self._queue.get()]
            self._hurry.wait(LINGER_SECONDS)
            self._hurry.clear()
            with contextlib.suppress(queue.Empty):
                while len(batch) < MERGED:
                    batch.append(self._queue.get_nowait())
            events: list[_Event] = []
            for item in batch:
                if isinstance(item, _Event):
                    events.append(item)
                elif item is not None:
                    self._write(events)
                    events = []
                    done, act = item
                    try:
                        done.set_result(act())
                    except Exception as err:
                        done.set_exception(err)
            self._write(events)

    def _write(self, events: Sequence[_Event]) -> None:
        """Write events, those of one run as one, which costs the store a fraction."""
        contents: dict[RunKey, RunContent] = {}
        for event in events:
            key = event.key
            if event.name == "ended" and event.details[0] == "INTERRUPTED":
                contents.pop(key, None)
                self._try(key, True, partial(self._runs.discard, key))
                continue
            try:
                begun = key in contents or key in self._begun
                content = self._study.projection.event(event.name, event.trial, event.details, event.at, begun)
            except Exception as err:
                self._forget(key, event.name == "ended")
                self._has_failed(err)
                continue
            contents[key] = contents[key].then(content) if key in contents else content
        for key, content in contents.items():
            ended = content.status is not None
            if key in self._gaps:  # it is closed when it is whole
                self._gaps[key] |= ended
                content = replace(content, status=None, tags={**content.tags, "mixtune.state": "RUNNING"})
            self._try(key, ended, partial(self._runs.write, content))

    def _try(self, key: RunKey, ended: bool, act: Callable[[], None]) -> None:
        """Do something about a run; when it fails it is forgotten, and so is what comes shortly after."""
        if self._closing or time.monotonic() < self._failed_at + PAUSE_SECONDS:
            self._forget(key, ended)
            return
        try:
            act()
        except Exception as err:
            self._forget(key, ended)
            if not isinstance(err, RunGoneError) and not is_permanent(err):
                self._has_failed(err)
        else:
            self._begun.add(key)
            self._has_answered()

    def _forget(self, key: RunKey, ended: bool) -> None:
        self._begun.discard(key)
        self._gaps[key] = ended or self._gaps.get(key, False)

    def _resync_of(self, state: StudyState) -> Callable[[], None]:
        return partial(self._resync, state, set(self._gaps))

    def _resync(self, state: StudyState, gaps: set[RunKey]) -> None:
        """Make MLflow equal to the study, which closes these gaps. Raises InputError when it cannot."""
        progress, left, self._resync_due = time.monotonic(), len(state.ended), True
        while True:
            try:
                runs = self._study.open()
                if runs.parent != self._runs.parent:  # the store was emptied
                    self._runs, self._begun = runs, set()
                project(state, self._runs, self._study, lambda: self._closing)
                break
            except Exception as err:
                self._has_failed(err)
                before, left = left, len(state.missing_in(self._runs))
                progress = time.monotonic() if left < before else progress
                if self._closing or time.monotonic() > progress + RESYNC_RETRY_SECONDS:
                    raise refused(self.uri, err) from None
                time.sleep(PAUSE_SECONDS)
        self._has_answered()
        self._resync_due = False
        for key in (gaps | set(state.ended)) - state.running:
            self._gaps.pop(key, None)
        if missing := state.missing_in(self._runs):
            raise InputError(f"it refuses trial {missing[0].trial}")
        forget_unsent(self._folder, self.uri)

    @property
    def _answers(self) -> bool:
        return self._failed_at == -math.inf

    def _has_failed(self, err: Exception) -> None:
        if self._answers:
            log.warning("MLflow is not written (%s); trials go on, and what it lacks is written later", cause(err))
        self._failed_at = time.monotonic()

    def _has_answered(self) -> None:
        if not self._answers:
            log.warning("MLflow is written again")
        self._failed_at = -math.inf
