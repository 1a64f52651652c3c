"""Shortage: where a device has too little memory, what did not fit is named, and what would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mixtune.errors import TrainingError, raised_on
from mixtune.regime import BatchShape


class OutOfMemoryError(TrainingError):
    """Something did not fit into the device's memory."""


# In plain RuntimeErrors, where it was not torch's allocator on a GPU that failed: a CPU; CUDA as it instantiates a
# captured step; cuBLAS and cuDNN.
_SAID = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(err: BaseException) -> bool:
    """Whether memory was lacking, or whether that is what another error was raised on: a capture that runs out of
    memory ends with an error of its own.
    """
    return any(
        isinstance(one, torch.OutOfMemoryError | OutOfMemoryError)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _SAID))
        for one in raised_on(err)
    )


@contextmanager
def name_oom(say: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemoryError with what ``say()`` says where memory is lacking in the block."""
    try:
        yield
    except Exception as err:
        if isinstance(err, OutOfMemoryError) or not is_out_of_memory(err):
            raise
        raise OutOfMemoryError(say()) from None


def too_large(shape: BatchShape, done: Sequence[BatchShape], place: str) -> str:
    """That a step of ``shape`` did not fit, and which of the shapes that were ``done`` did or which batch would."""
    said = f"the device's memory does not hold a step of shape {shape} (S x B x D, {place})"
    if not done:
        return f"{said}, the first shape tried; start with half the batch: base.B {max(1, shape.B // 2)}"
    fits = max(done, key=lambda s: s.pixels)
    B = max(1, min(shape.B - 1, fits.pixels // (shape.S**2 * shape.D)))
    return f"{said}; {fits} did fit, and so should a batch of {B} at this size: lower base.B to match"


def too_large_to_judge(S: int, done: Sequence[int]) -> str:
    """That an evaluation at S did not fit, and which sizes did."""
    said = f"the device's memory does not hold an evaluation at {S} px"
    return f"{said}; {max(done)} px did fit: leave larger sizes out" if done else f"{said}, the smallest size"
