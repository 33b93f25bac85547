from __future__ import annotations

import pytest

from phiscale.families import get_spec, list_specs
from phiscale.scaling.complexity import complexity
from phiscale.scaling.small_images import for_image_size


@pytest.mark.parametrize(
    ("side", "stride"), [(224, 32), (128, 32), (127, 16), (64, 16), (32, 8), (28, 4), (8, 2)]
)
def test_the_last_map_keeps_four_pixels(side: int, stride: int) -> None:
    spec = for_image_size(get_spec("efficientnet_b0"), side)
    assert spec.output_stride == stride
    assert spec.image_size == (side, side)


@pytest.mark.parametrize("name", list_specs())
def test_weights_keep_their_shapes(name: str) -> None:
    spec = get_spec(name)
    small = for_image_size(spec, 32)
    assert complexity(small).params == complexity(spec).params
    assert small.output_stride == 8


def test_early_strides_go_first() -> None:
    small = for_image_size(get_spec("efficientnet_b0"), 32)
    assert small.stem.stride == 1
    assert [stage.stride for stage in small.stages] == [1, 1, 2, 2, 1, 2, 1]


def test_a_resnet_loses_its_pool_first() -> None:
    small = for_image_size(get_spec("resnet18"), 64)
    assert not small.stem.max_pool
    assert (small.stem.stride, small.output_stride) == (2, 16)


def test_the_shorter_side_decides_and_strides_end_at_one() -> None:
    assert for_image_size(get_spec("efficientnet_b0"), (32, 224)).output_stride == 8
    assert for_image_size(get_spec("efficientnet_b0"), 1).output_stride == 1


def test_large_images_change_the_size_only() -> None:
    spec = get_spec("efficientnet_b0")
    assert for_image_size(spec, 300).stages == spec.stages
    assert spec.image_size == (224, 224)
