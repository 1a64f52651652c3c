"""EMA: an exponential moving average of a network's weights and statistics, evaluated and saved in its place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class ModelEma:
    """The average network: after step t, ``d * average + (1-d) * weights`` with d = min(decay, (1+t) / (10+t)).

    The smaller decay of early steps forgets the random initialisation. Floating-point buffers are averaged as well,
    because the batch-norm statistics of one step are those of one size. Counters are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        both = _tensors(self.network), _tensors(network)
        self._averaged = [[t for t in tensors if t.is_floating_point()] for tensors in both]
        self._counters = [[t for t in tensors if not t.is_floating_point()] for tensors in both]

    def weight(self, steps: int) -> float:
        """Return 1 - d, the weight of the network in the average after ``steps`` steps."""
        return 1 - min(self.decay, (1 + steps) / (10 + steps))

    @torch.no_grad()
    def update(self, weight: float | Tensor) -> None:
        """Add the network with this weight, a number or a scalar tensor on the device."""
        averages, values = self._averaged
        difference = torch._foreach_sub(values, averages)
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_(averages, difference)  # a few kernels, where a lerp with a tensor is one for each parameter
        counters, values = self._counters
        if counters:
            torch._foreach_copy_(counters, values)

    def state_dict(self) -> dict[str, Any]:
        """Return the average's weights and buffers."""
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved average."""
        self.network.load_state_dict(state)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
