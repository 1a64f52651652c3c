"""Engine: one training step, and the state that steps leave behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.training.averaging import Average
from mixtune.training.recipe import Recipe
from mixtune.training.smoothing import GradientSmoothing
from mixtune.training.task import Task

_DROPOUT, _BLEND = 1, 2  # separate the random streams of a step


class Engine:
    """A network in training: its weights, optimiser, smoothing and average. Nothing is read back from the device."""

    def __init__(
        self, task: Task, network: nn.Module, recipe: Recipe, seed: int, teacher: nn.Module | None = None
    ) -> None:
        self.task, self.network, self.recipe, self.seed = task, network, recipe, seed
        self.optimizer = recipe.optimizer(network)
        self.smooth = GradientSmoothing(network) if recipe.smoothing else None
        self.average = Average(network, recipe.ema) if recipe.ema else None
        self.teacher = teacher
        self._frozen = False
        self.device = next(network.parameters()).device

    @property
    def judged(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.network if self.average is None else self.average.network

    def finish(self) -> None:
        """Make the trained network the one that is kept."""
        if self.average is not None:
            self.network.load_state_dict(self.average.state_dict())

    def step(self, inputs: Tensor, targets: Tensor, lr: float, number: int, progress: float = 1.0) -> Tensor:
        """Train on one batch; ``number`` counts steps from 0. Returns the loss, on the device, detached.

        progress: share of the budget spent, for frozen layers and for networks whose drop path grows with it.
        """
        if hasattr(self.network, "progress"):
            self.network.progress = progress  # type: ignore[assignment]
        frozen = progress < self.recipe.frozen
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
            if frozen != self._frozen and not group["head"]:
                for p in group["params"]:
                    p.requires_grad_(not frozen)
        self._frozen = frozen
        # Dropout draws from torch's global generator: keyed by the step, a resumed run draws what an unbroken one does.
        torch.manual_seed(int(np.random.SeedSequence((self.seed, number, _DROPOUT)).generate_state(1)[0]))
        recipe = self.recipe
        if recipe.mixup or recipe.cutmix:
            rng = np.random.default_rng((self.seed, number, _BLEND))
            inputs, targets = self.task.blend(recipe, inputs, targets, rng)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.bf16(self.device.type)):
            outputs = self.network(inputs)
            loss = self.task.loss(recipe, outputs, targets)
            if recipe.distill is not None and self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(inputs)
                loss = loss + recipe.distill.loss(outputs[0] if isinstance(outputs, tuple) else outputs, taught)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.smooth is not None:
            self.smooth()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(number + 1)
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "smoothing": {} if self.smooth is None else self.smooth.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.network.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.smooth is not None:
            self.smooth.load_state_dict({k: v.to(self.device) for k, v in state["smoothing"].items()})
        if self.average is not None:
            self.average.load_state_dict(state["average"])
