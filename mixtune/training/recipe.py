"""Recipe: optimiser, learning rate and loss. The learning rate follows ``progress``, the share of the budget spent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How the network is trained, whatever the regime.

    lr is the peak learning rate for the base batch and is not scaled with B (as in the MixSize authors' code);
    ``warmup`` is a share of the budget; ``schedule`` "cosine" anneals to 0, "step" multiplies by ``gamma`` at each of
    ``milestones`` (shares of the budget), "constant" keeps lr. ``smoothing`` is MixSize's gradient smoothing.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    warmup: float = 0.05
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.405, 0.61, 0.82)
    gamma: float = 0.1
    label_smoothing: float = 0.0
    smoothing: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.lr) or self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr!r}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), not {self.momentum!r}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        if not math.isfinite(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, not {self.weight_decay!r}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a share of the budget in [0, 1), not {self.warmup!r}")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < m < 1 for m in self.milestones):
            raise ValueError(f"milestones are rising shares of the budget in (0, 1), not {list(self.milestones)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {self.label_smoothing!r}")

    def learning_rates(self, progress: np.ndarray) -> np.ndarray:
        """The learning rate of every step from the share of the budget spent before it. [n_steps] -> [n_steps]"""
        after = np.clip((progress - self.warmup) / (1 - self.warmup), 0, 1)
        match self.schedule:
            case "cosine":  # Bag of Tricks, "cosine learning rate decay": warm-up excluded
                factor = 0.5 * (1 + np.cos(np.pi * after))
            case "step":
                factor = self.gamma ** np.searchsorted(self.milestones, progress, side="right").astype(float)
            case "constant":
                factor = np.ones_like(progress)
        if self.warmup:
            # The first step already moves: progress there is 0, so count the step itself as spent.
            step = progress[1] if len(progress) > 1 else 1.0
            factor = np.where(progress < self.warmup, np.minimum((progress + step) / self.warmup, 1), factor)
        rates: np.ndarray = self.lr * factor
        return rates

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """SGD; biases and norm parameters are not decayed (Bag of Tricks, "no bias decay")."""
        decayed = [p for p in network.parameters() if p.ndim > 1]
        others = [p for p in network.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, foreach=True)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over the B*D views. logits [B*D, classes], targets [B*D]."""
        return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
