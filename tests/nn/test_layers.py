from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from phiscale.errors import ShapeError, SpecError
from phiscale.nn.layers import (
    ACTIVATIONS,
    Conv2dSame,
    ConvNormAct,
    DropPath,
    HardSwish,
    LayerOptions,
    MaxPool2dSame,
    ReLU6,
    SqueezeExcite,
    Swish,
    make_activation,
)

# ---------------------------------------------------------------------------------- Conv2dSame


def tensorflow_same(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int, int]:
    """(output size, padding before, padding after) in the words of TensorFlow's documentation."""
    effective = dilation * (kernel - 1) + 1
    output = math.ceil(size / stride)
    remainder = size % stride
    total = max(effective - (stride if remainder == 0 else remainder), 0)
    return output, total // 2, total - total // 2


def conv_by_hand(x: Tensor, conv: Conv2dSame) -> Tensor:
    """A convolution as the sum of shifted, strided copies of the padded input, one per kernel position."""
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    out_h, top, bottom = tensorflow_same(x.shape[2], kh, sh, dh)
    out_w, left, right = tensorflow_same(x.shape[3], kw, sw, dw)
    padded = torch.zeros(*x.shape[:2], x.shape[2] + top + bottom, x.shape[3] + left + right, dtype=x.dtype)
    padded[:, :, top : top + x.shape[2], left : left + x.shape[3]] = x
    output = torch.zeros(x.shape[0], conv.out_channels, out_h, out_w, dtype=x.dtype)
    per_group_in, per_group_out = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (out_h - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (out_w - 1) * sw + 1, sw)
            for group in range(conv.groups):
                ins = slice(group * per_group_in, (group + 1) * per_group_in)
                outs = slice(group * per_group_out, (group + 1) * per_group_out)
                window = padded[:, ins, rows, columns]
                output[:, outs] += torch.einsum("oc,nchw->nohw", conv.weight[outs, :, i, j], window)
    return output if conv.bias is None else output + conv.bias[:, None, None]


PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))
KERNELS = st.tuples(st.integers(1, 7), st.integers(1, 7))
SIZES = st.tuples(st.integers(1, 23), st.integers(1, 23))


@settings(max_examples=150)
@given(KERNELS, PAIRS, PAIRS, SIZES, st.sampled_from([1, 2, 4]), st.booleans())
def test_conv_same_equals_tensorflows_rule(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    size: tuple[int, int],
    groups: int,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    conv = Conv2dSame(4, 8, kernel, stride, dilation, groups, bias, input_size=size).double()
    x = torch.randn(2, 4, *size, dtype=torch.double)
    with torch.no_grad():
        output, expected = conv(x), conv_by_hand(x, conv)
    assert conv.output_shape == tuple(output.shape[1:]) == tuple(expected.shape[1:])
    assert conv.input_shape == (4, *size)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pads"),
    [(224, 3, 2, (0, 1)), (225, 3, 2, (1, 1)), (224, 5, 2, (1, 2)), (7, 3, 1, (1, 1)), (8, 1, 2, (0, 0))],
)
def test_the_odd_pixel_goes_last(size: int, kernel: int, stride: int, pads: tuple[int, int]) -> None:
    assert tensorflow_same(size, kernel, stride, 1)[1:] == pads
    conv = Conv2dSame(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, size, size)
    padded = F.pad(x, (*pads, *pads))
    torch.testing.assert_close(conv(x), F.conv2d(padded, conv.weight, stride=stride))


def test_conv_same_differs_from_symmetric_padding_at_stride_two() -> None:
    conv = Conv2dSame(3, 4, 3, 2, bias=False)
    x = torch.randn(1, 3, 32, 32)
    symmetric = F.conv2d(x, conv.weight, stride=2, padding=1)
    assert symmetric.shape == conv(x).shape
    assert not torch.allclose(symmetric, conv(x), atol=1e-2)


def test_conv_same_without_a_fixed_size_has_no_shapes() -> None:
    conv = Conv2dSame(3, 4, 3)
    assert conv.input_shape is conv.output_shape is None
    assert conv.input_size is None
    assert "padding='same'" in repr(conv)
    assert "input_size=(5, 6)" in repr(Conv2dSame(3, 4, 3, input_size=(5, 6)))


def test_conv_same_holds_the_size_that_was_fixed() -> None:
    conv = Conv2dSame(3, 4, 3, 2, input_size=(33, 64))
    assert conv(torch.zeros(2, 3, 33, 64)).shape == (2, 4, 17, 32)
    with pytest.raises(
        ShapeError, match=re.escape("expected an input of 33×64 px as fixed by input_size, got 64×33")
    ):
        conv(torch.zeros(2, 3, 64, 33))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3), (8,)])
def test_conv_same_names_the_shape_it_wants(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"expected an input of shape (N, 3, H, W), got {shape}")):
        Conv2dSame(3, 4, 3)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be one or two integers of at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be one or two integers"),
        ({"kernel_size": 3.0}, "kernel_size must be one or two integers"),
        ({"kernel_size": "3"}, "kernel_size must be one or two integers"),
        ({"stride": -1}, "stride must be one or two integers"),
        ({"stride": True}, "stride must be one or two integers"),
        ({"dilation": (0, 1)}, "dilation must be one or two integers"),
        ({"groups": 2}, "groups=2 must divide in_channels=3 and out_channels=4"),
        ({"groups": 0}, "groups must be an integer of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1, got 0"),
        ({"out_channels": -4}, "out_channels must be an integer of at least 1, got -4"),
        ({"input_size": 0}, "input_size must be one or two positive integers"),
    ],
)
def test_conv_same_checks_its_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        Conv2dSame(**{"in_channels": 3, "out_channels": 4, "kernel_size": 3, **arguments})


@given(st.integers(1, 5), st.integers(1, 4), SIZES)
def test_max_pool_same_ignores_its_padding(kernel: int, stride: int, size: tuple[int, int]) -> None:
    x = -1.0 - torch.rand(1, 2, *size)  # zeros from padding would be seen as maxima
    output = MaxPool2dSame(kernel, stride)(x)
    (out_h, top, _), (out_w, left, _) = (tensorflow_same(side, kernel, stride, 1) for side in size)
    assert output.shape == (1, 2, out_h, out_w)
    for row in range(out_h):
        for column in range(out_w):
            y, z = row * stride - top, column * stride - left
            window = x[0, :, max(y, 0) : y + kernel, max(z, 0) : z + kernel]
            torch.testing.assert_close(output[0, :, row, column], window.amax((1, 2)), rtol=0, atol=0)


# --------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("beta", [1.0, 0.5, 1.702, 0.0, -1.0])
@pytest.mark.parametrize("learnable", [False, True])
def test_swish_and_its_gradient(beta: float, learnable: bool) -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.double, requires_grad=True)
    swish = Swish(beta, learnable=learnable).double()
    y = swish(x)
    sigmoid = 1 / (1 + torch.exp(-beta * x))
    torch.testing.assert_close(y, x * sigmoid)
    y.sum().backward()
    torch.testing.assert_close(x.grad, sigmoid + beta * x * sigmoid * (1 - sigmoid))
    if learnable:
        assert isinstance(swish.beta, nn.Parameter)
        torch.testing.assert_close(swish.beta.grad, (x**2 * sigmoid * (1 - sigmoid)).sum())
    assert len(list(swish.parameters())) == int(learnable)


def test_swish_of_one_is_silu() -> None:
    x = torch.randn(100)
    torch.testing.assert_close(Swish()(x), F.silu(x), rtol=0, atol=0)


def test_a_learnable_beta_is_trained_and_stored() -> None:
    swish = Swish(0.5, learnable=True)
    target = F.silu(torch.linspace(-3, 3, 50))
    optimizer = torch.optim.Adam(swish.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(swish(torch.linspace(-3, 3, 50)), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = float(swish.state_dict()["beta"])
    assert learned == pytest.approx(1.0, abs=0.02)
    assert repr(swish) == f"Swish(beta={learned:g}, learnable=True)"
    assert repr(Swish()) == "Swish(beta=1, learnable=False)"


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (HardSwish(), lambda x: x * (x + 3).clamp(0, 6) / 6),
        (ReLU6(), lambda x: x.clamp(0, 6)),
        (make_activation("relu"), lambda x: x.clamp(min=0)),
        (make_activation("swish"), lambda x: x * torch.sigmoid(x)),
    ],
    ids=["hard_swish", "relu6", "relu", "swish"],
)
def test_activations_by_their_formula(module: nn.Module, expected: Any) -> None:
    x = torch.linspace(-8, 8, 65)
    torch.testing.assert_close(module(x), expected(x))


@pytest.mark.parametrize("name", ["swish", "relu6", "hard_swish"])
def test_activations_overwrite_only_where_no_gradient_is_recorded(name: Any) -> None:
    activation = make_activation(name, inplace=True)
    x = torch.linspace(-4, 4, 9)
    recorded = x.clone().requires_grad_()
    activation(recorded * 1.0).sum().backward()
    assert recorded.grad is not None
    kept = x.clone()
    activation(kept)
    torch.testing.assert_close(kept, x, rtol=0, atol=0)
    with torch.no_grad():
        activation(kept)
    assert not torch.equal(kept, x)
    torch.testing.assert_close(kept, make_activation(name)(x))


def test_an_unknown_activation() -> None:
    with pytest.raises(
        SpecError, match="activation must be one of swish, relu, relu6, hard_swish; got 'gelu'"
    ):
        make_activation("gelu")  # type: ignore[arg-type]
    assert list(ACTIVATIONS) == ["swish", "relu", "relu6", "hard_swish"]


# ------------------------------------------------------------------------------------ DropPath


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.1, math.nan])
def test_drop_path_rate_is_checked(rate: float) -> None:
    with pytest.raises(SpecError, match=re.escape(f"drop path rate must lie in [0, 1), got {rate!r}")):
        DropPath(rate)


def test_drop_path_drops_whole_samples_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    rate, samples = 0.3, 20_000
    x = torch.rand(1, 3, 2, 2).expand(samples, -1, -1, -1) + 0.5
    y = DropPath(rate)(x)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.any(1), dropped.all(1))
    kept = ~dropped.all(1)
    torch.testing.assert_close(y[kept], x[kept] / (1 - rate))
    # The standard error of the share is 0.0032; four of them.
    assert float(dropped.all(1).float().mean()) == pytest.approx(rate, abs=0.013)
    torch.testing.assert_close(y.mean(0), x.mean(0), rtol=0.03, atol=0)


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 3, 2), (6, 3, 2, 2, 2)])
def test_drop_path_takes_any_rank(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    y = (
        DropPath(0.5)(torch.ones(shape)).flatten(1)
        if len(shape) > 1
        else DropPath(0.5)(torch.ones(shape))[:, None]
    )
    assert all(len(set(sample.tolist())) == 1 and sample[0] in (0.0, 2.0) for sample in y)


def test_drop_path_is_the_identity_in_eval_mode_and_at_rate_zero() -> None:
    x = torch.randn(8, 4)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert repr(DropPath(0.2)) == "DropPath(rate=0.2)"


# -------------------------------------------------------------------- ConvNormAct, SqueezeExcite


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_norm_act_is_its_three_parts(padding: Any, bias: bool) -> None:
    options = LayerOptions(
        activation="hard_swish", padding=padding, norm_eps=1e-2, norm_momentum=0.3, conv_bias=bias
    )
    layer = ConvNormAct(3, 8, 5, stride=2, options=options)
    assert (layer.norm.eps, layer.norm.momentum) == (1e-2, 0.3)
    assert (layer.conv.bias is not None) == bias
    x = torch.randn(4, 3, 17, 12)
    y = layer(x)
    convolved = layer.conv(x)
    mean, variance = convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), unbiased=False)
    normed = (convolved - mean[:, None, None]) / torch.sqrt(variance + 1e-2)[:, None, None]
    torch.testing.assert_close(y, F.hardswish(normed), rtol=1e-4, atol=1e-5)
    assert y.shape == (4, 8, 9, 6)
    # PyTorch's sense of momentum: the weight of the new batch.
    torch.testing.assert_close(layer.norm.running_mean, 0.3 * mean)


def test_conv_norm_act_without_activation() -> None:
    layer = ConvNormAct(3, 4, 1, activate=False).eval()
    assert float(layer(torch.randn(2, 3, 8, 8)).detach().min()) < -0.5
    assert isinstance(layer.conv, Conv2dSame)
    assert (layer.norm.eps, layer.norm.momentum) == (1e-3, 0.01)


def test_conv_norm_act_depthwise() -> None:
    layer = ConvNormAct(6, 6, 3, groups=6)
    assert layer.conv.weight.shape == (6, 1, 3, 3)


@pytest.mark.parametrize("activation", ["swish", "relu6"])
def test_squeeze_excite_by_its_formula(activation: Any) -> None:
    layer = SqueezeExcite(8, 3, activation=activation)
    assert layer.reduce.bias is not None
    assert layer.expand.bias is not None
    x = torch.randn(2, 8, 5, 7)
    squeezed = x.mean((2, 3)) @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias
    squeezed = F.silu(squeezed) if activation == "swish" else F.relu6(squeezed)
    gate = torch.sigmoid(squeezed @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


def test_squeeze_excite_checks_its_channels() -> None:
    with pytest.raises(SpecError, match="channels and squeeze_channels must be at least 1, got 8 and 0"):
        SqueezeExcite(8, 0)
