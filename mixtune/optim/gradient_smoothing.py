"""Gradient smoothing: scale the gradient of every step, whatever its size, to the running mean of gradient norms."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GradientSmoothing:
    """MixSize's gradient smoothing: every step's gradient gets the norm of a running average over all shapes.

    R <- m R + (1-m) g, then every gradient is multiplied by R / (g + eps), where g is the global L2 norm; the first
    step only sets R. It is two-sided (scales up as well as down), runs before weight decay, and one R serves all sizes.
    Source: the MixSize authors' regularization.py (a later version of it lost the second term, so that R decays to 0).
    Nothing is read back from the device.
    """

    def __init__(self, network: nn.Module, momentum: float = 0.9, eps: float = 1e-6) -> None:
        self._parameters = [p for p in network.parameters() if p.requires_grad]
        self._momentum, self._eps = momentum, eps
        self.norm = torch.full((), -1.0, device=self._parameters[0].device)  # below 0 before the first step

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running norm, which a resumed run needs; empty before the first step."""
        return {} if self.norm.item() < 0 else {"norm": self.norm}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load a saved running norm."""
        self.norm.copy_(state["norm"]) if state else self.norm.fill_(-1.0)

    @torch.no_grad()
    def __call__(self) -> None:
        """Rescale the gradients in place."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        g = torch.stack(torch._foreach_norm(gradients)).norm()
        first = self.norm < 0  # evaluated on the device, so that the step can be captured
        self.norm.copy_(torch.where(first, g, (self.norm * self._momentum).add(g, alpha=1 - self._momentum)))
        # ones_like, because a plain 1.0 would be copied to the device, which cannot be captured.
        torch._foreach_mul_(gradients, torch.where(first, torch.ones_like(g), self.norm / (g + self._eps)))
