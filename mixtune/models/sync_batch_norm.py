"""Synchronised batch norm: batch norms that in training see the images of all processes, as on one device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def convert_to_sync_batch_norm(network: nn.Module) -> nn.Module:
    """Synchronise the network's batch norms, in place. Parameters, buffers and their names stay as they are.

    On a GPU they become torch's SyncBatchNorm, by timm's conversion: torch's own would drop the activations that timm's
    batch norms hold. On a CPU torch's SyncBatchNorm raises, because its kernels are CUDA's alone.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in network.modules()):
        return network
    if next(network.parameters()).device.type != "cpu":
        return convert_sync_batchnorm(network)  # type: ignore[no-any-return]
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            module.__class__ = _CpuSyncBatchNormAct
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            module.__class__ = _CpuSyncBatchNorm
    return network


class _Sum(torch.autograd.Function):
    """Sum over processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


class _CpuSyncBatchNorm(_BatchNorm):
    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[N, C, ...] of this process, normalised by mean and variance of all. N may differ between processes."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        own = torch.cat([x.sum(axes), x.new_tensor([x.numel() / x.shape[1]])])
        *_, count = total = _Sum.apply(own)  # type: ignore[no-untyped-call]
        mean = total[:-1] / count
        centred = x - mean.view(shape)
        squares = _Sum.apply(centred.square().sum(axes))  # type: ignore[no-untyped-call]
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(squares / (count - 1), momentum)
        scale = torch.rsqrt(squares / count + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        output: Tensor = centred * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        return output.to(input.dtype)


class _CpuSyncBatchNormAct(_CpuSyncBatchNorm):
    """With what timm's BatchNormAct2d does after the norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]
