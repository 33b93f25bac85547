"""Batch norm over a batch that several processes share, on CPUs (gloo) as on GPUs (NCCL).

`torch.nn.SyncBatchNorm` does the same, on GPUs only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SyncBatchNorm2d", "synchronized_norms"]

PER_CHANNEL = (0, 2, 3)


class _Normalize(torch.autograd.Function):
    """Normalises by mean and variance over the batches of all processes. One collective each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns (N, C, H, W) normalised, mean (C,), variance (C,) and the number of values, a scalar."""
        mean, variance, count = _global_moments(_precise(x))
        inverse = torch.rsqrt(variance + eps)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, inverse, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """The gradient of batch norm, its two sums over the values of all processes."""
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad = _precise(grads[0])
        centred = _precise(x) - _spread(mean)
        bias_grad = grad.sum(PER_CHANNEL)
        weight_grad = (grad * centred).sum(PER_CHANNEL) * inverse
        sums = torch.stack((bias_grad, weight_grad))
        dist.all_reduce(sums)
        grad_mean, slope = sums / count
        x_grad = (grad - _spread(grad_mean) - centred * _spread(inverse * slope)) * _spread(inverse * weight)
        # Of weight and bias, that of the own values: the training loop takes its mean over processes.
        return x_grad.to(x.dtype), weight_grad, bias_grad, None


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that in train mode takes its statistics over the batches of all processes.

    The batches may differ in size. Parameters, buffers and their names are those of `nn.BatchNorm2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x: (N, C, H, W), N > 0. Returns the same shape."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, count)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # Without a momentum it is the average of all batches, as in torch.
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


@contextmanager
def synchronized_norms(net: nn.Module) -> Iterator[None]:
    """Have every `nn.BatchNorm2d` of a network be a `SyncBatchNorm2d` until the end of the block.

    Parameters and buffers stay the same objects, so an optimizer that has them keeps working.
    """
    _replace_norms(net, nn.BatchNorm2d, SyncBatchNorm2d)
    try:
        yield
    finally:
        _replace_norms(net, SyncBatchNorm2d, nn.BatchNorm2d)


def _replace_norms(net: nn.Module, old: type[nn.BatchNorm2d], new: type[nn.BatchNorm2d]) -> None:
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is old:
                setattr(parent, name, _remade(child, new))


def _remade(norm: nn.BatchNorm2d, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    new = kind(norm.num_features, eps=norm.eps, momentum=norm.momentum, device="meta")
    for name, parameter in norm.named_parameters():
        new.register_parameter(name, parameter)
    for name, buffer in norm.named_buffers():
        new.register_buffer(name, buffer)
    return new.train(norm.training)


def _global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of values per channel, over all processes.

    From the moments of each process: sums of squares would lose digits where the mean is large.
    """
    variance, mean = torch.var_mean(x, PER_CHANNEL, correction=0)
    own = torch.cat((mean, variance, mean.new_full((1,), x.numel() // x.shape[1])))
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    table = torch.stack(every)
    means, variances, counts = table[:, : len(mean)], table[:, len(mean) : -1], table[:, -1:]
    count = counts.sum()
    share = counts / count
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean) ** 2)).sum(0)
    return mean, variance, count


def _precise(x: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return x if x.dtype is torch.float64 else x.float()


def _spread(values: Tensor) -> Tensor:
    """(C,) as (1, C, 1, 1)."""
    return values[None, :, None, None]
