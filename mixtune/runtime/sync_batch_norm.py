"""Synchronised batch norm: while it is on, batch norms in training see the images of all ranks, as one device would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from mixtune.runtime.process_group import Ranks


class Synced(TorchFunctionMode):
    """In this context every batch norm in training mode takes its statistics over all ranks.

    It acts on the function that all batch norms call (torch's, timm's with their activations), so that modules, their
    names and their copies stay as they are. On CUDA the work is done by torch's SyncBatchNorm, which has no version
    for CPUs; there it is ``plain``.
    """

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Every torch function that is called; all but batch norm pass."""
        kwargs = kwargs or {}
        if func is F.batch_norm and not self._ranks.alone:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,  # noqa: A002 (torch's name)
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        if input.is_cuda:
            wanted = (input, weight, bias, running_mean, running_var, eps, momentum)
            return SyncBatchNorm.apply(*wanted, dist.group.WORLD, self._ranks.shard.world)  # type: ignore[no-any-return]
        return plain.apply(input, weight, bias, running_mean, running_var, momentum, eps, self._ranks)  # type: ignore[no-any-return]


class plain(torch.autograd.Function):  # noqa: N801 (used as a function)
    """Batch norm over the images of all ranks: two exchanges of a few numbers per channel, one in each direction."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        """x: [N, C, ...] of this rank; running statistics are updated in place, with the variance of all ranks."""
        axes = [0, *range(2, x.ndim)]
        var, mean = torch.var_mean(x, axes, correction=0)
        n = x.numel() // x.shape[1]
        means, squares, counts = ranks.every(torch.stack([mean, var * n, torch.full_like(mean, n)])).unbind(1)
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        # Chan et al. 1979: without the cancellation of E[x^2] - E[x]^2.
        square = (squares + counts * (means - mean) ** 2).sum(0)
        var = square / total
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(square / (total - 1), momentum)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), total)
        ctx.ranks = ranks
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The gradients of weight and bias are this rank's part; they are summed with all others."""
        x, weight, mean, scale, total = ctx.saved_tensors
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        normal = (x - mean.view(shape)) * scale.view(shape)
        d_bias, d_weight = dy.sum(axes), (dy * normal).sum(axes)
        a, b = ctx.ranks.sum(torch.stack([d_bias, d_weight])) / total
        dx = (dy - a.view(shape) - normal * b.view(shape)) * scale.view(shape)
        if weight is None:
            return (dx, *[None] * 7)
        return dx * weight.view(shape), d_weight, d_bias, *[None] * 5
