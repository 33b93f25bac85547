from __future__ import annotations

import re
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscale.errors import SpecError
from phiscale.families import get_spec, list_specs
from phiscale.scaling.complexity import MAX_BLOCKS, complexity
from phiscale.scaling.compound import scale
from phiscale.scaling.tape import tape
from phiscale.spec import NetworkSpec, StageSpec
from spec_strategies import network_specs

B0 = get_spec("efficientnet_b0")
UNITS = {"M": Decimal(10**6), "G": Decimal(10**9)}


def as_published(count: int, published: str) -> str:
    """A count, rounded to the digits and unit of a published number."""
    unit = published[-1]
    digits = Decimal(published[:-1])
    return f"{(count / UNITS[unit]).quantize(digits, rounding=ROUND_HALF_UP)}{unit}"


# --------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize("name", list_specs("efficientnet"))
def test_the_published_table(name: str, golden: dict[str, Any]) -> None:
    row, cost = golden["efficientnet"][name], complexity(get_spec(name))
    if row["params"] is not None:
        assert cost.params == row["params"]
    assert as_published(cost.macs, row["macs"]) == row["macs"]
    assert as_published(cost.activations, row["activations"]) == row["activations"]


def test_b0_exactly(golden: dict[str, Any]) -> None:
    assert complexity(B0).macs == golden["efficientnet_b0_macs"]


@pytest.mark.parametrize("row", range(4))
def test_one_dimension_against_all_three(row: int, golden: dict[str, Any]) -> None:
    wanted = golden["efficientnet_b0_scaled"][row]
    scaled = scale(B0, **{name: wanted[name] for name in ("depth", "width", "resolution")})
    assert scaled.image_size == (wanted["side"], wanted["side"])
    assert as_published(complexity(scaled).macs, wanted["macs"]) == wanted["macs"]


@pytest.mark.parametrize("name", [*list_specs("mobilenet"), *list_specs("resnet")])
def test_the_other_baselines(name: str, golden: dict[str, Any]) -> None:
    cost, macs = complexity(get_spec(name)), golden["macs_of_others"][name]
    assert cost.params == golden["params_of_others"][name]
    assert as_published(cost.macs, macs) == macs


def test_lite_costs_what_b0_does_without_squeeze_excite() -> None:
    # The 407M that the authors publish for Lite0 come from a counter that counts more than convolutions
    # and the classifier. What must hold here: Lite0 is B0 less its squeeze-excite, to the multiply-add.
    lite = complexity(get_spec("efficientnet_lite0"))
    bare = replace(B0, stages=tuple(replace(stage, se_ratio=0.0) for stage in B0.stages))
    assert lite.macs == complexity(bare).macs
    squeeze = sum(2 * block.expanded_channels * block.se_channels for block in B0.blocks())
    assert complexity(B0).macs - lite.macs == squeeze
    assert 0.94 * 407e6 < lite.macs < 407e6


def test_table_1_of_the_paper(golden: dict[str, Any]) -> None:
    rows = complexity(B0).stages
    for row, wanted in zip(rows, golden["efficientnet_b0_table_1"], strict=True):
        assert row.operator.removesuffix(", se0.25") == wanted["operator"]
        assert row.input_size == (wanted["input"], wanted["input"])
        assert (row.out_channels, row.num_layers, row.stride) == (
            wanted["channels"],
            wanted["layers"],
            wanted["stride"],
        )


def test_the_share_of_each_kind_of_convolution() -> None:
    # PEERS counts 0.339G in 1×1 convolutions, 0.035G in depthwise ones and 0.011G in the stem.
    first = complexity(B0).stages[0]
    assert first.macs == 112 * 112 * 3 * 3 * 3 * 32
    assert first.activations == 112 * 112 * 32
    assert first.params == 3 * 3 * 3 * 32 + 2 * 32


# --------------------------------------------------------------------------------------- relations


@given(network_specs())
def test_stages_sum_to_the_totals(spec: NetworkSpec) -> None:
    cost = complexity(spec)
    assert len(cost.stages) == len(spec.stages) + 2
    for name in ("params", "macs", "activations"):
        assert sum(getattr(stage, name) for stage in cost.stages) == getattr(cost, name)


@given(network_specs())
def test_each_stage_begins_where_the_one_before_ends(spec: NetworkSpec) -> None:
    rows = complexity(spec).stages
    assert rows[0].input_size == spec.image_size
    for before, after in pairwise(rows):
        assert after.input_size == tuple(-(-side // before.stride) for side in before.input_size)


@given(network_specs(), st.integers(1, 16))
def test_the_batch_changes_memory_only(spec: NetworkSpec, batch_size: int) -> None:
    one, many = complexity(spec), complexity(spec, batch_size)
    assert (one.params, one.macs, one.activations, one.file_bytes, one.stages) == (
        many.params,
        many.macs,
        many.activations,
        many.file_bytes,
        many.stages,
    )
    assert one.inference_bytes <= many.inference_bytes <= batch_size * one.inference_bytes
    assert one.training_bytes <= many.training_bytes <= batch_size * one.training_bytes


@given(network_specs(), st.integers(0, 3))
def test_each_state_of_the_optimiser_costs_four_bytes_a_parameter(spec: NetworkSpec, states: int) -> None:
    plain = complexity(spec, optimizer_states=0)
    kept = complexity(spec, optimizer_states=states)
    assert kept.training_bytes - plain.training_bytes == 4 * states * plain.params
    assert kept.inference_bytes == plain.inference_bytes


@given(network_specs())
def test_training_needs_more_than_inference_and_that_more_than_the_weights(spec: NetworkSpec) -> None:
    cost = complexity(spec, optimizer_states=0)
    assert 4 * cost.params < cost.inference_bytes
    assert cost.training_bytes > 8 * cost.params


def test_a_skip_costs_an_addition_and_nothing_else() -> None:
    without = replace(B0, stages=tuple(replace(stage, skip=False) for stage in B0.stages))
    ops, others = (list(tape(spec, spec.image_size)) for spec in (B0, without))
    assert [op for op in ops if op.kind != "add"] == others
    assert len(ops) - len(others) == sum(block.has_skip for block in B0.blocks())
    one, other = complexity(B0), complexity(without)
    assert (one.params, one.macs, one.activations) == (other.params, other.macs, other.activations)


def test_image_size_is_an_argument() -> None:
    cost = complexity(B0, image_size=(97, 131))
    assert cost.image_size == (97, 131)
    assert cost == complexity(replace(B0, image_size=(97, 131)))
    assert complexity(B0, image_size=128) == complexity(B0, image_size=(128, 128))


def test_no_classifier_and_no_head() -> None:
    bare = complexity(replace(B0, num_classes=0))
    assert complexity(B0).params - bare.params == 1280 * 1000 + 1000
    assert bare.stages[-1].operator == "Conv1x1, pool"
    assert complexity(get_spec("resnet18")).stages[-1].operator == "pool, FC"
    assert complexity(get_spec("resnet18")).stages[0].operator == "Conv7x7, max pool"


@pytest.mark.parametrize(
    ("block", "operator"),
    [
        ({"block": "mbconv", "expand_ratio": 4, "kernel_size": 7, "se_ratio": 0.5}, "MBConv4, k7x7, se0.5"),
        ({"block": "mbconv"}, "MBConv1, k3x3"),
        ({"block": "mbconv", "se_ratio": 0.25, "skip": False}, "MBConv1, k3x3, se0.25, no skip"),
        ({"block": "depthwise_separable"}, "Separable, k3x3"),
        ({"block": "bottleneck", "kernel_size": 5}, "Bottleneck, k5x5"),
        ({"block": "basic"}, "Basic, k3x3"),
    ],
)
def test_operators_are_named_as_in_the_paper(block: dict[str, Any], operator: str) -> None:
    spec = replace(B0, stages=(StageSpec(out_channels=16, **block),))
    assert complexity(spec).stages[1].operator == operator


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an integer of at least 1, got True"),
        ({"batch_size": 2.0}, "batch_size must be an integer of at least 1, got 2.0"),
        ({"image_size": 0}, "image_size must be one or two positive integers"),
        ({"image_size": (3, 4, 5)}, "image_size must be one or two positive integers"),
        ({"optimizer_states": -1}, "optimizer_states must be an integer of at least 0, got -1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        complexity(B0, **arguments)


def test_a_network_that_nobody_can_build_is_not_counted() -> None:
    endless = scale(B0, depth=1e9)
    with pytest.raises(SpecError, match=f"blocks; at most {MAX_BLOCKS:,} are counted: scale it less"):
        complexity(endless)
