"""CUDA graphs: capture whole training steps once per batch shape and replay them, for networks with short kernels.

On such a network Python and kernel launches take most of a step; a replayed graph issues all kernels at once. What
differs from step to step (choices of the views, learning rate, blend) is written into tensors that captured steps read.
Capturing does a few steps; every tensor that they change is restored.
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

WARM_UP_STEPS = 3  # before a capture, in which libraries choose kernels and allocate their workspaces


@dataclass(frozen=True)
class StepValues:
    """What differs from step to step beside the batch: numbers, or scalar tensors where the step is captured.

    lr: learning rate; ema_weight: of the new weights in their average; progress: share of the budget spent, for drop
    path that grows with it; blend: of mixup or cutmix.
    """

    lr: float | Tensor
    ema_weight: float | Tensor
    progress: float | Tensor
    blend: Blend | None


def write_scalar(target: Tensor, value: float | Tensor) -> None:
    """Write a number into a tensor, without waiting for the device as a copy from the host would."""
    target.copy_(value) if isinstance(value, Tensor) else target.fill_(value)


class NotCapturableError(TrainingError):
    """A step cannot be captured: the host waits for the device in it, as where a network reads a value back."""


class GraphRecorder(Protocol):
    """Captures steps on a device. They draw their random numbers (dropout) from ``generator``."""

    generator: torch.Generator

    def begin(self) -> None:
        """Give a new pool of memory to all that is captured from here on."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, on the stream of captures. Raise NotCapturableError for work that cannot be."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work; return what does it again, on the same memory and with the same Python numbers."""


class CudaGraphRecorder:
    """CUDA graphs that share one pool of memory, because they never run at the same time.

    Each trial on a shared GPU has its own recorder, with its own pool, stream and generator: graphs that run at the
    same time must not share the seed and offset that a generator keeps on the device, nor cuBLAS's workspace, which
    exists per stream and is freed with the first graph of that stream. Other threads (another trial's loader) may use
    the device during a capture; errors of theirs do not end it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self.generator = torch.Generator(device)

    def begin(self) -> None:
        """Make a new pool. Capture on the trial's stream, or beside the default stream, which cannot be captured."""
        self._pool = torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream(self._device)
        if current != torch.cuda.default_stream(self._device):
            self._stream = current
        elif self._stream is None:
            self._stream = torch.cuda.Stream(self._device)

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work ``WARM_UP_STEPS`` times. Waiting for the device raises in the last of them already: in a capture
        it would leave CUDA unusable in this process.
        """
        assert self._stream is not None
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), self._own_generator():
                for _ in range(WARM_UP_STEPS - 1):
                    work()
                with _without_waiting():
                    work()
        finally:  # also where the work failed: tensors are restored after it
            current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a CUDA graph; return its replay."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # torch does not go back to the stream before when a capture fails
            self._own_generator(),
            _without_collection(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    @contextlib.contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Let the device's default generator, which dropout always draws from, have the state of ours in the block."""
        default = default_generator(self._device)
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self.generator)
        try:
            yield
        finally:
            default.graphsafe_set_state(before)


@contextlib.contextmanager
def _without_waiting() -> Iterator[None]:
    """Raise NotCapturableError for whatever makes the host wait for the device in the block."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(action="ignore"):  # that this mode does not detect everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as err:
        if "synchronizing" not in str(err):
            raise
        raise NotCapturableError(f"a step waits for the device ({str(err).splitlines()[0]})") from err
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage in the block: freeing another trial's graphs would spoil a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class StepGraphs:
    """The captured steps of one engine, by batch shape and by whether all layers but the head are frozen."""

    def __init__(self, engine: Engine, recorder: GraphRecorder) -> None:
        # A weak reference, because the engine holds these graphs: a cycle would keep its memory until collected.
        self._engine: Engine = weakref.proxy(engine)
        self._recorder = recorder
        self._replays: dict[tuple[BatchShape, bool], Callable[[], None]] = {}
        self._loss = torch.zeros((), device=engine.device)  # outside the pool, where another graph would overwrite it
        self._blends = bool(engine.recipe.mixup or engine.recipe.cutmix)
        self._values = torch.zeros(5, device=engine.device)  # lr, ema_weight, progress, the blend's weight and share
        self._choices = torch.zeros(0, dtype=torch.int64, device=engine.device)

    def capture(self, kinds: Sequence[tuple[BatchShape, bool]]) -> float:
        """Capture these steps; return the seconds it took. Weights, statistics, momentum and random state are restored.

        Raise NotCapturableError for steps that cannot be captured.
        """
        start = time.perf_counter()
        engine = self._engine
        longest = max(self._length(shape) for shape, _ in kinds)
        self._choices = torch.zeros(longest, dtype=torch.int64, device=engine.device)
        tensors = engine.tensors()
        saved = [t.detach().clone() for t in tensors]
        random_state = engine.generator.get_state()
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
                for tensor, value in zip(tensors, saved, strict=True):
                    tensor.copy_(value)
            engine.optimizer.zero_grad(set_to_none=True)
            engine.generator.set_state(random_state)
        return time.perf_counter() - start

    def replay(self, shape: BatchShape, frozen: bool, choices: np.ndarray, values: StepValues) -> Tensor:
        """Do a captured step. choices: int64 [4, V]. Return the loss, which the next replay overwrites.

        Raise KeyError for a step that was not captured.
        """
        replay = self._replays[shape, frozen]
        blend = values.blend
        integers = [choices.ravel()]
        numbers = [values.lr, values.ema_weight, values.progress, 0.0, 0.0]
        if blend is not None:
            integers += [blend.partner.numpy(), blend.box.numpy()]
            numbers[3:] = [blend.weight, blend.share]
        self._upload(self._choices, np.concatenate(integers))
        self._upload(self._values, np.asarray(numbers, np.float32))
        replay()
        return self._loss

    def _upload(self, target: Tensor, values: np.ndarray) -> None:
        """Copy without waiting. (torch uses pinned memory again only when its copy is done.)"""
        pinned = torch.empty(len(values), dtype=target.dtype, pin_memory=target.is_cuda)
        pinned.numpy()[:] = values
        target[: len(values)].copy_(pinned, non_blocking=True)

    def _length(self, shape: BatchShape) -> int:
        return 5 * shape.views + 4 if self._blends else 4 * shape.views

    def _work(self, shape: BatchShape) -> None:
        V = shape.views
        lr, ema_weight, progress, blend_weight, blend_share = self._values.unbind()
        blend = None
        if self._blends:
            blend = Blend(self._choices[4 * V : 5 * V], self._choices[5 * V : 5 * V + 4], blend_weight, blend_share)
        batch = self._engine.task.batch_from_choices(shape.S, self._choices[: 4 * V].view(4, V))
        self._loss.copy_(self._engine.compute(batch, StepValues(lr, ema_weight, progress, blend)))
