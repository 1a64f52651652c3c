"""EMA: an exponential moving average of a network's weights and statistics, which is what is evaluated and kept."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ModelEma:
    """The average network: after step t it is ``d * average + (1-d) * weights`` with d = min(decay, (1+t) / (10+t)).

    The smaller decay at the start forgets the random initialisation. Floating-point buffers are averaged as well:
    batch-norm statistics of single steps are of single sizes. Counters are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        mine, theirs = _tensors(self.network), _tensors(network)
        self._averaged = [[t for t in side if t.is_floating_point()] for side in (mine, theirs)]
        self._counters = [[t for t in side if not t.is_floating_point()] for side in (mine, theirs)]

    def share(self, steps: int) -> float:
        """The share of the network's weights in the average after ``steps`` steps: 1 - d."""
        return 1 - min(self.decay, (1 + steps) / (10 + steps))

    def update(self, steps: int) -> None:
        """Take in the network's weights after ``steps`` steps."""
        self.take_in(self.share(steps))

    @torch.no_grad()
    def take_in(self, share: float | Tensor) -> None:
        """Take in the network's weights with this share, a number or a scalar tensor on the device."""
        own, others = self._averaged
        difference = torch._foreach_sub(others, own)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(own, difference)  # a few kernels, where a lerp with a tensor is one for each of ours
        own, others = self._counters
        if own:
            torch._foreach_copy_(own, others)

    def state_dict(self) -> dict[str, Any]:
        """The average's weights and buffers."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved average."""
        self.network.load_state_dict(state)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
