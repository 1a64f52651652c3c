"""Graphs: whole training steps captured once per batch shape and replayed, for networks whose kernels are short.

On such a network Python and the launches take most of a step; a replayed CUDA graph issues all kernels at once. What
differs from step to step (choices of the views, learning rate, blend) is written into tensors that the captured work
reads. Capturing trains a few steps on the way; every tensor that these changed is put back.
"""

from __future__ import annotations

import contextlib
import gc
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mixtune.errors import TrainingError
from mixtune.optim.mixup import Blend
from mixtune.regime import BatchShape
from mixtune.runtime.device import default_generator

if TYPE_CHECKING:
    from mixtune.training.step import Engine

WARM_UP = 3  # steps before a capture: libraries choose their kernels and allocate what they keep


@dataclass(frozen=True)
class Numbers:
    """The numbers of one step: plain ones, or scalar tensors where the step is captured.

    lr: learning rate; share: of the weights in their average; progress: share of the budget spent, for drop path that
    grows with it; blend: of mixup or cutmix.
    """

    lr: float | Tensor
    share: float | Tensor
    progress: float | Tensor
    blend: Blend | None


def put(to: Tensor, value: float | Tensor) -> None:
    """Write a number into a tensor, without waiting for the device as a copy from the host would."""
    to.copy_(value) if isinstance(value, Tensor) else to.fill_(value)


class WaitsError(TrainingError):
    """The host waits for the device in the middle of a step, as where a network reads a value back."""


class Recorder(Protocol):
    """Captures work on a device. Captured work draws its random numbers (dropout) from ``generator``."""

    generator: torch.Generator

    def begin(self) -> None:
        """What is recorded from here on shares its memory."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, where it will be captured. Raises WaitsError for work that cannot be."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work. What comes back does it again on the same memory, with the numbers of the capture."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they never run at the same time, nor read each other's results.

    Trials that share a GPU have a recorder each, and with it a pool, a stream and a generator of their own: graphs that
    run at the same time must not share the seed and offset that a generator keeps on the device, nor the workspace that
    cuBLAS keeps per stream and that goes with the first graph of that stream to end. Other threads may use the device
    meanwhile (the loader of another trial), so that an error of theirs is not one of the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self.generator = torch.Generator(device)

    def begin(self) -> None:
        """A new pool. The stream is the trial's; on the default one, which cannot be captured, it is one beside it."""
        self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            self._stream = current
        elif self._stream is None:
            self._stream = torch.cuda.Stream(self._device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """Three times, on the stream of the captures. To wait in a capture would spoil it, and much else in the
        process, for good: it is an error of the last warm-up already.
        """
        assert self._stream is not None
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream), self._drawing():
                for _ in range(WARM_UP - 1):
                    work()
                with _without_waiting():
                    work()
        finally:  # what is put back is put back after this work, also where it failed
            here.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # torch does not go back to the stream before when a capture fails
            self._drawing(),
            _without_collection(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        """Dropout has no choice of its generator, so the device's default one stands for ours meanwhile."""
        default = default_generator(self._device)
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self.generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(before)


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the device raises WaitsError in the block."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that it may not find all
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as err:
        if "synchronizing" not in str(err):
            raise
        raise WaitsError(f"a step waits for the device ({str(err).splitlines()[0]})") from err
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """No garbage is collected in the block: with it might go another trial's graphs, in the middle of a capture."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class StepGraphs:
    """The captured steps of one engine, by batch shape and by whether all but the head is frozen."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        # The engine holds these graphs: were they to hold it, all of its memory would wait for a garbage collection.
        self._engine: Engine = weakref.proxy(engine)
        self._recorder = recorder
        self._replays: dict[tuple[BatchShape, bool], Callable[[], None]] = {}
        self._loss = torch.zeros((), device=engine.device)  # outside the pool: another graph would overwrite it
        self._blends = bool(engine.recipe.mixup or engine.recipe.cutmix)
        self._numbers = torch.zeros(5, device=engine.device)  # lr, share, progress, the blend's weight and share
        self._choices = torch.zeros(0, dtype=torch.int64, device=engine.device)

    def capture(self, kinds: Sequence[tuple[BatchShape, bool]]) -> float:
        """Capture these steps; returns the seconds it took. Weights, statistics, momentum and random state stay.

        Raises WaitsError for steps that cannot be captured.
        """
        began = time.perf_counter()
        engine = self._engine
        longest = max(self._length(shape) for shape, _ in kinds)
        self._choices = torch.zeros(longest, dtype=torch.int64, device=engine.device)
        tensors = engine.tensors()
        before = [t.detach().clone() for t in tensors]
        drawn = engine.generator.get_state()
        self._recorder.begin()
        try:
            # The largest first: it sizes the pool.
            for shape, frozen in sorted(kinds, key=lambda kind: -kind[0].pixels):
                engine.freeze(frozen)

                def work(shape: BatchShape = shape) -> None:
                    self._work(shape)

                self._recorder.warm_up(work)
                self._replays[shape, frozen] = self._recorder.record(work)
        finally:
            with torch.no_grad():
                for tensor, was in zip(tensors, before, strict=True):
                    tensor.copy_(was)
            engine.optimizer.zero_grad(set_to_none=True)
            engine.generator.set_state(drawn)
        return time.perf_counter() - began

    def replay(self, shape: BatchShape, frozen: bool, choices: np.ndarray, numbers: Numbers) -> Tensor:
        """Do a captured step. choices: int64 [4, V]. Returns the loss, which the next replay overwrites.

        Raises KeyError for a step that was not captured.
        """
        again = self._replays[shape, frozen]
        blend = numbers.blend
        parts = [choices.ravel()]
        values = [numbers.lr, numbers.share, numbers.progress, 0.0, 0.0]
        if blend is not None:
            parts += [blend.partner.numpy(), blend.box.numpy()]
            values[3:] = [blend.weight, blend.share]
        self._upload(self._choices, np.concatenate(parts))
        self._upload(self._numbers, np.asarray(values, np.float32))
        again()
        return self._loss

    def _upload(self, to: Tensor, values: np.ndarray) -> None:
        """Without waiting: pinned memory is used again only when its copy is done."""
        here = torch.empty(len(values), dtype=to.dtype, pin_memory=to.is_cuda)
        here.numpy()[:] = values
        to[: len(values)].copy_(here, non_blocking=True)

    def _length(self, shape: BatchShape) -> int:
        return 5 * shape.views + 4 if self._blends else 4 * shape.views

    def _work(self, shape: BatchShape) -> None:
        V = shape.views
        lr, share, progress, weight, label = self._numbers.unbind()
        blend = None
        if self._blends:
            blend = Blend(self._choices[4 * V : 5 * V], self._choices[5 * V : 5 * V + 4], weight, label)
        batch = self._engine.task.made(shape.S, self._choices[: 4 * V].view(4, V))
        self._loss.copy_(self._engine.work(batch, Numbers(lr, share, progress, blend)))
