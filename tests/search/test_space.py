"""Points of the space are networks: valid, counted as built, and found again from the network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hidden_optimum import SPACE, TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from phiscale.errors import SpecError
from phiscale.families import get_spec
from phiscale.nn.network import Network
from phiscale.scaling.complexity import complexity
from phiscale.scaling.small_images import for_image_size
from phiscale.search.space import SearchSpace, StageSpace, Value
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec

B0 = replace(for_image_size(get_spec("efficientnet_b0"), 32), num_classes=10)
SPACES = (SPACE, SearchSpace.around(B0), SearchSpace.around(get_spec("mobilenet_v2")))


@st.composite
def points(draw: st.DrawFn) -> tuple[SearchSpace, dict[str, Value]]:
    space = draw(st.sampled_from(SPACES))
    return space, {name: draw(st.sampled_from(values)) for name, values in space.choices().items()}


@given(points())
def test_a_network_encodes_to_a_point_that_decodes_to_it(drawn: tuple[SearchSpace, dict[str, Value]]) -> None:
    space, point = drawn
    spec = space.decode(point)
    encoded = space.encode(spec)
    assert space.decode(encoded) == spec
    assert space.encode(space.decode(encoded)) == encoded
    # What a point says and its network does not: what a separable stage lacks, and a skip where none fits.
    fitting = {block.stage_index for block in spec.blocks() if block.fits_skip}
    for name in point:
        if encoded[name] != point[name]:
            stage, field = name.split(".")
            separable = point[f"{stage}.block"] == "depthwise_separable"
            assert field in (("expand_ratio", "se_ratio", "skip") if separable else ("skip",))
            assert separable or int(stage[7:-1]) not in fitting


@given(points())
def test_a_decoded_network_survives_json(drawn: tuple[SearchSpace, dict[str, Value]]) -> None:
    space, point = drawn
    spec = space.decode(point)
    assert NetworkSpec.from_json(spec.to_json()) == spec


@settings(max_examples=40, deadline=None)
@given(points())
def test_every_point_builds_and_costs_what_was_counted(drawn: tuple[SearchSpace, dict[str, Value]]) -> None:
    space, point = drawn
    spec = space.decode(point)
    counted = complexity(spec)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        net = Network(spec).eval()
        logits = net(torch.empty(1, spec.in_channels, *spec.image_size))
    assert logits.shape == (1, spec.num_classes)
    assert counter.get_total_flops() == 2 * counted.macs
    assert sum(parameter.numel() for parameter in net.parameters()) == counted.params


@given(points())
def test_nothing_is_smaller_than_the_smallest(drawn: tuple[SearchSpace, dict[str, Value]]) -> None:
    space, point = drawn
    smallest, other = complexity(space.smallest()), complexity(space.decode(point))
    assert smallest.macs <= other.macs
    assert smallest.params <= other.params


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "mobilenet_v1", "mobilenet_v2"])
def test_the_template_is_in_its_space(name: str) -> None:
    spec = get_spec(name)
    space = SearchSpace.around(spec)
    assert space.decode(space.encode(spec)) == spec


def test_the_template_s_own_values_are_choices() -> None:
    odd = replace(TEMPLATE.stages[1], kernel_size=7, expand_ratio=2, out_channels=20, se_ratio=0.1)
    space = SearchSpace.around(replace(TEMPLATE, stages=(odd,)))
    assert space.choices() == {
        "stages[0].block": ("depthwise_separable", "mbconv"),
        "stages[0].kernel_size": (3, 5, 7),
        "stages[0].expand_ratio": (1, 2, 3, 4, 6),
        "stages[0].se_ratio": (0.0, 0.1, 0.25),
        "stages[0].skip": (False, True),
        "stages[0].num_layers": (1, 2, 3),
        "stages[0].out_channels": (12, 20, 28),
    }


def test_size_counts_different_networks() -> None:
    stage = StageSpace(
        kernel_size=(3, 5), expand_ratio=(1, 6), se_ratio=(0.0, 0.25), num_layers=(1,), out_channels=(8, 16)
    )
    template = NetworkSpec(
        name="two",
        stem=StemSpec(out_channels=8),
        stages=(StageSpec(block="mbconv", out_channels=8),) * 2,
        head=HeadSpec(out_channels=8),
    )
    space = SearchSpace(template=template, stages=(stage, stage))
    choices = space.choices()
    every = {
        space.decode(dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    }
    assert len(every) == space.size


def test_a_skip_that_fits_nothing_makes_no_other_network() -> None:
    point = SPACE.encode(TEMPLATE)
    # From 16 channels of the stem to 8 there is nothing to add; in two layers there is, in the second.
    one, two = ({**point, "stages[0].num_layers": layers} for layers in (1, 2))
    assert SPACE.decode({**one, "stages[0].skip": False}) == SPACE.decode({**one, "stages[0].skip": True})
    assert SPACE.decode({**two, "stages[0].skip": False}) != SPACE.decode({**two, "stages[0].skip": True})


def test_a_template_without_skips_is_in_its_space() -> None:
    b0 = get_spec("efficientnet_b0")
    spec = replace(b0, stages=tuple(replace(stage, skip=False) for stage in b0.stages))
    space = SearchSpace.around(spec)
    assert space.decode(space.encode(spec)) == spec


def test_a_template_of_other_blocks_is_refused() -> None:
    with pytest.raises(SpecError, match="the template has bottleneck"):
        SearchSpace.around(get_spec("resnet50"))


def test_a_network_of_another_image_size_is_not_in_the_space() -> None:
    with pytest.raises(SpecError, match="must be those of template"):
        SPACE.encode(replace(TEMPLATE, image_size=(32, 32)))
    other_kernel = replace(
        TEMPLATE, stages=(replace(TEMPLATE.stages[0], kernel_size=9), *TEMPLATE.stages[1:])
    )
    with pytest.raises(SpecError, match=r"stages\[0\]\.kernel_size must be one of"):
        SPACE.encode(other_kernel)
    with pytest.raises(SpecError, match="has 1 stages, and the space 4"):
        SPACE.encode(replace(TEMPLATE, stages=TEMPLATE.stages[:1]))


def test_a_point_must_be_of_the_space() -> None:
    point = SPACE.encode(TEMPLATE)
    with pytest.raises(SpecError, match=r"stages\[0\]\.block is missing"):
        SPACE.decode({name: value for name, value in point.items() if name != "stages[0].block"})
    with pytest.raises(SpecError, match=r"stages\[9\]\.block is not in the space"):
        SPACE.decode({**point, "stages[9].block": "mbconv"})


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("kernel_size", (4,), "odd"),
        ("kernel_size", (5, 3), "smallest first"),
        ("num_layers", (), "different values"),
        ("out_channels", (8, 8), "different values"),
        ("block", ("basic",), "must be of"),
    ],
)
def test_choices_that_no_stage_has_are_refused(field: str, values: tuple[object, ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        StageSpace(**{"num_layers": (1,), "out_channels": (8,), field: values})  # type: ignore[arg-type]


def test_a_space_needs_choices_for_every_stage() -> None:
    with pytest.raises(SpecError, match="has 4 stages, got choices for 1"):
        SearchSpace(template=TEMPLATE, stages=SPACE.stages[:1])
