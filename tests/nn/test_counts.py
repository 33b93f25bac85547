"""What `complexity` counts from a spec equals what the built network holds and does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from phiscale.families import get_spec, list_specs
from phiscale.nn.network import Network
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec
from spec_strategies import network_specs


@pytest.fixture(autouse=True)
def _shapes_only() -> Iterator[None]:
    """On the meta device shapes are computed and nothing else is."""
    with torch.device("meta"):
        yield


def count_built(net: Network, size: tuple[int, int]) -> tuple[list[int], list[int], list[int]]:
    """Parameters, multiply-adds and activations of stem, stages and head as torch sees them."""
    groups: list[list[nn.Module]] = [
        [net.stem],
        *([stage] for stage in net.stages),
        [net.head, net.classifier],
    ]
    activations = [0] * len(groups)

    def count(index: int, output: Tensor) -> None:
        activations[index] += output[0].numel()

    hooks = [
        conv.register_forward_hook(lambda _module, _input, output, index=index: count(index, output))
        for index, group in enumerate(groups)
        for module in group
        for conv in module.modules()
        if isinstance(conv, nn.Conv2d)
    ]
    x = torch.empty(1, net.spec.in_channels, *size)
    with torch.no_grad(), FlopCounterMode(display=False, depth=2) as counter:
        net(x)
    for hook in hooks:
        hook.remove()
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    names = [["stem"], *([f"stages.{i}"] for i in range(len(net.stages))), ["head", "classifier"]]
    macs = [sum(flops.get(f"Network.{name}", 0) for name in group) // 2 for group in names]
    assert sum(macs) * 2 == counter.get_total_flops()
    params = [sum(p.numel() for module in group for p in module.parameters()) for group in groups]
    assert sum(params) == sum(p.numel() for p in net.parameters())
    return params, macs, activations


def assert_counts_agree(spec: NetworkSpec, *sizes: tuple[int, int]) -> None:
    net = Network(spec).eval()
    for size in sizes:
        stages = complexity(spec, image_size=size).stages
        params, macs, activations = count_built(net, size)
        assert [stage.params for stage in stages] == params
        assert [stage.macs for stage in stages] == macs
        assert [stage.activations for stage in stages] == activations


@pytest.mark.parametrize("name", list_specs())
def test_every_network_at_three_sizes(name: str) -> None:
    spec = get_spec(name)
    assert_counts_agree(spec, spec.image_size, (97, 131), (64, 320))


VARIANTS = {
    "bias": {"conv_bias": True},
    "symmetric": {"padding": "symmetric"},
    "same": {"padding": "same"},
    "no classifier": {"num_classes": 0},
    "five channels": {"in_channels": 5},
    "all at once": {"conv_bias": True, "padding": "symmetric", "num_classes": 0, "in_channels": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "efficientnet_lite0", "mobilenet_v1", "resnet18", "resnet50"]
)
def test_variants(name: str, variant: str) -> None:
    spec = replace(get_spec(name), **VARIANTS[variant])  # type: ignore[arg-type]
    assert_counts_agree(spec, (64, 64), (75, 133))


@settings(max_examples=40)
@given(network_specs())
def test_random_networks(spec: NetworkSpec) -> None:
    assume(min(spec.image_size) >= spec.output_stride)
    assert_counts_agree(spec, spec.image_size)


@settings(max_examples=25)
@given(network_specs())
def test_tensors_of_the_weight_file(spec: NetworkSpec) -> None:
    # Names differ in length, so the header is known only about; what is stored is exact.
    state = Network(spec).state_dict()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    header = complexity(spec).file_bytes - stored
    assert header == 105 * len(state)
