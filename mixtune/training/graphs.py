"""Graphs: whole training steps captured once per batch shape and replayed, for networks whose kernels are short.

On such a network Python and the launches take most of a step; a replayed CUDA graph issues all kernels at once. What
differs from step to step (choices of the views, learning rate, blend) is written into tensors that the captured work
reads. Capturing trains a few steps on the way; every tensor that these changed is put back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mixtune.regime import BatchShape
from mixtune.training.mixing import Blend

if TYPE_CHECKING:
    from mixtune.training.engine import Engine

WARM_UP = 3  # steps before a capture: libraries choose their kernels and allocate what they keep


@dataclass(frozen=True)
class Numbers:
    """The numbers of one step: plain ones, or scalar tensors where the step is captured.

    lr: learning rate; share: of the weights in their average; blend: of mixup or cutmix.
    """

    lr: float | Tensor
    share: float | Tensor
    blend: Blend | None


class Recorder(Protocol):
    """Captures work on a device."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work a few times, where it will be captured."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work. What comes back does it again on the same memory, with the numbers of the capture."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory: they never run at the same time, nor read each other's results.

    Trials that share a GPU have a recorder each, and so a pool each. Other threads may use the device meanwhile (the
    loader of another trial), so that an error of theirs is not one of the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def warm_up(self, work: Callable[[], None]) -> None:
        """Three times, on the stream of the captures."""
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(self._device), torch.cuda.graph_pool_handle()
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay


class StepGraphs:
    """The captured steps of one engine, by batch shape and by whether all but the head is frozen."""

    def __init__(self, engine: Engine, recorder: Recorder) -> None:
        self._engine, self._recorder = engine, recorder
        self._replays: dict[tuple[BatchShape, bool], Callable[[], None]] = {}
        self._loss = torch.zeros((), device=engine.device)  # outside the pool: another graph would overwrite it
        self._blends = bool(engine.recipe.mixup or engine.recipe.cutmix)
        self._numbers = torch.zeros(4, device=engine.device)  # lr, share, and the blend's weight and share
        self._choices = torch.zeros(0, dtype=torch.int64, device=engine.device)

    def capture(self, kinds: Sequence[tuple[BatchShape, bool]]) -> float:
        """Capture these steps; returns the seconds it took. Weights, statistics, momentum and random state stay."""
        began = time.perf_counter()
        engine = self._engine
        longest = max(self._length(shape) for shape, _ in kinds)
        self._choices = torch.zeros(longest, dtype=torch.int64, device=engine.device)
        tensors = engine.tensors()
        before = [t.detach().clone() for t in tensors]
        drawn = engine.random_state()
        for shape, frozen in sorted(kinds, key=lambda kind: -kind[0].pixels):  # the largest first: it sizes the pool
            engine.freeze(frozen)

            def work(shape: BatchShape = shape) -> None:
                self._work(shape)

            self._recorder.warm_up(work)
            self._replays[shape, frozen] = self._recorder.record(work)
        with torch.no_grad():
            for tensor, was in zip(tensors, before, strict=True):
                tensor.copy_(was)
        engine.optimizer.zero_grad(set_to_none=True)
        engine.random_state(drawn)
        return time.perf_counter() - began

    def replay(self, shape: BatchShape, frozen: bool, choices: np.ndarray, numbers: Numbers) -> Tensor:
        """Do a captured step. choices: int64 [4, V]. Returns the loss, which the next replay overwrites.

        Raises KeyError for a step that was not captured.
        """
        again = self._replays[shape, frozen]
        blend = numbers.blend
        parts = [choices.ravel()]
        values = [numbers.lr, numbers.share, 0.0, 0.0]
        if blend is not None:
            parts += [blend.partner.numpy(), blend.box.numpy()]
            values[2:] = [blend.weight, blend.share]
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
        lr, share, weight, label = self._numbers.unbind()
        blend = None
        if self._blends:
            blend = Blend(self._choices[4 * V : 5 * V], self._choices[5 * V : 5 * V + 4], weight, label)
        inputs, targets = self._engine.task.made(shape.S, self._choices[: 4 * V].view(4, V))
        self._loss.copy_(self._engine.work(inputs, targets, Numbers(lr, share, blend)))
