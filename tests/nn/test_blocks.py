from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phiscale.errors import SpecError
from phiscale.families import get_spec
from phiscale.nn.blocks import BasicBlock, Bottleneck, DepthwiseSeparable, MBConv, make_block
from phiscale.nn.layers import Conv2dSame, DropPath, LayerOptions, SqueezeExcite

Make = Callable[..., nn.Module]
BLOCKS: dict[str, Make] = {
    "mbconv": MBConv,
    "separable": DepthwiseSeparable,
    "bottleneck": Bottleneck,
    "basic": BasicBlock,
}


def randomise(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return block.eval()


def norm(x: Tensor, layer: Any) -> Tensor:
    bn = layer.norm
    return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, False, 0.0, bn.eps)


# ---------------------------------------------------------------------------- every block alone


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_works_alone(kind: str, kernel_size: int, stride: int, padding: Any) -> None:
    block = BLOCKS[kind](
        8, 12, kernel_size=kernel_size, stride=stride, options=LayerOptions(padding=padding, conv_bias=True)
    )
    x = torch.randn(2, 8, 19, 14, requires_grad=True)
    y = block(x)
    assert y.shape == (2, 12, -(-19 // stride), -(-14 // stride))
    y.square().mean().backward()
    assert x.grad is not None
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("activation", ["swish", "relu", "relu6", "hard_swish"])
@pytest.mark.parametrize("kind", BLOCKS)
def test_gradient_mode_changes_no_value(kind: str, activation: Any) -> None:
    # Without gradients activations overwrite their input: nobody else may still need it.
    block = randomise(BLOCKS[kind](8, 8, options=LayerOptions(activation=activation)))
    x = torch.randn(2, 8, 9, 9)
    kept = x.clone()
    with_gradient = block(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), with_gradient, rtol=0, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), with_gradient, rtol=0, atol=1e-6)
    assert torch.equal(x, kept)


# ---------------------------------------------------------------------------------------- MBConv


@pytest.mark.parametrize(("ratio", "has_expansion"), [(1, False), (2, True), (6, True)])
def test_mbconv_expands_only_when_the_ratio_is_not_one(ratio: int, has_expansion: bool) -> None:
    block = MBConv(8, 8, expand_ratio=ratio)
    assert isinstance(block.expand, nn.Identity) != has_expansion
    assert block.depthwise.conv.weight.shape == (8 * ratio, 1, 3, 3)


@pytest.mark.parametrize(
    ("channels", "stride", "has_skip"), [(8, 1, True), (8, 2, False), (16, 1, False), (16, 2, False)]
)
def test_mbconv_skips_only_at_stride_one_with_equal_channels(
    channels: int, stride: int, has_skip: bool
) -> None:
    block = MBConv(8, channels, stride=stride)
    assert block.has_skip == has_skip
    # With a projection of zero only the skip is left.
    nn.init.zeros_(block.project.norm.weight)
    x = torch.randn(2, 8, 6, 6)
    y = block.eval()(x)
    assert torch.equal(y, x) if has_skip else not y.any()


def test_mbconv_without_a_skip_drops_nothing() -> None:
    torch.manual_seed(0)
    with_skip: Any = randomise(MBConv(8, 8, drop_path=0.9))
    without: Any = MBConv(8, 8, skip=False, drop_path=0.9)
    assert not without.has_skip
    without.load_state_dict(with_skip.state_dict())
    x = torch.randn(4, 8, 6, 6)
    # In eval mode the branch alone; in train mode the same branch for every sample, none dropped.
    torch.testing.assert_close(without.eval()(x), with_skip.eval()(x) - x, rtol=1e-5, atol=1e-5)
    assert without.train()(x).flatten(1).any(1).all()


def test_mbconv_squeezes_a_share_of_its_input_channels() -> None:
    block = MBConv(16, 16, expand_ratio=6, se_ratio=0.25)
    assert isinstance(block.se, SqueezeExcite)
    assert block.se.reduce.weight.shape == (4, 96, 1, 1)
    tiny = MBConv(2, 2, se_ratio=0.1)
    assert isinstance(tiny.se, SqueezeExcite)
    assert tiny.se.reduce.out_channels == 1
    assert isinstance(MBConv(16, 16, se_ratio=0.0).se, nn.Identity)


def test_mbconv_by_its_parts() -> None:
    block: Any = randomise(MBConv(8, 8, kernel_size=5, expand_ratio=3, se_ratio=0.5))
    x = torch.randn(2, 8, 10, 11)
    h = F.silu(norm(F.conv2d(x, block.expand.conv.weight), block.expand))
    h = F.silu(norm(F.conv2d(h, block.depthwise.conv.weight, padding=2, groups=24), block.depthwise))
    gate = F.silu(F.conv2d(h.mean((2, 3), keepdim=True), block.se.reduce.weight, block.se.reduce.bias))
    h = h * torch.sigmoid(F.conv2d(gate, block.se.expand.weight, block.se.expand.bias))
    # The projection is linear: norm, and no activation.
    h = norm(F.conv2d(h, block.project.conv.weight), block.project)
    torch.testing.assert_close(block(x), x + h, rtol=1e-5, atol=1e-5)


def test_mbconv_drops_its_branch_per_sample() -> None:
    torch.manual_seed(0)
    block = MBConv(4, 4, drop_path=0.5)
    x = torch.randn(200, 4, 3, 3)
    y = block(x)
    untouched = (y == x).flatten(1).all(1)
    assert 60 < int(untouched.sum()) < 140
    assert not (block.eval()(x) == x).flatten(1).all(1).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expand_ratio": 0}, "expand_ratio must be at least 1, got 0"),
        ({"se_ratio": 1.1}, r"se_ratio must lie in \[0, 1\], got 1.1"),
        ({"se_ratio": -0.1}, r"se_ratio must lie in \[0, 1\]"),
        ({"drop_path": 1.0}, r"drop path rate must lie in \[0, 1\)"),
        ({"kernel_size": 0}, "kernel_size must be one or two integers"),
    ],
)
def test_mbconv_checks_its_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MBConv(8, 8, **arguments)


# --------------------------------------------------------------------------------- other blocks


def test_depthwise_separable_activates_twice_and_never_skips() -> None:
    block: Any = randomise(DepthwiseSeparable(8, 8, options=LayerOptions(activation="relu6")))
    x = torch.randn(2, 8, 9, 9)
    h = F.relu6(norm(F.conv2d(x, block.depthwise.conv.weight, padding=1, groups=8), block.depthwise))
    h = F.relu6(norm(F.conv2d(h, block.pointwise.conv.weight), block.pointwise))
    torch.testing.assert_close(block(x), h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_residual_blocks_project_only_where_they_must(kind: str) -> None:
    same: Any = BLOCKS[kind](8, 8)
    assert isinstance(same.shortcut, nn.Identity)
    for arguments in ({"out_channels": 12}, {"out_channels": 8, "stride": 2}):
        other: Any = BLOCKS[kind](8, **arguments)
        assert other.shortcut.conv.kernel_size == (1, 1)


def test_bottleneck_has_its_stride_in_the_spatial_convolution() -> None:
    block = Bottleneck(16, 32, stride=2)
    strides = [block.reduce.conv.stride, block.conv.conv.stride, block.expand.conv.stride]
    assert strides == [(1, 1), (2, 2), (1, 1)]
    assert block.conv.conv.weight.shape == (8, 8, 3, 3)
    with pytest.raises(SpecError, match="out_channels of a bottleneck must be a multiple of 4, got 30"):
        Bottleneck(16, 30)


@pytest.mark.parametrize("kind", ["bottleneck", "basic"])
def test_residual_blocks_activate_the_sum(kind: str) -> None:
    block: Any = randomise(BLOCKS[kind](8, 8, options=LayerOptions(activation="relu")))
    last = block.expand if kind == "bottleneck" else block.conv2
    nn.init.zeros_(last.norm.weight)
    nn.init.zeros_(last.norm.bias)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x.relu(), rtol=0, atol=0)


# --------------------------------------------------------------------------------- from a spec


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v1", "mobilenet_v2", "resnet18", "resnet50"])
def test_make_block_follows_the_spec(name: str) -> None:
    spec = get_spec(name)
    options = LayerOptions.of(spec)
    with torch.device("meta"):
        for block in spec.blocks():
            built: Any = make_block(block, options)
            y = built(torch.empty(1, block.in_channels, 16, 16))
            assert y.shape == (1, block.out_channels, 16 // block.stride, 16 // block.stride)
            if hasattr(built, "has_skip"):
                assert built.has_skip == block.has_skip
            rates = [module.rate for module in built.modules() if isinstance(module, DropPath)]
            assert all(rate == block.drop_path for rate in rates)
            is_same = any(isinstance(module, Conv2dSame) for module in built.modules())
            assert is_same == (spec.padding == "same")
