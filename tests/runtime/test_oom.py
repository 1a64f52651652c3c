"""What counts as a lack of memory, by what torch and CUDA say and by what an error was raised on."""

import pytest
import torch

from mixtune.runtime.oom import OutOfMemoryError, convert_out_of_memory, is_out_of_memory


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (OutOfMemoryError("a step of 8x32 does not fit"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be", 2),
            True,
        ),  # of a driver's call
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("CUDA error: out of memory"), False),
    ],
)
def test_memory_is_lacking_where_torch_or_cuda_say_so(error, is_one):
    assert is_out_of_memory(error) is is_one


def error_chain(first, second, hiding):
    """The second error, as it is raised where the first was."""
    try:
        try:
            raise first
        except type(first):
            if hiding:
                raise second from None
            raise second  # noqa: B904 - what is tested
    except type(second) as err:
        return err


@pytest.mark.parametrize("hiding", [False, True])
def test_an_error_of_ending_a_capture_that_ran_out_of_memory_is_a_lack_of_memory_too(hiding):
    """torch.cuda.graph ends the capture when its block raises, and that may raise something else on top. What is
    raised instead of another error is not that error.
    """
    on_top = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    found = error_chain(torch.OutOfMemoryError("CUDA out of memory"), on_top, hiding)
    with pytest.raises(RuntimeError if hiding else OutOfMemoryError), convert_out_of_memory(lambda: "too large"):
        raise found
    assert is_out_of_memory(found) is not hiding
