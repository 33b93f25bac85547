"""The module that is exported answers like the network, at any size, with its norms folded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import MBCONV, SPECS, assert_same_answers, eager, make_model, pixels, tensors_of

import phiscale as ps
from phiscale.deploy.exporters.folding import folded
from phiscale.deploy.exporters.module import DeployNetwork, FoldedConv, FromPlanes, build_module
from phiscale.nn.layers import ConvNormAct, LayerOptions


@pytest.mark.parametrize("name", SPECS)
def test_module_answers_like_the_network(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", SPECS[name])
    module = build_module(model, tensors_of(model))
    wanted = eager(model)
    for size in (model.spec.image_size, (61, 50)):
        images = pixels(model, size=size)
        assert_same_answers(module(torch.from_numpy(images)).numpy(), wanted(images))
    images = pixels(model)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    assert_same_answers(FromPlanes(module)(planes).numpy(), wanted(images))


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 9), (9, 10), (17, 12), (7, 7)])
@torch.no_grad()
def test_same_padding(kernel: int, stride: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(4, 4, kernel, stride=stride, groups=2, options=LayerOptions(activation="relu")).eval()
    ours = FoldedConv(layer)
    names = {f"a.{name}": tensor.numpy() for name, tensor in layer.state_dict().items()}
    weights = folded(names, eps=layer.norm.eps)
    ours.load_state_dict({name[2:]: torch.from_numpy(value) for name, value in weights.items()})
    x = torch.randn(2, 4, *size)
    torch.testing.assert_close(ours(x), layer(x))


def test_norms_are_folded_and_even_padding_is_the_convolution_s(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ps.get_spec("efficientnet_b0"))
    images = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    program = torch.export.export(build_module(model, tensors_of(model)), (images,))
    kinds = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not {kind for kind in kinds if "norm" in kind}
    strides = [model.spec.stem.stride, *(block.stride for block in model.spec.blocks())]
    # At 224 px every stride of 2 meets an even size, and pads it unevenly.
    assert len([kind for kind in kinds if "pad" in kind]) == strides.count(2)


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    tensors = folded(tensors_of(model), eps=model.spec.norm_eps)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    DeployNetwork(model.spec, tensors, model.preprocess)
    np.testing.assert_array_equal(torch.rand(3), wanted)
