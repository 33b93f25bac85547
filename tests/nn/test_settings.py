"""A network whose settings were changed is the network that is built with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from parity import difference, images, perturb
from tiny_network import norms, tiny

from phiscale.errors import SpecError
from phiscale.families import get_spec
from phiscale.nn.network import Network, build_network
from phiscale.nn.settings import change_settings

SAME: dict[str, Any] = {"padding": "same", "norm_eps": 1e-3, "norm_momentum": 0.01}
SYMMETRIC: dict[str, Any] = {"padding": "symmetric", "norm_eps": 1e-5, "norm_momentum": 0.1}
# Strides divide none of its sides.
SIZE = (75, 90)


def logits(net: Network) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = net(images(2, SIZE))
    return result


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_lite0", "resnet18", "resnet50", "mobilenet_v1"]
)
@pytest.mark.parametrize(("before", "after"), [(SAME, SYMMETRIC), (SYMMETRIC, SAME)])
def test_it_is_the_network_that_is_built_so(name: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    torch.manual_seed(0)
    changed = build_network(name, num_classes=10, **before)
    perturb(changed, [SIZE])
    changed.eval()
    built = build_network(name, num_classes=10, **after).eval()
    built.load_state_dict(changed.state_dict())
    assert difference(logits(changed), logits(built)) > 1e-3

    change_settings(changed, **after)
    assert torch.equal(logits(changed), logits(built))
    assert changed.spec == built.spec == replace(get_spec(name), num_classes=10, **after)
    assert repr(changed) == repr(built)
    # And back.
    change_settings(changed, **before)
    assert repr(changed) == repr(build_network(name, num_classes=10, **before))


def test_training_goes_the_same_way() -> None:
    """Momentum counts in train mode only, where drop path must be off for a comparison."""
    changed, built = tiny(drop_path=0.0, dropout=0.0), tiny(drop_path=0.0, dropout=0.0, **SYMMETRIC)
    change_settings(changed, **SYMMETRIC)
    x = images(4, (32, 32))
    for net in (changed, built):
        net.train()
        net(x).square().sum().backward()
    for (name, one), other in zip(changed.state_dict().items(), built.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for one, other in zip(changed.parameters(), built.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_parameters_and_buffers_stay_the_same_objects() -> None:
    net = tiny()
    before = {name: id(tensor) for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    frozen = next(net.parameters())
    frozen.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    change_settings(net, **SYMMETRIC)
    assert {name: id(tensor) for name, tensor in [*net.named_parameters(), *net.named_buffers()]} == before
    assert not next(net.parameters()).requires_grad

    kernel = net.get_parameter("stages.0.0.depthwise.conv.weight")
    weights = kernel.detach().clone()
    net(images(2, (32, 32))).sum().backward()
    optimizer.step()
    assert not torch.equal(kernel, weights)


def test_memory_format_type_and_mode_stay() -> None:
    net = tiny().double().eval()
    change_settings(net, padding="symmetric")
    kernel = net.get_parameter("stages.1.0.expand.conv.weight")
    assert kernel.dtype == torch.float64
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not any(module.training for module in net.modules())
    net.train()
    change_settings(net, padding="same")
    assert all(module.training for module in net.modules())
    assert all(not parameter.is_meta for parameter in net.parameters())


@pytest.mark.parametrize(("setting", "value"), [("norm_eps", 1e-4), ("norm_momentum", 0.3)])
def test_one_setting_at_a_time(setting: str, value: float) -> None:
    net = tiny()
    before = net.spec
    change_settings(net, **{setting: value})  # type: ignore[arg-type]
    assert net.spec == replace(before, **{setting: value})  # type: ignore[arg-type]
    assert {(norm.eps, norm.momentum) for norm in norms(net)} == {(net.spec.norm_eps, net.spec.norm_momentum)}


def test_nothing_given_changes_nothing() -> None:
    net = tiny()
    spec, modules = net.spec, list(net.modules())
    change_settings(net)
    change_settings(net, padding=spec.padding, norm_eps=spec.norm_eps)
    assert net.spec is spec
    assert all(one is other for one, other in zip(net.modules(), modules, strict=True))


def test_no_random_number_is_drawn() -> None:
    net = tiny()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    change_settings(net, **SYMMETRIC)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding": "valid"}, "padding must be one of"),
        ({"padding": "symmetric", "norm_eps": -1.0}, "norm_eps must"),
    ],
)
def test_a_wrong_value_changes_nothing(changes: dict[str, Any], message: str) -> None:
    net = tiny()
    shown, spec = repr(net), net.spec
    with pytest.raises(SpecError, match=message):
        change_settings(net, **changes)
    assert repr(net) == shown
    assert net.spec == spec


def test_a_network_built_from_the_changed_spec_is_the_same() -> None:
    net = tiny()
    change_settings(net, **SYMMETRIC)
    again = Network(net.spec)
    again.load_state_dict(net.state_dict())
    x = images(2, (32, 32))
    with torch.no_grad():
        assert torch.equal(net.eval()(x), again.eval()(x))
