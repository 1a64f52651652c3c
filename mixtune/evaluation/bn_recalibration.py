"""Calibration: batch-norm statistics measured anew at an inference size, and kept only where they help.

A network trained on many sizes has running statistics that mix them all; with the usual momentum of 0.1 they hold
little more than its last ten steps, whichever sizes those had. Statistics of one size can raise or lower accuracy
there, so running and recalibrated ones are compared, size by size, on images that are not the ones reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, Tensor]  # running means, variances and counts by their names in the network's state
RUNNING = "running"  # the choice that changes nothing


class ImageResults(Protocol):
    """What a network predicted for N images, one after the other, whatever the task."""

    @property
    def read(self) -> Tensor:
        """Return whether the image could be read. bool [N]"""

    @property
    def quality(self) -> Tensor:
        """Return how well each image is predicted, from 0 to 1. [N]"""

    def part(self, which: slice) -> Any:
        """Return the results of some of the images."""

    @classmethod
    def join(cls, parts: Any) -> Any:
        """Return the results of all the images of several."""


Results = TypeVar("Results", bound=ImageResults)


@dataclass(frozen=True)
class Recalibration:
    """Which statistics compete with the running ones at every size, and how many training images they come from.

    ``views`` "train": training images augmented as in training (MixSize's calibration); "test": training images as
    they are evaluated (FixRes). ``images``: 12,800 are the MixSize authors' 200 batches of 64.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    views: tuple[Literal["train", "test"], ...] = ("train", "test")
    images: int = 12_800

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) < len(self.views):
            raise ValueError(f"views must list train, test or both, not {list(self.views)}")
        if self.images < 2:
            raise ValueError(f"images must be at least 2, not {self.images}")


def _norms(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(n, m) for n, m in network.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def statistics(network: nn.Module) -> Statistics:
    """Return a copy of the running statistics of every batch norm."""
    return {f"{n}.{k}": v.clone() for n, m in _norms(network) for k, v in m.named_buffers(recurse=False)}


@contextmanager
def using(network: nn.Module, other: Statistics) -> Iterator[None]:
    """Give the network other statistics in the block; its own are put back afterwards, to the bit.

    Raise KeyError when the statistics are of another network.
    """
    buffers = dict(network.named_buffers())
    own = statistics(network)
    if set(own) != set(other):
        raise KeyError("these batch-norm statistics are of another network")
    try:
        for name, value in other.items():
            buffers[name].copy_(value)
        yield
    finally:
        for name, value in own.items():
            buffers[name].copy_(value)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[tuple[Tensor, Any]]) -> Statistics:
    """Return the statistics of these batches, each with equal weight (cumulative average), as in MixSize's calibration.

    Everything but the norms stays in evaluation mode, so that dropout does not widen the variances. Momentum, modes
    and statistics of the network are as before afterwards.
    """
    norms = _norms(network)
    own, momenta = statistics(network), [m.momentum for _, m in norms]
    modes = {m: m.training for m in network.modules()}
    buffers = dict(network.named_buffers())
    network.eval()
    try:
        for _, m in norms:
            m.reset_running_stats()
            m.momentum = None  # the cumulative average
            m.train()
        for inputs, _ in batches:
            network(inputs)
        return statistics(network)
    finally:
        for module, training in modes.items():
            module.training = training
        for (_, m), momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
        for name, value in own.items():
            buffers[name].copy_(value)


def choose(results: Mapping[str, ImageResults], part: slice) -> str:
    """Return the candidate that is better than the running statistics on ``part`` of the images, else "running".

    "Better" is by more than one standard error of the paired difference: a tie or a lucky image changes nothing.
    """
    running = results[RUNNING].part(part)
    best, gain = RUNNING, 0.0
    for name, candidate in results.items():
        other = candidate.part(part)
        difference = (other.quality - running.quality)[other.read & running.read]
        if not len(difference):
            continue
        mean = float(difference.mean())
        error = float(difference.std(correction=0)) / math.sqrt(len(difference))
        if mean > error and mean > gain:
            best, gain = name, mean
    return best


def cross_fitted(results: Mapping[str, Results]) -> Results:
    """Return every image under the statistics that were chosen on the other half of the images.

    So all images are reported and none of them took part in its own choice. The halves are every second image.
    """
    even, odd = slice(0, None, 2), slice(1, None, 2)
    running = results[RUNNING]
    if len(running.read) < 2:
        return running
    joined: Results = running.join([results[choose(results, odd)].part(even), results[choose(results, even)].part(odd)])
    return joined


def best_results(
    network: nn.Module,
    images: Callable[[], Results],
    choice: Callable[[], Results] | None,
    running: Results,
    candidates: Mapping[str, Statistics],
) -> tuple[str, Results]:
    """Return the best statistics at one size, and the results on the images that are reported with those.

    ``images`` predicts them with the statistics that the network has, ``choice`` the images to choose on; where there
    are none, the choice is made by cross-fitting. ``running`` are the results of ``images`` with the running
    statistics. The network must be in evaluation mode.
    """
    if choice is None:
        by_name = {RUNNING: running}
        for name, statistics_ in candidates.items():
            with using(network, statistics_):
                by_name[name] = images()
        return choose(by_name, slice(None)), cross_fitted(by_name)
    elsewhere = {RUNNING: choice()}
    for name, statistics_ in candidates.items():
        with using(network, statistics_):
            elsewhere[name] = choice()
    best = choose(elsewhere, slice(None))
    if best == RUNNING:
        return best, running
    with using(network, candidates[best]):
        return best, images()
