"""Cost: what a network's inference takes on this machine, measured at a stated batch."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch
from torch import nn

from mixtune.training.curve import Curve


@dataclass(frozen=True)
class Cost:
    """latency: seconds per image, the median over batches; memory: peak bytes on the GPU, None on a CPU."""

    latency: float
    memory: float | None


@torch.inference_mode()
def measure_cost(network: nn.Module, S: int, batch: int, device: torch.device, repeats: int = 10) -> Cost:
    """Time ``repeats`` batches of ``batch`` random images at S, after two that warm up. Evaluation mode, float32.

    Raises RuntimeError (OutOfMemoryError) where the batch does not fit.
    """
    training = network.training
    network.eval()
    try:
        images = torch.randn(batch, 3, S, S, device=device).contiguous(memory_format=torch.channels_last)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        seconds = []
        for i in range(repeats + 2):
            began = time.perf_counter()
            network(images)
            if on_gpu:
                torch.cuda.synchronize(device)
            if i >= 2:
                seconds.append(time.perf_counter() - began)
        peak = float(torch.cuda.max_memory_allocated(device)) if on_gpu else None
        return Cost(statistics.median(seconds) / batch, peak)
    finally:
        network.train(training)


def with_cost(curve: Curve, network: nn.Module, batch: int, device: torch.device) -> Curve:
    """The curve with latency and memory measured at every size, in batches of ``batch``."""
    points = []
    for p in curve.points:
        cost = measure_cost(network, p.S, batch, device)
        points.append(replace(p, latency=cost.latency, memory=cost.memory))
    return Curve(tuple(points))
