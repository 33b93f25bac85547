from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from phiscale.errors import SpecError
from phiscale.families import FAMILIES, get_spec, list_specs
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import scale
from phiscale.spec import NetworkSpec


@pytest.fixture(autouse=True)
def _shapes_only() -> Iterator[None]:
    """Build the other libraries' networks without memory for their weights."""
    with torch.device("meta"):
        yield


def test_names_and_order() -> None:
    assert list_specs("efficientnet") == [f"efficientnet_b{i}" for i in range(9)] + ["efficientnet_l2"]
    assert list_specs("efficientnet_lite") == [f"efficientnet_lite{i}" for i in range(5)]
    assert list_specs("mobilenet") == ["mobilenet_v1", "mobilenet_v2"]
    assert list_specs("resnet") == ["resnet18", "resnet34", "resnet50", "resnet101"]
    assert list_specs() == [name for family in FAMILIES for name in list_specs(family)]


@pytest.mark.parametrize("name", list_specs())
def test_a_name_gives_the_spec_of_that_name(name: str) -> None:
    spec = get_spec(name)
    assert spec.name == name
    assert NetworkSpec.from_json(spec.to_json()) == spec
    assert get_spec(spec) is spec


def test_an_unknown_name_suggests_a_near_one() -> None:
    with pytest.raises(
        SpecError, match="no network is named 'efficientnet-b3'; did you mean 'efficientnet_b3'"
    ):
        get_spec("efficientnet-b3")
    with pytest.raises(
        SpecError, match=re.escape("no network is named 'zzz'; `phiscale models` or list_specs() names all")
    ):
        get_spec("zzz")


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match="known: efficientnet, efficientnet_lite, mobilenet, resnet"):
        list_specs("vit")


def test_a_file_is_taken_wherever_a_name_is(tmp_path: Path) -> None:
    own = dataclasses.replace(get_spec("resnet18"), name="own", num_classes=7)
    path = tmp_path / "own.json"
    path.write_text(own.to_json(), encoding="utf-8")
    assert get_spec(path) == get_spec(str(path)) == own


@pytest.mark.parametrize("index", range(10))
def test_published_coefficients(index: int, golden: dict[str, Any]) -> None:
    name = list_specs("efficientnet")[index]
    row = golden["efficientnet"][name]
    spec, b0 = get_spec(name), get_spec("efficientnet_b0")
    assert spec.image_size == (row["resolution"], row["resolution"])
    assert (spec.dropout, spec.drop_path) == (row["dropout"], 0.2)
    assert (spec.norm_eps, spec.norm_momentum) == (1e-3, 0.01)
    assert (spec.activation, spec.padding, spec.conv_bias) == ("swish", "same", False)
    scaled = scale(b0, depth=row["depth"], width=row["width"])
    assert (spec.stem, spec.stages, spec.head) == (scaled.stem, scaled.stages, scaled.head)


@pytest.mark.parametrize("index", range(5))
def test_lite_coefficients(index: int, golden: dict[str, Any]) -> None:
    name = f"efficientnet_lite{index}"
    row = golden["efficientnet_lite"][name]
    spec, lite0 = get_spec(name), get_spec("efficientnet_lite0")
    assert spec.image_size == (row["resolution"], row["resolution"])
    assert spec.activation == "relu6"
    # Stem and head are not widened, the first and last stage not deepened, nothing is squeezed.
    assert (spec.stem.out_channels, spec.num_features) == (32, 1280)
    assert (spec.stages[0].num_layers, spec.stages[-1].num_layers) == (1, 1)
    assert {stage.se_ratio for stage in spec.stages} == {0.0}
    assert spec.stages == scale(lite0, depth=row["depth"], width=row["width"]).stages


def _params(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


TIMM = {
    **{f"efficientnet_b{i}": f"tf_efficientnet_b{i}" for i in range(9)},
    "efficientnet_l2": "tf_efficientnet_l2",
    **{f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in range(5)},
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
}


@pytest.mark.parametrize("name", list_specs())
def test_parameters_equal_timms(name: str) -> None:
    theirs = timm.create_model(TIMM[name], pretrained=False)
    assert complexity(get_spec(name)).params == _params(theirs)


TORCHVISION = [
    *(f"efficientnet_b{i}" for i in range(8)),
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
]


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_equal_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    assert complexity(get_spec(name)).params == _params(theirs)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "resnet50"])
def test_norms_equal_torchvisions(name: str) -> None:
    theirs = torchvision.models.get_model(name, weights=None)
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    spec = get_spec(name)
    assert {(norm.eps, norm.momentum) for norm in norms} == {(spec.norm_eps, spec.norm_momentum)}
