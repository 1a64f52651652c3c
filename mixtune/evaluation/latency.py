"""Cost: what a network's inference takes on this machine, measured at a stated batch."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from mixtune.evaluation.curve import Curve
from mixtune.runtime.oom import convert_out_of_memory

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler tells of its own stages otherwise


@dataclass(frozen=True)
class Cost:
    """latency: seconds per image, the median over batches; memory: peak bytes of the batch."""

    latency: float
    memory: float


@torch.inference_mode()
def measure_cost(network: nn.Module, S: int, batch: int, device: torch.device, repeats: int = 10) -> Cost:
    """Time ``repeats`` batches of ``batch`` random images at S, after two that warm up. Evaluation mode, float32.

    Raises OutOfMemoryError where the batch does not fit.
    """
    training = network.training
    network.eval()
    too_large = f"the device's memory does not hold {batch} images at {S} px: take a smaller batch"
    try:
        with convert_out_of_memory(lambda: too_large):
            images = torch.randn(batch, 3, S, S, device=device).contiguous(memory_format=torch.channels_last)
            on_gpu = device.type == "cuda"
            seconds = []
            for i in range(repeats + 2):
                began = time.perf_counter()
                network(images)
                if on_gpu:
                    torch.cuda.synchronize(device)
                if i >= 2:
                    seconds.append(time.perf_counter() - began)
            return Cost(statistics.median(seconds) / batch, float(peak_memory(network, images)))
    finally:
        network.train(training)


@torch.inference_mode()
def peak_memory(network: nn.Module, images: Tensor) -> int:
    """Return the bytes of the weights, of ``images`` and of the most activations alive at once in a forward pass.

    As PyTorch's allocator counts them, on a CPU as on a GPU; so neither the interpreter, nor CUDA's context, nor what
    a library keeps for itself is in it, and the figure does not change from run to run.
    """
    resident = sum(t.nbytes for t in (*network.parameters(), *network.buffers(), images))
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
        torch.cuda.reset_peak_memory_stats(images.device)
        before = torch.cuda.memory_allocated(images.device)
        network(images)
        torch.cuda.synchronize(images.device)
        return resident + torch.cuda.max_memory_allocated(images.device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        network(images)
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    allocations = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocations.sort(key=lambda e: e.start_ns())
    return resident + max(accumulate(e.nbytes() for e in allocations), default=0)  # a release counts negative


def with_cost(curve: Curve, network: nn.Module, batch: int, device: torch.device) -> Curve:
    """Return the curve with latency and memory measured at every size, in batches of ``batch``."""
    points = []
    for p in curve.points:
        cost = measure_cost(network, p.S, batch, device)
        points.append(replace(p, latency=cost.latency, memory=cost.memory))
    return Curve(tuple(points), curve.metrics)
