from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_network import tiny

from phiscale.nn.network import Network


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"]
)
def test_copies_are_equal_and_apart(twin: Callable[[Network], Network]) -> None:
    net = tiny().eval()
    other = twin(net)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)
    assert other.spec == net.spec
    with torch.no_grad():
        other.stem.conv.weight.zero_()
    assert net.stem.conv.weight.any()


def test_a_state_dict_loads_into_a_new_network() -> None:
    net, other = tiny(1).eval(), tiny(2).eval()
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(net(x), other(x))
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.bfloat16, 0.15)])
def test_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    net = tiny().eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
        y = net.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    assert float((y.float() - expected).abs().max() / expected.abs().max()) < tolerance


def test_training_in_bfloat16_autocast() -> None:
    net = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(torch.randn(4, 3, 32, 32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_torch_export(padding: Any) -> None:
    net = tiny(padding=padding).eval()
    x = torch.randn(2, 3, 33, 32)
    exported = torch.export.export(net, (x,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-5, atol=1e-6)


def test_torch_export_with_any_number_of_images() -> None:
    net = tiny().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-5, atol=1e-6)
