from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscale.errors import SpecError
from phiscale.families import get_spec
from phiscale.spec import HeadSpec, NetworkSpec, StageSpec, StemSpec, as_size
from spec_strategies import network_specs

B0 = get_spec("efficientnet_b0")

# ------------------------------------------------------------------------------- derived values


def test_blocks_thread_channels_and_strides() -> None:
    blocks = list(B0.blocks())
    assert len(blocks) == B0.num_blocks == 16
    assert [b.in_channels for b in blocks[:6]] == [32, 16, 24, 24, 40, 40]
    assert [b.out_channels for b in blocks[:6]] == [16, 24, 24, 40, 40, 80]
    assert [b.stride for b in blocks[:6]] == [1, 2, 1, 2, 1, 2]
    for before, after in pairwise(blocks):
        assert after.in_channels == before.out_channels


def test_drop_path_grows_by_the_authors_rule() -> None:
    rates = [block.drop_path for block in B0.blocks()]
    # i / n, not i / (n - 1): the last block stays below the rate.
    assert rates == pytest.approx([0.2 * i / 16 for i in range(16)])


def test_squeeze_follows_the_input_not_the_expanded_channels() -> None:
    blocks = list(B0.blocks())
    assert [b.se_channels for b in blocks[:4]] == [8, 4, 6, 6]
    assert [b.expanded_channels for b in blocks[:4]] == [32, 96, 144, 144]


def test_squeeze_is_at_least_one_and_none_at_ratio_zero() -> None:
    stage = StageSpec(block="mbconv", out_channels=8, se_ratio=0.01)
    spec = dataclasses.replace(B0, stages=(stage, dataclasses.replace(stage, se_ratio=0.0)))
    assert [block.se_channels for block in spec.blocks()] == [1, 0]


def test_skip_needs_stride_one_and_equal_channels() -> None:
    skips = [block.has_skip for block in B0.blocks()]
    firsts = [block.layer_index == 0 for block in B0.blocks()]
    assert skips == [not first for first in firsts]
    same = StageSpec(block="mbconv", out_channels=32, num_layers=2)
    assert [b.has_skip for b in dataclasses.replace(B0, stages=(same,)).blocks()] == [True, True]
    without = dataclasses.replace(B0, stages=(dataclasses.replace(same, skip=False),))
    assert [(b.fits_skip, b.has_skip) for b in without.blocks()] == [(True, False)] * 2
    separable = StageSpec(block="depthwise_separable", out_channels=32, num_layers=2)
    assert [b.has_skip for b in dataclasses.replace(B0, stages=(separable,)).blocks()] == [False, False]


@pytest.mark.parametrize(
    ("name", "stride", "features"),
    [
        ("efficientnet_b0", 32, 1280),
        ("mobilenet_v1", 32, 1024),
        ("resnet50", 32, 2048),
        ("resnet18", 32, 512),
    ],
)
def test_output_stride_and_features(name: str, stride: int, features: int) -> None:
    spec = get_spec(name)
    assert (spec.output_stride, spec.num_features) == (stride, features)


def test_specs_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        B0.num_classes = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        StemSpec(32)  # type: ignore[call-arg]
    assert hash(B0) == hash(NetworkSpec.from_json(B0.to_json()))


@pytest.mark.parametrize(("value", "size"), [(224, (224, 224)), ((1, 2), (1, 2)), ([3, 4], (3, 4))])
def test_as_size(value: Any, size: tuple[int, int]) -> None:
    assert as_size(value) == size


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "224", None, (1,), (1, 2, 3), (0, 5), (True, 5), {}])
def test_as_size_refuses(value: Any) -> None:
    with pytest.raises(SpecError, match="image_size must be one or two positive integers"):
        as_size(value)
    with pytest.raises(SpecError, match=r"^input_size must be"):
        as_size(value, name="input_size")


# ---------------------------------------------------------------------------------- round trip


@given(network_specs())
def test_json_round_trip(spec: NetworkSpec) -> None:
    text = spec.to_json()
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    assert NetworkSpec.from_json(text) == spec


@given(spec=network_specs())
def test_a_second_trip_gives_the_same_text(spec: NetworkSpec) -> None:
    assert NetworkSpec.from_json(spec.to_json()).to_json() == spec.to_json()


def test_a_skip_is_written_only_where_there_is_none() -> None:
    assert "skip" not in B0.to_json()
    without = dataclasses.replace(B0, stages=(dataclasses.replace(B0.stages[0], skip=False), *B0.stages[1:]))
    assert [stage.get("skip") for stage in without.to_dict()["stages"]] == [False] + [None] * 6
    # Recorded before `skip` was a field: what is stored under digests of specs is found again.
    digest = "ccdfdbf1fcf2c429c7fdcaaf95abbc42f519b480430d14f2becd7db0cca5caea"
    assert hashlib.sha256(B0.to_json().encode()).hexdigest() == digest


def test_defaults_may_be_left_out() -> None:
    document = {
        "name": "small",
        "stem": {"out_channels": 8},
        "stages": [{"block": "mbconv", "out_channels": 16}],
    }
    expected = NetworkSpec(
        name="small", stem=StemSpec(out_channels=8), stages=(StageSpec(block="mbconv", out_channels=16),)
    )
    assert NetworkSpec.from_dict(document) == expected


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "b0.json"
    path.write_text(B0.to_json(), encoding="utf-8")
    assert NetworkSpec.read(path) == NetworkSpec.read(str(path)) == B0


# ----------------------------------------------------------------------------- invalid documents

Change = Callable[[dict[str, Any]], object]


def _set(path: str, value: Any) -> Change:
    """A change that sets one value of a document, at a path such as ``stages[3].stride``."""
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)]

    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for step in steps[:-1]:
            target = target[step]
        target[steps[-1]] = value

    return change


def _drop(path: str) -> Change:
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)]

    def change(document: dict[str, Any]) -> None:
        target: Any = document
        for step in steps[:-1]:
            target = target[step]
        del target[steps[-1]]

    return change


INVALID: list[tuple[Change, str]] = [
    (_set("format", "phiscale-spec-9"), "format 'phiscale-spec-9' is not known; this version reads"),
    (_set("name", ""), "name must be a text of at least one character"),
    (_set("name", 3), "name must be a text of at least one character"),
    (_drop("name"), "name is missing; add it"),
    (_drop("stem"), "stem is missing; add it"),
    (_drop("stages"), "stages is missing; add it"),
    (_set("stages", []), "stages must hold at least one stage"),
    (_set("stages", "mbconv"), "stages must be a list of stages, got 'mbconv'"),
    (_set("stages", None), "stages must be a list of stages, got None"),
    (_set("stages[2]", "mbconv"), "stages[2] must be an object, got 'mbconv'"),
    (_drop("stages[2].block"), "stages[2].block is missing; add it"),
    (_drop("stages[0].out_channels"), "stages[0].out_channels is missing; add it"),
    (_set("stages[3].kernel_size", 4), "stages[3].kernel_size must be an odd integer of at least 1, got 4"),
    (_set("stages[3].kernel_size", "3"), "stages[3].kernel_size must be an odd integer"),
    (_set("stages[3].kernel_size", -1), "stages[3].kernel_size must be an odd integer"),
    (_set("stages[1].block", "conv"), "stages[1].block must be one of mbconv, depthwise_separable"),
    (_set("stages[1].block", []), "stages[1].block must be one of"),
    (_set("stages[4].num_layers", 0), "stages[4].num_layers must be an integer of at least 1, got 0"),
    (_set("stages[4].num_layers", 2.0), "stages[4].num_layers must be an integer of at least 1, got 2.0"),
    (_set("stages[4].stride", True), "stages[4].stride must be an integer of at least 1, got True"),
    (_set("stages[5].expand_ratio", 0), "stages[5].expand_ratio must be an integer of at least 1"),
    (_set("stages[6].out_channels", None), "stages[6].out_channels must be an integer of at least 1"),
    (_set("stages[6].se_ratio", 1.5), "stages[6].se_ratio must lie in [0, 1], got 1.5"),
    (_set("stages[6].se_ratio", math.nan), "stages[6].se_ratio must lie in [0, 1], got nan"),
    (_set("stages[6].scale_width", 1), "stages[6].scale_width must be true or false, got 1"),
    (_set("stages[6].scale_depth", "no"), "stages[6].scale_depth must be true or false, got 'no'"),
    (_set("stages[6].skip", 0), "stages[6].skip must be true or false, got 0"),
    (
        _set("stages[0]", {"block": "basic", "out_channels": 8, "skip": False}),
        "stages[0].skip belongs to mbconv; for block 'basic' it must be true",
    ),
    (_set("stages[0].kernal_size", 3), "stages[0].kernal_size is not a field; did you mean 'kernel_size'?"),
    (_set("stages[0].block", "basic"), "stages[0].se_ratio belongs to mbconv; for block 'basic'"),
    (_set("stages[1].block", "basic"), "stages[1].expand_ratio belongs to mbconv; for block 'basic'"),
    (
        _set("stages[0]", {"block": "bottleneck", "out_channels": 6}),
        "stages[0].out_channels of a bottleneck must be a multiple of 4, got 6",
    ),
    (_set("stem", 32), "stem must be an object, got 32"),
    (_set("stem.out_channels", 0), "stem.out_channels must be an integer of at least 1, got 0"),
    (_set("stem.kernel_size", 2), "stem.kernel_size must be an odd integer of at least 1, got 2"),
    (_set("stem.max_pool", 0), "stem.max_pool must be true or false, got 0"),
    (_set("stem.colour", "red"), "stem.colour is not a field; known: out_channels, kernel_size"),
    (_set("head.out_channels", -8), "head.out_channels must be an integer of at least 1, got -8"),
    (_set("head", [1280]), "head must be an object, got [1280]"),
    (_set("image_size", [224]), "image_size must be one or two positive integers"),
    (_set("image_size", [224, 0]), "image_size must be one or two positive integers"),
    (_set("image_size", True), "image_size must be one or two positive integers"),
    (_set("in_channels", 0), "in_channels must be an integer of at least 1, got 0"),
    (_set("num_classes", -1), "num_classes must be an integer of at least 0, got -1"),
    (_set("num_classes", "ten"), "num_classes must be an integer of at least 0, got 'ten'"),
    (_set("activation", "silu"), "activation must be one of swish, relu, relu6, hard_swish; got 'silu'"),
    (_set("padding", {}), "padding must be one of same, symmetric; got {}"),
    (_set("norm_eps", 0), "norm_eps must lie between 0 and 1, got 0; try 1e-3"),
    (_set("norm_momentum", 0), "norm_momentum must lie in (0, 1], got 0; TensorFlow's 0.99 is 0.01 here"),
    (_set("conv_bias", None), "conv_bias must be true or false, got None"),
    (_set("dropout", 1.0), "dropout must lie in [0, 1), got 1.0"),
    (_set("drop_path", -0.1), "drop_path must lie in [0, 1), got -0.1"),
    (_set("drop_path", "0.2"), "drop_path must lie in [0, 1), got '0.2'"),
    (_set("num_class", 10), "num_class is not a field; did you mean 'num_classes'?"),
]


@pytest.mark.parametrize(("change", "message"), INVALID, ids=[message for _, message in INVALID])
def test_an_invalid_document_names_the_field(change: Change, message: str, tmp_path: Path) -> None:
    document = json.loads(B0.to_json())
    change(document)
    with pytest.raises(SpecError) as caught:
        NetworkSpec.from_dict(document)
    assert str(caught.value).startswith(message)
    path = tmp_path / "network.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        NetworkSpec.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "1" * 5000, '{"name": ' + "9" * 5000 + "}", "\ufeff{}"]
)
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(SpecError, match=r"^not valid JSON: "):
        NetworkSpec.from_json(text)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"efficientnet_b0"', "true"])
def test_json_that_is_no_object(text: str) -> None:
    with pytest.raises(SpecError, match="a network spec must be a JSON object, got"):
        NetworkSpec.from_json(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.json", tmp_path, binary):
        with pytest.raises(SpecError, match=f"cannot read the spec {re.escape(str(path))}: "):
            NetworkSpec.read(path)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["mbconv", "basic", "same", "relu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_fuzz_any_json_gives_a_spec_or_a_spec_error(value: Any) -> None:
    try:
        spec = NetworkSpec.from_json(json.dumps(value))
    except SpecError:
        return
    assert isinstance(spec, NetworkSpec)


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    below: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [
        *([path] if path else []),
        *(found for key, item in below for found in _paths(item, (*path, key))),
    ]


@given(st.data())
def test_fuzz_one_value_of_a_valid_document(data: st.DataObject) -> None:
    document = json.loads(B0.to_json())
    *parents, last = data.draw(st.sampled_from(_paths(document)))
    target: Any = document
    for step in parents:
        target = target[step]
    target[last] = data.draw(JSON_VALUES)
    try:
        spec = NetworkSpec.from_json(json.dumps(document))
    except SpecError:
        return
    # What is accepted must be usable: blocks can be listed, and the document comes back.
    assert len(list(spec.blocks())) == spec.num_blocks if spec.num_blocks < 10_000 else True
    assert NetworkSpec.from_json(spec.to_json()) == spec


def test_constructors_check_too() -> None:
    with pytest.raises(SpecError, match="kernel_size must be an odd integer"):
        StageSpec(block="mbconv", out_channels=8, kernel_size=4)
    with pytest.raises(SpecError, match="out_channels must be an integer"):
        HeadSpec(out_channels=0)
    with pytest.raises(SpecError, match="stages must hold at least one stage"):
        dataclasses.replace(B0, stages=())
