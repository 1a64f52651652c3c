"""Recipe: optimiser, learning rate and loss. The learning rate is a function of the share of the budget spent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from mixtune.models.registry import layer_groups
from mixtune.optim import lr_schedules
from mixtune.optim.distillation import Distillation


@dataclass(frozen=True)
class Recipe:
    """The settings of training that do not depend on the regime.

    lr: peak learning rate. scaling: "none" uses it for every shape (as the MixSize authors do); otherwise it is meant
    for ``scaling_batch`` images, and "base" scales it to the base batch (Bag of Tricks), "step" to every step's own B.
    warmup: share of the budget. schedule: "cosine", "linear" and, ``cycles`` times with each cycle ``cycle_growth``
    times as long as the last, "sgdr" and "cyclic" move between lr and ``floor`` * lr; "step" multiplies by ``gamma`` at
    each of ``milestones`` (shares of the budget); "constant" keeps lr.
    smoothing: MixSize's gradient smoothing. zero_gamma: the last norm of every residual block starts at 0 (True), at 1
    (False) or as the network has it. mixup, cutmix: alphas, 0 for off. ema: decay per step of an average of the
    weights, which then is what is evaluated and kept; 0 for off. distill: learn from a teacher. dropout, drop_path:
    shares, passed to the network. aux_weight: of an auxiliary head's loss, where the network has one.
    sync_bn: in a run of several processes batch norms see the images of all of them, as on one device; without it those
    of their own, and only the running statistics are averaged.
    precision: "bf16" computes the network in bfloat16 where that is safe (autocast) and keeps weights and loss in
    float32; "auto" is bf16 on a GPU and float32 on a CPU.
    For fine-tuning: the layers form ``groups``; the head, which is the last, has the learning rate lr, each group
    before it ``group_decay`` times that of the next; for the share ``frozen`` of the budget only the head is trained,
    while batch-norm statistics follow the images throughout.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    warmup: float = 0.05
    schedule: Literal["cosine", "step", "constant", "linear", "sgdr", "cyclic"] = "cosine"
    milestones: tuple[float, ...] = (0.405, 0.61, 0.82)
    gamma: float = 0.1
    label_smoothing: float = 0.0
    smoothing: bool = True
    scaling: Literal["none", "base", "step"] = "none"
    scaling_batch: int = 256
    floor: float = 0.0
    cycles: int = 1
    cycle_growth: float = 1.0
    zero_gamma: bool | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    distill: Distillation | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    aux_weight: float = 0.4
    sync_bn: bool = False
    precision: Literal["auto", "bf16", "float32"] = "auto"
    groups: int = 1
    group_decay: float = 1.0
    frozen: float = 0.0

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
        for name in ("label_smoothing", "ema", "dropout", "drop_path", "floor", "frozen"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {getattr(self, name)!r}")
        for name in ("mixup", "cutmix", "aux_weight"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)!r}")
        for name in ("scaling_batch", "cycles", "groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("cycle_growth", "group_decay"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
        if self.frozen and self.groups < 2:
            raise ValueError("frozen needs groups of at least 2: the head and what is frozen")
        if self.schedule == "cyclic" and self.floor == 0:
            raise ValueError("schedule cyclic starts at floor * lr: give a floor above 0, for example 0.1")

    def scaled(self, base_batch: int) -> Recipe:
        """The recipe for a base batch of this many images: lr scaled linearly where scaling is "base"."""
        if self.scaling != "base":
            return self
        return replace(self, lr=self.lr * base_batch / self.scaling_batch, scaling="none")

    def bf16(self, device: str) -> bool:
        """Return whether the network computes in bfloat16 on this kind of device ("cpu" or "cuda")."""
        return device == "cuda" if self.precision == "auto" else self.precision == "bf16"

    def learning_rates(self, progress: np.ndarray, B: np.ndarray | None = None) -> np.ndarray:
        """Return the learning rate of every step from the share of the budget spent before it. [n_steps] -> [n_steps]

        B: distinct images of every step, which scaling "step" needs.
        """
        after = np.clip((progress - self.warmup) / (1 - self.warmup), 0, 1)
        match self.schedule:
            case "cosine":  # warm-up excluded
                factor = lr_schedules.cosine(after)
            case "linear":
                factor = 1 - after
            case "sgdr":
                factor = lr_schedules.sgdr(after, self.cycles, self.cycle_growth)
            case "cyclic":
                factor = lr_schedules.cyclic(after, self.cycles, self.cycle_growth)
            case "step":
                factor = self.gamma ** np.searchsorted(self.milestones, progress, side="right").astype(float)
            case "constant":
                factor = np.ones_like(progress)
        if self.schedule not in ("step", "constant"):
            factor = self.floor + (1 - self.floor) * factor
        if self.warmup:
            # The step itself counts as spent, because the rate of the first one would be 0.
            first = progress[1] if len(progress) > 1 else 1.0
            factor = np.where(progress < self.warmup, np.minimum((progress + first) / self.warmup, 1), factor)
        if self.scaling == "step" and B is not None:
            factor = factor * B / self.scaling_batch
        values: np.ndarray = self.lr * factor
        return values

    def optimizer(self, network: nn.Module, captured: bool = False) -> torch.optim.SGD:
        """Return SGD, without weight decay of biases and norm parameters (Bag of Tricks, "no bias decay").

        captured: learning rates are tensors on the parameters' device, so that a step can be captured. Each parameter
        group has its ``scale`` of the learning rate, and ``head``: whether it is the head's.
        """
        groups: list[dict[str, Any]] = []
        for i, parameters in enumerate(reversed(layer_groups(network, self.groups))):
            scale = self.group_decay**i
            decayed, others = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
            for members, decay in ((decayed, self.weight_decay), (others, 0.0)):
                if members:
                    groups.append({"params": members, "weight_decay": decay, "scale": scale, "head": i == 0})
        options: dict[str, Any] = {"momentum": self.momentum, "nesterov": self.nesterov}
        if not captured:
            return torch.optim.SGD(groups, lr=self.lr, foreach=True, **options)
        for group in groups:
            group["lr"] = torch.tensor(self.lr, device=group["params"][0].device)
        return torch.optim.SGD(groups, lr=self.lr, fused=True, **options)

    def loss(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over the B*D views.

        outputs: logits [B*D, classes], or those and an auxiliary head's; targets: labels [B*D], or soft ones [B*D,
        classes].
        """
        if isinstance(outputs, tuple):
            main, auxiliary = outputs
            return self.loss(main, targets) + self.aux_weight * self.loss(auxiliary, targets)
        return nn.functional.cross_entropy(outputs, targets, label_smoothing=self.label_smoothing)
