"""The shapes that follow from a spec are those of the network that is built from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings

from phiscale.families import get_spec, list_specs
from phiscale.nn.network import Network
from phiscale.scaling.compound import CompoundRule, compound_scale
from phiscale.spec import HeadSpec, NetworkSpec
from phiscale.weights.shapes import Shape, tensor_shapes
from spec_strategies import network_specs


def built(spec: NetworkSpec) -> list[tuple[str, Shape]]:
    with torch.device("meta"):
        net = Network(spec)
    return [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]


@pytest.mark.parametrize("name", list_specs())
def test_every_published_network(name: str) -> None:
    spec = get_spec(name)
    # In the same order too.
    assert list(tensor_shapes(spec).items()) == built(spec)


@given(spec=network_specs())
@settings(max_examples=40)
def test_any_network(spec: NetworkSpec) -> None:
    assert list(tensor_shapes(spec).items()) == built(spec)


@given(spec=network_specs())
@settings(max_examples=40)
def test_any_network_of_mbconv_blocks(spec: NetworkSpec) -> None:
    """Whose shapes are worked out, and not read from a network."""
    stages = tuple(replace(stage, block="mbconv") for stage in spec.stages)
    spec = replace(spec, stages=stages, head=spec.head or HeadSpec(out_channels=8))
    assert list(tensor_shapes(spec).items()) == built(spec)


@pytest.mark.parametrize("phi", [0.5, 1.5, 3.0])
def test_scaled_networks(phi: float) -> None:
    spec = compound_scale(
        get_spec("efficientnet_b0"), phi=phi, rule=CompoundRule(alpha=1.2, beta=1.1, gamma=1.15)
    )
    assert list(tensor_shapes(spec).items()) == built(spec)


def test_no_random_number_is_drawn() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    tensor_shapes(replace(get_spec("resnet18"), name="not seen before"))
    assert torch.equal(torch.rand(1), expected)
