from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_network import TINY, norms, tiny
from torch import nn

from phiscale.errors import ShapeError, SpecError
from phiscale.families import get_spec, list_specs
from phiscale.nn.layers import Conv2dSame, DropPath, MaxPool2dSame
from phiscale.nn.network import build_network, init_weights

B0 = get_spec("efficientnet_b0")


# --------------------------------------------------------------------------------- forward pass


@pytest.mark.parametrize("name", [name for name in list_specs() if not name.endswith(("b8", "l2"))])
def test_shapes_of_every_network(name: str) -> None:
    with torch.device("meta"):
        net = build_network(name, num_classes=7)
        x = torch.empty(2, 3, 97, 131)
        features = net.features(x)
        last = net.forward_features(x)
        logits = net(x)
    spec, stride = net.spec, net.spec.stem.stride * (2 if net.spec.stem.max_pool else 1)
    assert len(features) == len(spec.stages)
    for feature, stage in zip(features, spec.stages, strict=True):
        stride *= stage.stride
        assert feature.shape == (2, stage.out_channels, math.ceil(97 / stride), math.ceil(131 / stride))
    assert last.shape == (2, net.num_features, *features[-1].shape[2:])
    assert logits.shape == (2, 7)


def test_a_new_network_is_in_train_mode() -> None:
    net = tiny()
    assert all(module.training for module in net.modules())


def test_the_parts_make_the_whole() -> None:
    net = tiny().eval()
    x = torch.randn(2, 3, 32, 48)
    last = net.forward_features(x)
    torch.testing.assert_close(net.forward_head(last), net(x), rtol=0, atol=0)
    torch.testing.assert_close(net.head(net.features(x)[-1]), last, rtol=0, atol=0)
    pooled = net.forward_head(last, pre_logits=True)
    torch.testing.assert_close(pooled, last.mean((2, 3)), rtol=0, atol=0)
    torch.testing.assert_close(F.linear(pooled, net.classifier.weight, net.classifier.bias), net(x))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (3, 32, 32),
            "expected a batch of shape (N, 3, H, W), got (3, 32, 32); a single image needs x.unsqueeze(0)",
        ),
        ((3,), "expected a batch of shape (N, 3, H, W), got (3,)"),
        (
            (1, 32, 32, 3),
            "expected 3 channels at dimension 1, got a batch of shape (1, 32, 32, 3); "
            "build with in_channels=32, or permute NHWC to NCHW",
        ),
        ((1, 1, 32, 32), "expected 3 channels at dimension 1, got a batch of shape (1, 1, 32, 32)"),
        ((1, 3, 7, 32), "an input of 7×32 px is too small: tiny divides each side by 8; give at least 8×8"),
        ((1, 3, 32, 7), "an input of 32×7 px is too small"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "features", "forward_features"])
def test_a_wrong_input_says_what_was_expected(method: str, shape: tuple[int, ...], message: str) -> None:
    net = tiny()
    with pytest.raises(ShapeError, match="^" + re.escape(message)):
        getattr(net, method)(torch.zeros(shape))
    # Nothing was counted by the norms before the check.
    assert all(int(norm.num_batches_tracked or 0) == 0 for norm in norms(net))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_no_input(dtype: torch.dtype) -> None:
    with pytest.raises(
        ShapeError, match=f"expected a floating-point batch, got {dtype}; normalise the images"
    ):
        tiny()(torch.zeros(1, 3, 32, 32, dtype=dtype))


@pytest.mark.parametrize("name", ["efficientnet_b0", "resnet18"])
def test_the_smallest_input_works(name: str) -> None:
    net = build_network(name).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    assert net.features(torch.randn(1, 3, 32, 32))[-1].shape[2:] == (1, 1)


@pytest.mark.parametrize("activation", ["swish", "relu", "relu6", "hard_swish"])
def test_every_mode_of_gradients_gives_the_same_values(activation: Any) -> None:
    net = tiny(activation=activation).eval()
    x = torch.randn(2, 3, 33, 40)
    kept = x.clone()
    expected = [f.detach().clone() for f in net.features(x)]
    logits = net(x).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            features = net.features(x)
            torch.testing.assert_close(net(x), logits, rtol=0, atol=1e-6)
        # Compared at the end: a later layer that overwrote an earlier feature would be seen.
        for feature, wanted in zip(features, expected, strict=True):
            torch.testing.assert_close(feature.clone(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(x, kept)


def test_memory_layouts_give_the_same_values() -> None:
    net = tiny().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        y = net(x)
        torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last)), y)
        torch.testing.assert_close(net.to(memory_format=torch.contiguous_format)(x), y)


def test_a_sample_does_not_depend_on_its_neighbours_in_eval_mode() -> None:
    net = tiny().eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-5, atol=1e-6)


# -------------------------------------------------------------------------------- initialisation


def test_convolutions_start_as_in_the_authors_code() -> None:
    torch.manual_seed(0)
    net = build_network("efficientnet_b0")
    seen = {"dense": 0, "depthwise": 0}
    for module in net.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        kind = "depthwise" if module.groups > 1 else "dense"
        area = math.prod(module.kernel_size)
        # TensorFlow counts a depthwise kernel as having one output channel.
        expected = math.sqrt(2 / (area * (1 if kind == "depthwise" else module.out_channels)))
        count = module.weight.numel()
        # Standard errors of a normal's deviation and mean; five of them.
        assert float(module.weight.detach().std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
        assert abs(float(module.weight.detach().mean())) < 5 * expected / math.sqrt(count)
        if module.bias is not None:
            assert not module.bias.any()
        seen[kind] += 1
    assert seen == {"dense": 1 + 15 + 16 + 32 + 1, "depthwise": 16}


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_the_classifier_starts_as_in_the_authors_code(num_classes: int) -> None:
    torch.manual_seed(0)
    net = build_network("efficientnet_b0", num_classes=num_classes)
    assert isinstance(net.classifier, nn.Linear)
    weight, bound = net.classifier.weight.detach(), 1 / math.sqrt(num_classes)
    assert float(weight.abs().max()) <= bound
    assert float(weight.abs().max()) == pytest.approx(bound, rel=0.01)
    # A uniform distribution within ±bound.
    assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not net.classifier.bias.any()


def test_norms_start_as_the_identity() -> None:
    for norm in norms(build_network("efficientnet_b0")):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
        assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_the_seed_decides() -> None:
    one, same, other = tiny(1), tiny(1), tiny(2)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == bool((a == a.flatten()[0]).all())  # ones and zeros of norms and biases


def test_init_weights_works_on_any_module() -> None:
    linear = nn.Linear(4, 2, bias=False)
    nn.init.constant_(linear.weight, 9.0)
    nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), linear).apply(init_weights)
    assert float(linear.weight.detach().abs().max()) <= 1 / math.sqrt(2)


# ------------------------------------------------------------------------------------- arguments


def test_drop_path_rates_rise_as_in_the_authors_code() -> None:
    net = build_network("efficientnet_b0")
    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])


def test_every_argument_takes_effect() -> None:
    net = build_network(
        "efficientnet_b0",
        num_classes=11,
        in_channels=4,
        image_size=(64, 96),
        padding="symmetric",
        dropout=0.35,
        drop_path=0.8,
        activation="hard_swish",
        bias=True,
        norm_eps=1e-4,
        norm_momentum=0.25,
    )
    assert net.spec == replace(
        B0,
        num_classes=11,
        in_channels=4,
        image_size=(64, 96),
        padding="symmetric",
        dropout=0.35,
        drop_path=0.8,
        activation="hard_swish",
        conv_bias=True,
        norm_eps=1e-4,
        norm_momentum=0.25,
    )
    assert net.eval()(torch.randn(1, 4, 64, 96)).shape == (1, 11)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.bias is not None for conv in convolutions)
    assert not any(isinstance(conv, Conv2dSame) for conv in convolutions)
    assert {(norm.eps, norm.momentum) for norm in norms(net)} == {(1e-4, 0.25)}
    assert net.dropout.p == 0.35
    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.8 * i / 16 for i in range(16)])
    kinds = {type(module).__name__ for module in net.modules()}
    assert "HardSwish" in kinds
    assert "Swish" not in kinds


def test_without_arguments_the_spec_is_kept(tmp_path: Path) -> None:
    assert build_network("efficientnet_b0").spec is B0
    path = tmp_path / "tiny.json"
    path.write_text(TINY.to_json(), encoding="utf-8")
    assert build_network(path).spec == build_network(str(path)).spec == build_network(TINY).spec == TINY
    assert build_network(TINY, image_size=48).spec.image_size == (48, 48)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, "num_classes must be an integer of at least 0"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1"),
        ({"image_size": 0}, "image_size must be one or two positive integers"),
        ({"padding": "valid"}, "padding must be one of same, symmetric"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"drop_path": -0.1}, r"drop_path must lie in \[0, 1\)"),
        ({"activation": "gelu"}, "activation must be one of swish"),
        ({"norm_eps": 0.0}, "norm_eps must lie between 0 and 1"),
        ({"norm_momentum": 2.0}, r"norm_momentum must lie in \(0, 1\]"),
        ({"spec": "efficientnet_b99"}, "no network is named 'efficientnet_b99'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        build_network(**{"spec": TINY, **arguments})


def test_padding_decides_the_pool_too() -> None:
    assert isinstance(build_network("resnet18").pool, nn.MaxPool2d)
    assert isinstance(build_network("resnet18", padding="same").pool, MaxPool2dSame)
    assert isinstance(build_network(TINY).pool, nn.Identity)


def test_dropout_works_in_train_mode_only() -> None:
    net = tiny(dropout=0.9, drop_path=0.0, num_classes=0)
    last = torch.rand(64, 32, 2, 2) + 1.0
    dropped = (net.forward_head(last) == 0).float().mean()
    assert float(dropped.detach()) == pytest.approx(0.9, abs=0.04)
    assert net.eval().forward_head(last).all()


# ------------------------------------------------------------------------------------ classifier


def test_reset_classifier() -> None:
    net = tiny()
    old = net.classifier.weight
    kept = {name: p.clone() for name, p in net.named_parameters() if not name.startswith("classifier")}
    net.reset_classifier(9)
    assert net.spec == replace(TINY, num_classes=9)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 9)
    assert net.classifier.weight is not old
    for name, parameter in net.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(parameter, kept[name])
    net.reset_classifier(0)
    assert isinstance(net.classifier, nn.Identity)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, net.num_features)
    net.reset_classifier(4)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_reset_classifier_keeps_type_and_mode() -> None:
    net = tiny().double().eval()
    net.reset_classifier(3)
    assert net.classifier.weight.dtype == torch.double
    assert not any(module.training for module in net.modules())
    assert net(torch.randn(1, 3, 32, 32, dtype=torch.double)).shape == (1, 3)


@pytest.mark.parametrize("num_classes", [-1, 2.5, True, None])
def test_reset_classifier_checks_its_argument(num_classes: Any) -> None:
    net = tiny()
    with pytest.raises(SpecError, match="num_classes must be an integer of at least 0"):
        net.reset_classifier(num_classes)
    assert net.spec == TINY
    assert isinstance(net.classifier, nn.Linear)
    assert net.classifier.out_features == 5
