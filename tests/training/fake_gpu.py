"""A GPU without a GPU: tensors that only know their shape, type and device (torch's FakeTensorMode).

Nothing is computed, so numbers are not tested; but whatever CUDA would refuse because a tensor is on the CPU, and
whatever reads a value back from the device, is an error, as it is on a GPU. torch's autograd engine asks the driver for
its streams, which is not there: ``backward`` walks the same nodes in Python.
"""

import contextlib
from collections import defaultdict
from weakref import WeakKeyDictionary

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily

GPU = torch.device("cuda")


class FakeRecorder:
    """What ``graphs.CudaRecorder`` is: the work is done where it would be captured."""

    def __init__(self):
        self.generator, self.recorded = torch.Generator(), 0

    def begin(self):
        self.recorded = 0

    def warm_up(self, work):
        work()

    def record(self, work):
        work()
        self.recorded += 1
        return lambda: None


@contextlib.contextmanager
def fake_gpu(monkeypatch):
    """In this block ``device="cuda"`` is there. Tensors from outside become fake ones on the CPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch, "_fused_sgd_", fused_sgd)
    monkeypatch.setattr("mixtune.tasks.base.pick_device", lambda _: GPU)
    monkeypatch.setattr("mixtune.data.in_memory._CACHE", WeakKeyDictionary())
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def copied(tensor, memo):
    """For copy.deepcopy; torch's copies the memory, of which there is none."""
    copy = tensor.detach().clone()
    return memo.setdefault(id(tensor), torch.nn.Parameter(copy) if isinstance(tensor, torch.nn.Parameter) else copy)


def moved(make):
    """The network that ``make()`` gives, on the GPU; ``Module.to`` cannot exchange real weights for fake ones."""
    with unset_fake_temporarily():
        network = make()
    for module in network.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(p.detach().to(GPU), p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = b.to(GPU)
    return network


def fused_sgd(params, grads, momenta, *, lr, **_):
    """Has no version for fake tensors. Refuses what CUDA's refuses: other devices, types, sizes or layouts."""
    assert isinstance(lr, torch.Tensor)
    assert {t.device for t in (lr, *params, *grads, *momenta)} == {params[0].device}
    for same in zip(params, grads, *([momenta] if momenta else []), strict=True):
        assert len({(t.dtype, t.shape) for t in same}) == 1
        assert len({tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1) for t in same}) == 1


@torch.no_grad()
def backward(loss):
    """Leave every leaf its gradient: each node is called once all of its users have been, as the engine does it."""
    users, nodes = defaultdict(int), [loss.grad_fn]
    for node in nodes:
        for before, _ in node.next_functions:
            if before is not None:
                nodes += [before] if not users[before] else []
                users[before] += 1
    got, ready = {loss.grad_fn: {0: torch.ones_like(loss)}}, [loss.grad_fn]
    while ready:
        node = ready.pop()
        mine = got.pop(node, {})
        if hasattr(node, "variable"):
            leaf = node.variable
            leaf.grad = mine[0] if leaf.grad is None else leaf.grad + mine[0]
            continue
        gradients = node(*(mine.get(i) for i in range(len(node._input_metadata))))
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        for (before, i), gradient in zip(node.next_functions, gradients, strict=True):
            if before is None:
                continue
            if gradient is not None:
                like, there = before._input_metadata[i], got.setdefault(before, {})
                gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                there[i] = gradient if i not in there else there[i] + gradient
            users[before] -= 1
            if not users[before]:
                ready.append(before)
