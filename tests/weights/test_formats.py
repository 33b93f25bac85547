"""The key maps beside the names and shapes of the publishers' own networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from publishers_nets import PUBLISHERS, Publisher, depthwise_padding

from phiscale.errors import ModelDirError
from phiscale.families import get_spec, list_specs
from phiscale.spec import HeadSpec, NetworkSpec
from phiscale.weights.formats import FORMATS, KeyMap
from phiscale.weights.recognise import from_layout, recognise, to_layout
from phiscale.weights.shapes import Shape, tensor_shapes
from spec_strategies import network_specs

GOLDEN = Path(__file__).parents[1] / "golden" / "article_b0.json"
EFFICIENTNETS = [*list_specs("efficientnet"), *list_specs("efficientnet_lite")]
SOME = ("efficientnet_b0", "efficientnet_b3", "efficientnet_b7", "efficientnet_lite0", "efficientnet_lite4")

LAYOUTS = pytest.mark.parametrize("layout", FORMATS.values(), ids=lambda layout: layout.name)


def shapes_in(layout: KeyMap, spec: NetworkSpec) -> dict[str, Shape]:
    """Names and shapes that a layout has for a network."""
    ours = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes(spec).items()}
    return {name: tuple(tensor.shape) for name, tensor in to_layout(layout, spec, ours).items()}


def mbconv_only(spec: NetworkSpec) -> NetworkSpec:
    stages = tuple(replace(stage, block="mbconv") for stage in spec.stages)
    return replace(spec, stages=stages, head=spec.head or HeadSpec(out_channels=8))


@pytest.mark.parametrize(
    ("publisher", "name"),
    [
        (publisher, name)
        for publisher in PUBLISHERS.values()
        for name in publisher.variants
        if name in SOME and publisher.name not in ("article", "keras")
    ],
    ids=lambda value: value if isinstance(value, str) else value.name.replace(" ", "-"),
)
def test_names_and_shapes_are_the_publishers_own(publisher: Publisher, name: str) -> None:
    with torch.device("meta"):
        net = publisher.build(name, get_spec(name).image_size[0])
    theirs = {key: tuple(tensor.shape) for key, tensor in publisher.tensors(net).items()}
    found = shapes_in(FORMATS[publisher.layout], get_spec(name))
    assert found == theirs
    assert list(found) == list(theirs)


def test_kerass_names_and_shapes() -> None:
    publisher, name = PUBLISHERS["keras"], "efficientnet_b0"
    net = publisher.build(name, 32)
    theirs = {
        key: tuple(tensor.shape)
        for key, tensor in publisher.tensors(net).items()
        if not key.startswith("normalization/")
    }
    assert shapes_in(FORMATS["keras"], get_spec(name)) == theirs


@pytest.mark.parametrize("name", ["efficientnet_b8", "efficientnet_l2"])
def test_the_largest_ones_of_timm(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(f"tf_{name}").state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.items()}
    assert shapes_in(FORMATS["timm"], get_spec(name)) == shapes


def test_the_articles_names_and_shapes() -> None:
    golden = {name: tuple(shape) for name, shape in json.loads(GOLDEN.read_text(encoding="utf-8"))}
    shapes = shapes_in(FORMATS["article"], get_spec("efficientnet_b0"))
    assert shapes == golden
    # The same order too: shapes alone do not tell a norm from its neighbour.
    assert list(shapes) == list(golden)


def test_transformers_padding_is_that_of_its_published_networks() -> None:
    """depthwise_padding in the config.json of google/efficientnet-b0 to b7."""
    published = {
        "b0": [],
        "b1": [16],
        "b2": [5, 8, 16],
        "b3": [5, 18],
        "b4": [6],
        "b5": [13, 27],
        "b6": [31],
        "b7": [18],
    }
    specs = {name: get_spec(f"efficientnet_{name}") for name in published}
    assert {name: depthwise_padding(spec, spec.image_size[0]) for name, spec in specs.items()} == published


@LAYOUTS
@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_there_and_back_for_every_published_network(layout: KeyMap, name: str) -> None:
    spec = get_spec(name)
    if layout.needs_se and "lite" in name:
        with pytest.raises(ModelDirError, match=f"no EfficientNet without squeeze-excite, so {name}"):
            layout.tensors(spec)
        return
    names = layout.tensors(spec)
    assert len(set(names.values())) == len(names)
    # Every tensor has a name, but for counters, which Keras does not keep.
    left_out = tensor_shapes(spec).keys() - names.keys()
    assert all(key.endswith("num_batches_tracked") for key in left_out)
    assert left_out == set() or layout.name == "keras"


@LAYOUTS
@given(spec=network_specs(), data=st.data())
@settings(max_examples=20)
def test_there_and_back_for_networks_of_anybodys_own(
    layout: KeyMap, spec: NetworkSpec, data: st.DataObject
) -> None:
    spec = mbconv_only(spec)
    if layout.needs_se:
        stages = tuple(replace(stage, se_ratio=max(stage.se_ratio, 0.05)) for stage in spec.stages)
        spec = replace(spec, stages=stages)
    if layout.needs_skip:
        spec = replace(spec, stages=tuple(replace(stage, skip=True) for stage in spec.stages))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    state = {
        name: torch.randn(shape, generator=generator)
        for name, shape in tensor_shapes(spec).items()
        if name in layout.tensors(spec)
    }
    theirs = to_layout(layout, spec, state)
    assert len(theirs) == len(state)
    back = from_layout(layout, spec, theirs)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    match = recognise(theirs, also=[spec])
    assert match.layout is layout
    assert match.complete
    assert all(torch.equal(match.tensors[name], state[name]) for name in state)


@LAYOUTS
def test_the_signature_belongs_to_one_layout(layout: KeyMap) -> None:
    for name in EFFICIENTNETS:
        for other in FORMATS.values():
            if not ("lite" in name and other.needs_se):
                found = layout.signature in other.tensors(get_spec(name)).values()
                assert found == (other is layout)


@LAYOUTS
@pytest.mark.parametrize(
    ("name", "what"),
    [("resnet50", "bottleneck blocks"), ("mobilenet_v1", "depthwise_separable blocks")],
)
def test_networks_of_another_kind(layout: KeyMap, name: str, what: str) -> None:
    with pytest.raises(
        ModelDirError, match=f"the {layout.name} layout of EfficientNets has no names for {what}"
    ):
        layout.tensors(get_spec(name))


@LAYOUTS
def test_a_network_without_a_head(layout: KeyMap) -> None:
    with pytest.raises(ModelDirError, match="no names for networks without a head"):
        layout.tensors(replace(get_spec("efficientnet_b0"), head=None))


@LAYOUTS
def test_a_network_without_a_skip(layout: KeyMap) -> None:
    b0 = get_spec("efficientnet_b0")
    # The second stage has two layers; the first has one, whose channels change.
    first, second = (
        replace(b0, stages=tuple(replace(stage, skip=index != i) for i, stage in enumerate(b0.stages)))
        for index in (0, 1)
    )
    assert layout.tensors(first) == layout.tensors(b0)
    if layout.needs_skip:
        with pytest.raises(ModelDirError, match=f"in the {layout.name} layout every MBConv has a skip"):
            layout.tensors(second)
    else:
        assert layout.tensors(second) == layout.tensors(b0)
    assert layout.needs_skip == (layout.name != "phiscale")


@LAYOUTS
def test_without_a_classifier(layout: KeyMap) -> None:
    spec = get_spec("efficientnet_b0")
    names = layout.tensors(replace(spec, num_classes=0))
    assert layout.tensors(spec).keys() - names.keys() == {"classifier.weight", "classifier.bias"}


def test_a_values_way_through_every_key_map() -> None:
    """One tensor, followed by hand through the names of all layouts."""
    spec = get_spec("efficientnet_b0")
    found = {
        layout.name: layout.tensors(spec)["stages.2.1.project.norm.running_var"]
        for layout in FORMATS.values()
    }
    assert found == {
        "phiscale": "stages.2.1.project.norm.running_var",
        "timm": "blocks.2.1.bn3.running_var",
        "torchvision": "features.3.1.block.3.1.running_var",
        "lukemelas": "_blocks.4._bn2.running_var",
        "keras": "block3b_project_bn/moving_variance",
        "huggingface": "efficientnet.encoder.blocks.4.projection.project_bn.running_var",
        "article": "stages.2.layers.1.project_conv.bn.running_var",
    }


def test_more_blocks_than_letters() -> None:
    """Keras counts the blocks of a stage with letters, and a network may have more than 26."""
    b0 = get_spec("efficientnet_b0")
    deep = replace(b0, stages=(*b0.stages[:6], replace(b0.stages[6], num_layers=54)))
    names = list(FORMATS["keras"].tensors(deep).values())
    prefixes = list(dict.fromkeys(name.split("_")[0] for name in names if name.startswith("block7")))
    assert [prefixes[i] for i in (0, 25, 26, 27, 51, 52, 53)] == [
        *("block7a", "block7z", "block7aa", "block7ab", "block7az", "block7ba", "block7bb"),
    ]
    assert len(set(prefixes)) == 54
