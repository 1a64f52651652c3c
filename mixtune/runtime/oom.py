"""Out of memory: name what did not fit into a device's memory, and what would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from mixtune.errors import TrainingError, error_chain
from mixtune.regime import BatchShape


class OutOfMemoryError(TrainingError):
    """Something did not fit into the device's memory."""


# What plain RuntimeErrors contain where it was not torch's GPU allocator that failed: on a CPU; in CUDA as it
# instantiates a captured step; in cuBLAS and cuDNN.
_OUT_OF_MEMORY_MESSAGES = ("DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")


def is_out_of_memory(err: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, is lack of memory.

    (A capture that runs out of memory ends with another error, raised from that one.)
    """
    return any(
        isinstance(cause, torch.OutOfMemoryError | OutOfMemoryError)
        or (isinstance(cause, RuntimeError) and any(message in str(cause) for message in _OUT_OF_MEMORY_MESSAGES))
        for cause in error_chain(err)
    )


@contextmanager
def convert_out_of_memory(message: Callable[[], str]) -> Iterator[None]:
    """Raise OutOfMemoryError(message()) in place of whatever lack of memory raises in the block."""
    try:
        yield
    except Exception as err:
        if isinstance(err, OutOfMemoryError) or not is_out_of_memory(err):
            raise
        raise OutOfMemoryError(message()) from None


def step_too_large(shape: BatchShape, fitting: Sequence[BatchShape], place: str) -> str:
    """Return the sentence that a step of ``shape`` did not fit at ``place`` in the run, and which batch should.

    fitting: shapes of which a step did fit.
    """
    sentence = f"the device's memory does not hold a step of shape {shape} (S x B x D, {place})"
    if not fitting:
        return f"{sentence}, the first shape tried; start with half the batch: base.B {max(1, shape.B // 2)}"
    largest = max(fitting, key=lambda s: s.pixels)
    B = max(1, min(shape.B - 1, largest.pixels // (shape.S**2 * shape.D)))
    return f"{sentence}; {largest} did fit, and so should a batch of {B} at this size: lower base.B to match"


def evaluation_too_large(S: int, fitting: Sequence[int]) -> str:
    """Return the sentence that an evaluation at S did not fit; ``fitting``: sizes that did."""
    sentence = f"the device's memory does not hold an evaluation at {S} px"
    return (
        f"{sentence}; {max(fitting)} px did fit: leave larger sizes out"
        if fitting
        else f"{sentence}, the smallest size"
    )
