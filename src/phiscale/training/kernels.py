"""Forward and backward passes of three layers, written so that a CPU trains them faster and in less memory.

All of them are compositions of torch's own operations, so nothing is compiled, and each equals the plain
layers up to rounding. What they go around was measured on two cores with AVX-512 and bf16 (torch 2.14, one
thread, 16 images of EfficientNet-B0 at 224 px); `docs/log.md` has the figures:

- The gradient for the weights of a depthwise convolution with 5×5 kernels takes up to ten times as long
  as with kernels that are three wide: `depthwise` computes it three columns of the kernel at a time.
- The gradient for the input of a depthwise convolution with stride 2 in bfloat16 takes ten to forty times
  as long as a forward pass: `depthwise` runs a forward pass over the spread-out gradient instead.
- torch keeps the input of the norm, the input of Swish and its output; `norm_swish` keeps the first and the
  last, and computes the one between again.
- Squeeze-excite costs eight passes over the map: `squeeze_excite` needs five, and averages with
  `avg_pool2d`, which takes a quarter of the time that `mean` does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["depthwise", "norm_swish", "squeeze_excite"]

_WIDEST = 3  # columns of a kernel whose gradient is fast


def norm_swish(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch normalisation by the statistics of the batch, then x · sigmoid(x).

    Args:
        x: (N, C, H, W).
        norm: Affine, in train mode; its running statistics are updated.

    Returns:
        The shape and dtype of `x`.
    """
    momentum = norm.momentum
    if norm.track_running_stats:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        if momentum is None:  # the mean of all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    result: Tensor = _NormSwish.apply(
        x, norm.weight, norm.bias, norm.running_mean, norm.running_var, momentum or 0.0, norm.eps
    )
    return result


class _NormSwish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        normed, mean, inv_std = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.save_for_backward(x, weight, bias, mean, inv_std)
        ctx.eps = eps
        return F.silu(normed, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, inv_std = ctx.saved_tensors
        # Normalising with the batch's own statistics as if they were the running ones, which gives what the
        # forward pass had. The epsilon is in `inv_std` already.
        normed = torch.native_batch_norm(x, weight, bias, mean, inv_std**-2, False, 0.0, 0.0)[0]
        grad = torch.ops.aten.silu_backward.grad_input(grad, normed, grad_input=normed)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, None, None, mean, inv_std, True, ctx.eps, list(ctx.needs_input_grad[:3])
        )
        return (*grads, None, None, None, None)


def depthwise(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], pads: tuple[int, int, int, int]
) -> Tensor:
    """A depthwise convolution: as many groups as channels.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, height, width), of the dtype of `x`.
        bias: (C,), or None.
        stride: (vertical, horizontal).
        pads: Zeros to the left, right, top and bottom, as in `torch.nn.functional.pad`.

    Returns:
        (N, C, H', W').
    """
    result: Tensor = _Depthwise.apply(x, weight, stride, pads)
    return result if bias is None else result + bias.view(1, -1, 1, 1)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], pads: tuple[int, int, int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.pads = stride, pads
        return _convolve(x, weight, stride, pads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        for_x = (
            _input_gradient(grad, weight, x.shape, ctx.stride, ctx.pads) if ctx.needs_input_grad[0] else None
        )
        for_weight = (
            _weight_gradient(grad, x, weight, ctx.stride, ctx.pads) if ctx.needs_input_grad[1] else None
        )
        return for_x, for_weight, None, None


def _convolve(x: Tensor, weight: Tensor, stride: tuple[int, int], pads: tuple[int, int, int, int]) -> Tensor:
    left, right, top, bottom = pads
    if left == right and top == bottom:  # without a padded copy
        return F.conv2d(x, weight, None, stride, (top, left), 1, x.shape[1])
    return F.conv2d(F.pad(x, pads), weight, None, stride, 0, 1, x.shape[1])


def _input_gradient(
    grad: Tensor,
    weight: Tensor,
    shape: torch.Size,
    stride: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> Tensor:
    """The gradient, its pixels `stride` apart, convolved with the kernel turned by 180°."""
    kernel, turned = weight.shape[2:], weight.flip(2, 3)
    left, top = kernel[1] - 1 - pads[0], kernel[0] - 1 - pads[2]
    if stride == (1, 1):
        right, bottom = kernel[1] - 1 - pads[1], kernel[0] - 1 - pads[3]
        return _convolve(grad, turned, stride, (left, right, top, bottom))
    size = [length + side - 1 for length, side in zip(shape[2:], kernel, strict=True)]
    spread = grad.new_zeros(shape[0], *size, shape[1]).permute(0, 3, 1, 2)
    rows = slice(top, top + (grad.shape[2] - 1) * stride[0] + 1, stride[0])
    columns = slice(left, left + (grad.shape[3] - 1) * stride[1] + 1, stride[1])
    spread[:, :, rows, columns] = grad
    return _convolve(spread, turned, (1, 1), (0, 0, 0, 0))


def _weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], pads: tuple[int, int, int, int]
) -> Tensor:
    """The gradient for a kernel, some of its columns at a time: a column depends on no other one."""
    if any(pads):
        x = F.pad(x, pads)
    height, width = weight.shape[2:]
    rows = (grad.shape[2] - 1) * stride[0] + height
    result = torch.empty_like(weight)
    wide = min(width, _WIDEST)
    for first in (*range(0, width - wide, wide), width - wide):
        last = first + wide
        columns = slice(first, (grad.shape[3] - 1) * stride[1] + last)
        _, part, _ = torch.ops.aten.convolution_backward(
            grad,
            x[:, :, :rows, columns],
            weight[..., first:last],
            None,
            stride,
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            x.shape[1],
            [False, True, False],
        )
        result[..., first:last] = part
    return result


def squeeze_excite(x: Tensor, reduce: tuple[Tensor, Tensor], expand: tuple[Tensor, Tensor]) -> Tensor:
    """Squeeze-excite: x · sigmoid(E · swish(R · mean(x) + r) + e), the gate in the dtype of R.

    Args:
        x: (N, C, H, W).
        reduce: R: (S, C) and r: (S,).
        expand: E: (C, S) and e: (C,).

    Returns:
        The shape and dtype of `x`.
    """
    result: Tensor = _SqueezeExcite.apply(x, *reduce, *expand)
    return result


class _SqueezeExcite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, reduce: Tensor, reduce_bias: Tensor, expand: Tensor, expand_bias: Tensor
    ) -> Tensor:
        mean = _mean(x).to(reduce.dtype)
        squeezed = torch.addmm(reduce_bias, mean, reduce.t())
        gate = torch.addmm(expand_bias, F.silu(squeezed), expand.t()).sigmoid_()
        ctx.save_for_backward(x, mean, squeezed, gate, reduce, expand)
        return x * _as_map(gate, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, mean, squeezed, gate, reduce, expand = ctx.saved_tensors
        pixels = x.shape[2] * x.shape[3]
        for_gate = _mean(grad * x).to(gate.dtype) * pixels
        for_expand = for_gate * gate * (1 - gate)
        for_squeezed = torch.ops.aten.silu_backward(for_expand @ expand, squeezed)
        for_mean = for_squeezed @ reduce
        for_x = torch.addcmul(_as_map(for_mean / pixels, x), grad, _as_map(gate, x))
        return (
            for_x,
            for_squeezed.t() @ mean,
            for_squeezed.sum(0),
            for_expand.t() @ F.silu(squeezed),
            for_expand.sum(0),
        )


def _mean(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C)."""
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)


def _as_map(values: Tensor, like: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, 1) of the dtype of a map."""
    return values.to(like.dtype)[:, :, None, None]
