"""A recorder without CUDA: it keeps every operation with the memory it reads and writes, as a CUDA graph does.

Replaying does the same operations on the same memory with the Python numbers of the recording, so whatever a step takes
from Python instead of from a tensor is caught. Reading a value back is an error, as it is while CUDA captures.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mixtune.training.cuda_graphs import NotCapturableError

READS = {"aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


class Tape(TorchDispatchMode):
    """The operations of one recording, in order."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in READS:
            raise NotCapturableError(f"{function} reads from the device, which cannot be captured")
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self):
        for function, args, kwargs, out in self.operations:
            again = function(*args, **kwargs)
            for there, here in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(there, torch.Tensor) and there.numel() and there.data_ptr() != here.data_ptr():
                    there.copy_(here)


class TapeRecorder:
    """What ``graphs.CudaRecorder`` is, with tapes: ``generator`` stands for the default one in all that it does."""

    def __init__(self):
        self.tapes = []
        self.generator = torch.Generator()

    def begin(self):
        self.tapes.clear()

    @contextlib.contextmanager
    def _drawing(self):
        before = torch.get_rng_state()
        torch.set_rng_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)

    def warm_up(self, work):
        with self._drawing():
            work()
            with Tape():
                work()

    def record(self, work):
        with self._drawing(), Tape() as tape:
            work()
        self.tapes.append(tape)
        return self._drawing()(tape.replay)
