"""Graphs written from specs answer like the networks built from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

import phiscale as ps
from phiscale.deploy.exporters.folding import folded
from phiscale.deploy.exporters.onnx_graph import build_graph
from phiscale.nn.network import Network
from phiscale.preprocess import Preprocess
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

MBCONV = NetworkSpec(
    name="small",
    stem=StemSpec(out_channels=8),
    stages=(
        StageSpec(block="mbconv", out_channels=8, se_ratio=0.25),
        StageSpec(
            block="mbconv",
            out_channels=16,
            kernel_size=5,
            stride=2,
            expand_ratio=4,
            se_ratio=0.25,
            num_layers=2,
        ),
    ),
    head=HeadSpec(out_channels=32),
    image_size=(33, 46),
    num_classes=5,
)
SPECS = {
    "mbconv": MBCONV,
    "no skips": replace(MBCONV, stages=tuple(replace(stage, skip=False) for stage in MBCONV.stages)),
    "symmetric": replace(MBCONV, padding="symmetric"),
    "hard swish, bias": replace(MBCONV, activation="hard_swish", conv_bias=True),
    "relu6, grey": replace(MBCONV, activation="relu6", in_channels=1),
    "no classifier": replace(MBCONV, num_classes=0),
    "separable": replace(
        MBCONV,
        activation="relu",
        head=None,
        stages=(StageSpec(block="depthwise_separable", out_channels=16, stride=2, num_layers=2),),
    ),
    "bottleneck": replace(
        MBCONV,
        head=None,
        activation="relu",
        stem=StemSpec(out_channels=16, kernel_size=7, max_pool=True),
        stages=(StageSpec(block="bottleneck", out_channels=32, stride=2, num_layers=2),),
    ),
    "basic": replace(
        MBCONV, head=None, stages=(StageSpec(block="basic", out_channels=8, stride=2, num_layers=2),)
    ),
}


def network(spec: NetworkSpec) -> Network:
    torch.manual_seed(0)
    net = Network(spec).eval()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("norm.weight", "norm.bias", "running_mean", ".bias")):
            tensor.add_(0.2 * torch.randn_like(tensor))
    return net


def graph(net: Network, **options: Any) -> onnx.ModelProto:
    return build_graph(
        net.spec, {name: tensor.numpy() for name, tensor in net.state_dict().items()}, **options
    )


def run(model: onnx.ModelProto, images: Any) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
@torch.no_grad()
def test_logits_equal_the_networks(name: str, dynamic: bool) -> None:
    net = network(SPECS[name])
    model = graph(net, dynamic_size=dynamic)
    sizes = [net.spec.image_size, (64, 31)] if dynamic else [net.spec.image_size]
    for size in sizes:
        for count in (1, 3):
            images = torch.randn(count, net.spec.in_channels, *size)
            wanted = net(images).numpy()
            np.testing.assert_allclose(run(model, images.numpy()), wanted, atol=1e-5 * abs(wanted).max())


def test_additions_are_those_of_the_skips() -> None:
    for name, wanted in (("mbconv", sum(block.has_skip for block in MBCONV.blocks())), ("no skips", 0)):
        assert sum(node.op_type == "Add" for node in graph(network(SPECS[name])).graph.node) == wanted


@torch.no_grad()
def test_preprocessing_is_in_the_graph() -> None:
    net = network(MBCONV)
    preprocess = Preprocess(size=MBCONV.image_size, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    model = graph(net, preprocess=preprocess, metadata={"classes": "a, b"})
    pixels = np.random.default_rng(0).integers(0, 256, (2, *MBCONV.image_size, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(preprocess.mean).view(3, 1, 1)) / torch.tensor(preprocess.std).view(3, 1, 1)
    found = run(model, pixels)
    np.testing.assert_allclose(found, net(x).softmax(1).numpy(), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)
    assert {prop.key: prop.value for prop in model.metadata_props} == {"classes": "a, b"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_padding_and_no_norm_is_left_in_the_graph(dynamic: bool) -> None:
    net = network(ps.get_spec("efficientnet_b0"))
    kinds = {node.op_type for node in graph(net, dynamic_size=dynamic).graph.node}
    assert kinds == {"Conv", "Sigmoid", "Mul", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


def test_folding_keeps_a_bias_of_the_convolution() -> None:
    net = network(SPECS["hard swish, bias"])
    tensors = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    stem = folded(tensors, eps=net.spec.norm_eps)
    x = torch.randn(1, 3, 9, 9)
    with torch.no_grad():
        wanted = net.stem.norm(net.stem.conv(x))
        padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
        found = torch.nn.functional.conv2d(
            padded, torch.from_numpy(stem["stem.weight"]), torch.from_numpy(stem["stem.bias"]), stride=2
        )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
