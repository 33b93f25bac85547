from __future__ import annotations

import math
from dataclasses import asdict, replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from made_up import SMALL

from phiscale.errors import BudgetError
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, scale
from phiscale.scaling.small_images import for_image_size
from phiscale.search.arms import FINEST, MACS_TOLERANCE, REACH, Comparison, Direction, match_macs
from phiscale.spec import NetworkSpec

WAYS = [Direction(name=name, rule=RULES[name]) for name in ("depth", "width", "resolution", "paper", "dWr")]


def channels(spec: NetworkSpec) -> list[int]:
    return [spec.stem.out_channels, *(stage.out_channels for stage in spec.stages), spec.num_features]


def check(comparison: Comparison, ways: list[Direction], target: float) -> None:
    """What must hold for every comparison, from nothing but the specs."""
    baseline = comparison.baseline
    by_name = {way.name: way for way in ways}
    costs = [complexity(arm.spec).macs for arm in comparison.arms]
    assert costs == [arm.macs for arm in comparison.arms]
    assert max(costs) <= (1 + MACS_TOLERANCE) * min(costs)
    assert comparison.spread == pytest.approx(max(costs) / min(costs) - 1)
    assert all(target / (1 + REACH) <= cost <= target * (1 + REACH) for cost in costs)
    assert [arm.name for arm in comparison.arms if arm.name in by_name] == [
        way.name for way in ways if way.name not in comparison.missing
    ]
    assert len({replace(arm.spec, name="arm") for arm in comparison.arms}) == len(comparison.arms)
    for arm in comparison.arms:
        way = by_name[arm.name]
        assert scale(baseline, **asdict(arm.scaling)) == arm.spec
        start = scale(baseline, **asdict(way.start))
        assert round(1 / FINEST, 3) <= arm.fine_factor <= FINEST
        assert arm.fine is not None or arm.fine_factor == 1.0
        has_changed = {
            "depth": arm.spec.num_blocks != start.num_blocks,
            "width": channels(arm.spec) != channels(start),
            "resolution": arm.spec.image_size != start.image_size,
        }
        if way.lowest_phi == 0:
            assert all(has_changed[name] for name in way.swept)
        for name, changed in has_changed.items():
            if name not in way.swept:
                assert not changed or name == arm.fine


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v1", "mobilenet_v2", "resnet50"])
@pytest.mark.parametrize("growth", [2.0, 4.0])
def test_published_networks_have_every_arm(name: str, growth: float) -> None:
    baseline = get_spec(name)
    target = growth * complexity(baseline).macs
    comparison = match_macs(baseline, WAYS, target)
    assert not comparison.missing
    check(comparison, WAYS, target)


@st.composite
def small_networks(draw: st.DrawFn) -> NetworkSpec:
    """Baselines of 1 to 3 million multiply-adds at 28 to 48 px, such as a laptop's study has."""
    blocks = draw(st.sampled_from([(1, 2, 2), (1, 2, 3), (2, 2, 2)]))
    widths = draw(st.sampled_from([(16, 24, 40), (8, 16, 32), (16, 32, 64)]))
    stages = tuple(
        replace(stage, num_layers=layers, out_channels=width, expand_ratio=1 if index == 0 else 2)
        for index, (stage, layers, width) in enumerate(zip(SMALL.stages, blocks, widths, strict=True))
    )
    assert SMALL.head is not None
    network = replace(
        SMALL,
        stem=replace(SMALL.stem, out_channels=widths[0], stride=draw(st.sampled_from([1, 2]))),
        stages=stages,
        head=replace(SMALL.head, out_channels=draw(st.sampled_from([128, 160]))),
    )
    fitted = for_image_size(network, draw(st.integers(28, 48)), min_map=3)
    assume(1e6 <= complexity(fitted).macs <= 3e6)
    return fitted


@given(small_networks(), st.floats(1.5, 6.0))
@example(SMALL, 4.0)
@settings(max_examples=8)
def test_arms_of_small_networks_cost_the_same(baseline: NetworkSpec, growth: float) -> None:
    check_small(baseline, growth)


@pytest.mark.slow
@given(small_networks(), st.floats(1.2, 10.0))
@settings(max_examples=200)
def test_arms_of_many_small_networks_cost_the_same(baseline: NetworkSpec, growth: float) -> None:
    check_small(baseline, growth)


def check_small(baseline: NetworkSpec, growth: float) -> None:
    target = growth * complexity(baseline).macs
    try:
        comparison = match_macs(baseline, WAYS, target)
    except BudgetError:
        return
    check(comparison, WAYS, target)


def test_small_networks_mostly_have_all_three_and_each_one_at_four_times_the_cost() -> None:
    found = [
        match_macs(network, WAYS[:4], 4.0 * complexity(network).macs)
        for network in (for_image_size(SMALL, side) for side in (28, 32, 36, 40, 44, 48))
    ]
    assert all(not comparison.missing for comparison in found)


def test_width_is_swept_from_other_depths_and_resolutions() -> None:
    ways = [
        Direction(
            name=f"{d}, {r}",
            rule=RULES["width"],
            start=Scaling(depth=d, resolution=r),
            lowest_phi=-2.0,
        )
        for d, r in ((1.0, 1.0), (1.0, 1.3), (2.0, 1.0), (2.0, 1.3))
    ]
    target = 3.0 * complexity(SMALL).macs
    comparison = match_macs(SMALL, ways, target)
    check(comparison, ways, target)
    assert len(comparison.arms) == 4
    arms = {arm.name: arm for arm in comparison.arms}
    assert arms["2.0, 1.0"].spec.num_blocks == 2 * SMALL.num_blocks
    assert arms["2.0, 1.3"].scaling.width < arms["1.0, 1.0"].scaling.width


def test_a_second_factor_is_taken_only_where_rounding_leaves_a_gap() -> None:
    b0 = get_spec("efficientnet_b0")
    assert all(arm.fine is None for arm in match_macs(b0, WAYS, 4 * complexity(b0).macs).arms)
    # All stages get their second layer at once: between one and two times the layers lies nothing.
    layers = replace(SMALL, stages=tuple(replace(stage, num_layers=1) for stage in SMALL.stages))
    wanted = 1.5 * complexity(scale(layers, depth=2.0)).macs
    ways = WAYS[:3]
    comparison = match_macs(layers, ways, wanted, reach=0.05)
    check(comparison, ways, wanted)
    assert {arm.fine for arm in comparison.arms} & {"width", "resolution"}


def test_a_rule_that_rounds_to_another_arms_network_does_not_count() -> None:
    # α = 1.0001 deepens every stage, and the others change nothing: that is depth scaling.
    barely = Direction(name="barely", rule=CompoundRule(alpha=1.0001, beta=1.00001, gamma=1.00001))
    target = float(complexity(scale(SMALL, depth=1.0001)).macs)
    comparison = match_macs(SMALL, [*WAYS[:3], barely], target)
    assert "barely" in comparison.missing
    assert comparison.arm("barely") is None


def test_a_direction_that_cannot_grow_is_reported() -> None:
    fixed = replace(SMALL, stages=tuple(replace(stage, scale_depth=False) for stage in SMALL.stages))
    comparison = match_macs(fixed, WAYS[:3], 3.0 * complexity(fixed).macs)
    assert list(comparison.missing) == ["depth"]
    assert "depth has no network near" in comparison.missing["depth"]


def test_a_start_that_costs_too_much_is_reported() -> None:
    deep = Direction(name="deep", rule=RULES["width"], start=Scaling(depth=8.0))
    comparison = match_macs(SMALL, [*WAYS[1:3], deep], 2.0 * complexity(SMALL).macs)
    assert "costs" in comparison.missing["deep"]
    assert "at the least" in comparison.missing["deep"]


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf])
def test_a_target_must_be_a_positive_number(target: float) -> None:
    with pytest.raises(BudgetError, match="positive number"):
        match_macs(SMALL, WAYS, target)


def test_nothing_to_compare_is_an_error_with_the_reasons() -> None:
    with pytest.raises(BudgetError, match=r"no two of depth, width.*at the least.*choose another budget"):
        match_macs(SMALL, WAYS[:2], 0.1 * complexity(SMALL).macs)


def test_the_same_question_has_the_same_answer() -> None:
    target = 3.3 * complexity(SMALL).macs
    assert match_macs(SMALL, WAYS, target) == match_macs(SMALL, WAYS, target)
