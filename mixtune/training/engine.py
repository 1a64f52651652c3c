"""Engine: one training step, and the state that steps leave behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.training.recipe import Recipe
from mixtune.training.smoothing import GradientSmoothing
from mixtune.training.task import Task

_DROPOUT = 1  # separates the random streams of a step


class Engine:
    """A network in training: its weights, optimiser and smoothing. Nothing is read back from the device."""

    def __init__(self, task: Task, network: nn.Module, recipe: Recipe, seed: int) -> None:
        self.task, self.network, self.recipe, self.seed = task, network, recipe, seed
        self.optimizer = recipe.optimizer(network)
        self.smooth = GradientSmoothing(network) if recipe.smoothing else None
        self.device = next(network.parameters()).device

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.network

    def step(self, inputs: Tensor, targets: Tensor, lr: float, number: int) -> Tensor:
        """Train on one batch; ``number`` counts steps from 0. Returns the loss, on the device, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Dropout draws from torch's global generator: keyed by the step, a resumed run draws what an unbroken one does.
        torch.manual_seed(int(np.random.SeedSequence((self.seed, number, _DROPOUT)).generate_state(1)[0]))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.task.loss(self.recipe, self.network(inputs), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.smooth is not None:
            self.smooth()
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smoothing": {} if self.smooth is None else self.smooth.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.smooth is not None:
            self.smooth.load_state_dict({k: v.to(self.device) for k, v in state["smoothing"].items()})
