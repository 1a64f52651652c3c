"""Distillation: train the network on the outputs of a trained teacher that sees the same views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mixtune.errors import InputError
from mixtune.models import registry
from mixtune.models.weights import load_weights


@dataclass(frozen=True)
class Distillation:
    """The teacher's network and weight file; temperature 20 and weight 1 are those of Bag of Tricks."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    network: str
    weights: str
    temperature: float = 20.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature!r}")
        if not math.isfinite(self.weight) or self.weight <= 0:
            raise ValueError(f"weight must be positive, not {self.weight!r}")

    def teacher(self, classes: int, device: torch.device, names: Sequence[str] = ()) -> nn.Module:
        """Return the teacher, in evaluation mode. names: of the classes.

        Raise InputError for an unknown network, and for a file of another network or of other classes.
        """
        try:
            net = registry.create_network(self.network, classes)
        except ValueError as err:
            raise InputError(f"recipe.distill.network: {err}") from None
        load_weights(net, self.weights, self.network, names)
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net.requires_grad_(False).eval()

    def loss(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return T^2 times the divergence of the softened outputs [N, classes], mean over the views.

        Bag of Tricks has the cross-entropy, which differs by the teacher's entropy, a constant: the gradient is the
        same, and this loss is 0 for outputs that equal the teacher's.
        """
        T = self.temperature
        student, target = (logits.float() / T).log_softmax(1), (teacher.float() / T).log_softmax(1)
        return self.weight * T**2 * F.kl_div(student, target, reduction="batchmean", log_target=True)
