from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscale.errors import SpecError
from phiscale.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

SIDES = st.integers(1, 2048)
GREY_OR_RGB = st.sampled_from([1, 3])


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    channels = draw(GREY_OR_RGB)
    numbers = st.floats(-10, 10)
    positive = st.floats(1e-3, 10)
    return Preprocess(
        size=(draw(SIDES), draw(SIDES)),
        resize=draw(st.sampled_from(["crop", "squash", "pad"])),
        crop_fraction=draw(st.floats(0, 1, exclude_min=True)),
        interpolation=draw(st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])),
        mean=tuple(draw(st.lists(numbers, min_size=channels, max_size=channels))),
        std=tuple(draw(st.lists(positive, min_size=channels, max_size=channels))),
        background=draw(st.tuples(*[st.integers(0, 255)] * 3)),
    )


@given(preprocesses())
def test_json_round_trip(preprocess: Preprocess) -> None:
    text = json.dumps(preprocess.to_dict(), allow_nan=False)
    assert Preprocess.from_dict(json.loads(text)) == preprocess


@given(preprocesses())
def test_channels_follow_from_the_mean(preprocess: Preprocess) -> None:
    assert preprocess.channels == len(preprocess.mean) == len(preprocess.std)


@pytest.mark.parametrize(
    ("size", "fraction", "resize"),
    [
        (224, 0.875, (256, 256)),
        (240, 240 / 272, (272, 272)),
        (600, 600 / 632, (632, 632)),
        (64, 1.0, (64, 64)),
    ],
)
def test_the_authors_border_of_sixteen_pixels(size: int, fraction: float, resize: tuple[int, int]) -> None:
    preprocess = Preprocess.for_size(size)
    assert preprocess.crop_fraction == pytest.approx(fraction)
    assert preprocess.resize_size == resize
    assert preprocess.size == (size, size)
    assert (preprocess.mean, preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_for_size_takes_the_shorter_side_of_a_non_square_one() -> None:
    preprocess = Preprocess.for_size((320, 224))
    assert preprocess.size == (320, 224)
    assert preprocess.crop_fraction == pytest.approx(0.875)


def test_for_size_of_grey_images_has_the_averages() -> None:
    preprocess = Preprocess.for_size(32, channels=1)
    assert preprocess.channels == 1
    assert preprocess.mean[0] == pytest.approx(sum(IMAGENET_MEAN) / 3)
    assert preprocess.std[0] == pytest.approx(sum(IMAGENET_STD) / 3)


def test_for_size_of_two_channels_is_refused() -> None:
    with pytest.raises(SpecError, match="1 or 3 channels here, got 2"):
        Preprocess.for_size(32, channels=2)


def test_lists_become_tuples() -> None:
    preprocess = Preprocess(mean=[0.5], std=[0.5], size=[32, 48])  # type: ignore[arg-type]
    assert preprocess == Preprocess(mean=(0.5,), std=(0.5,), size=(32, 48))
    assert hash(preprocess) == hash(Preprocess(mean=(0.5,), std=(0.5,), size=(32, 48)))


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "size of zero": ({"size": [0, 224]}, "preprocess.size must be one or two positive integers"),
    "size of text": ({"size": "224"}, "preprocess.size must be one or two positive integers"),
    "size of three": ({"size": [1, 2, 3]}, "preprocess.size must be one or two positive integers"),
    "unknown resize": ({"resize": "stretch"}, "preprocess.resize must be one of crop, squash, pad"),
    "list for resize": ({"resize": []}, "preprocess.resize must be one of"),
    "unknown filter": ({"interpolation": "cubic"}, "preprocess.interpolation must be one of nearest"),
    "crop of zero": ({"crop_fraction": 0}, "preprocess.crop_fraction must lie in (0, 1], got 0"),
    "crop above one": ({"crop_fraction": 1.5}, "preprocess.crop_fraction must lie in (0, 1], got 1.5"),
    "crop of NaN": ({"crop_fraction": math.nan}, "preprocess.crop_fraction must lie in (0, 1], got nan"),
    "mean of text": ({"mean": "0.5"}, "preprocess.mean must be a list of finite numbers"),
    "mean of one number": ({"mean": 0.5}, "preprocess.mean must be a list of finite numbers"),
    "mean of NaN": ({"mean": [math.nan, 0, 0]}, "preprocess.mean must be a list of finite numbers"),
    "mean of booleans": ({"mean": [True, 0, 0]}, "preprocess.mean must be a list of finite numbers"),
    "std of infinity": ({"std": [1, 1, math.inf]}, "preprocess.std must be a list of finite numbers"),
    "std of zero": ({"std": [1, 0, 1]}, "preprocess.std must be positive"),
    "two channels": ({"mean": [0, 0], "std": [1, 1]}, "preprocess.mean and std must both have 1 value"),
    "other lengths": ({"mean": [0]}, "preprocess.mean and std must both have 1 value"),
    "empty": ({"mean": [], "std": []}, "preprocess.mean and std must both have 1 value"),
    "background of two": ({"background": [0, 0]}, "preprocess.background must be three integers"),
    "background of 256": ({"background": [0, 0, 256]}, "preprocess.background must be three integers"),
    "background of halves": ({"background": [0, 0, 0.5]}, "preprocess.background must be three integers"),
    "unknown field": ({"sise": 224}, "preprocess.sise is not a field; known: size, resize"),
}


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_field_is_named_by_its_path(case: str) -> None:
    data, message = INVALID[case]
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        Preprocess.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_document_that_is_no_object(data: Any) -> None:
    with pytest.raises(SpecError, match="preprocess must be an object"):
        Preprocess.from_dict(data)
