from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phiscale.errors import SpecError
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, compound_scale, get_rule, scale
from phiscale.scaling.rounding import round_channels, round_repeats
from phiscale.spec import NetworkSpec
from spec_strategies import network_specs

B0 = get_spec("efficientnet_b0")
PHIS = st.floats(-4, 6)

# ------------------------------------------------------------------------------------- factors


@given(PHIS, st.sampled_from(sorted(RULES)))
def test_factors_are_powers(phi: float, name: str) -> None:
    rule = RULES[name]
    factors = rule.at(phi)
    assert factors.depth == pytest.approx(rule.alpha**phi)
    assert factors.width == pytest.approx(rule.beta**phi)
    assert factors.resolution == pytest.approx(rule.gamma**phi)
    assert factors.macs_growth == pytest.approx(rule.growth**phi)


def test_rules_as_published() -> None:
    assert RULES["paper"] == CompoundRule(alpha=1.2, beta=1.1, gamma=1.15)
    assert RULES["paper"].growth == pytest.approx(1.920, abs=5e-4)
    # Dollár et al.: exponents over d, w² and r² that sum to one, for a growth of two.
    for name, exponents in {
        "uniform": (1 / 3, 1 / 3, 1 / 3),
        "dWr": (0.1, 0.8, 0.1),
        "depth": (1, 0, 0),
        "width": (0, 1, 0),
        "resolution": (0, 0, 1),
    }.items():
        rule = RULES[name]
        logs = (math.log2(rule.alpha), 2 * math.log2(rule.beta), 2 * math.log2(rule.gamma))
        assert logs == pytest.approx(exponents), name
        assert rule.growth == pytest.approx(2.0)


@pytest.mark.parametrize("name", [name for name in RULES if name != "resolution"])
def test_without_resolution_keeps_growth_and_proportion(name: str) -> None:
    rule, fixed = RULES[name], RULES[name].without_resolution()
    assert fixed.gamma == 1.0
    assert fixed.growth == pytest.approx(rule.growth)
    assert math.log(fixed.alpha) * math.log(rule.beta) == pytest.approx(
        math.log(fixed.beta) * math.log(rule.alpha)
    )


def test_without_resolution_needs_something_else() -> None:
    with pytest.raises(SpecError, match="grows resolution only"):
        RULES["resolution"].without_resolution()


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ((0.9, 1.1, 1.1), "alpha must be at least 1, got 0.9; shrink with a negative phi"),
        ((1.2, 0, 1.1), "beta must be at least 1, got 0"),
        ((1.2, 1.1, math.nan), "gamma must be at least 1, got nan"),
        ((1.2, 1.1, math.inf), "gamma must be at least 1, got inf"),
        ((True, 1.1, 1.1), "alpha must be a number, got True"),
        (("1.2", 1.1, 1.1), "alpha must be a number, got '1.2'"),
        ((1, 1.0, 1), "alpha, beta and gamma are all 1: nothing would grow"),
    ],
)
def test_rules_are_checked(factors: tuple[Any, Any, Any], message: str) -> None:
    alpha, beta, gamma = factors
    with pytest.raises(SpecError, match="^" + re.escape(message)):
        CompoundRule(alpha=alpha, beta=beta, gamma=gamma)


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "2", None, True])
@pytest.mark.parametrize("name", ["depth", "width", "resolution"])
def test_scalings_are_checked(name: str, factor: Any) -> None:
    with pytest.raises(SpecError, match=f"^{name} must be a "):
        Scaling(**{name: factor})
    with pytest.raises(SpecError, match=f"^{name} must be a "):
        scale(B0, **{name: factor})


@pytest.mark.parametrize("phi", [math.nan, math.inf, -math.inf, 1e6, -1e9, 10**400])
def test_a_phi_that_nothing_can_be_scaled_by(phi: float) -> None:
    with pytest.raises(SpecError):
        compound_scale(B0, phi=phi)


@pytest.mark.parametrize("name", ["depth", "width", "resolution"])
def test_factors_near_the_end_of_floats(name: str) -> None:
    with pytest.raises(SpecError, match=f"{name} 1e\\+308 is too large"):
        scale(B0, **{name: 1e308})


# --------------------------------------------------------------------------------------- rules


def test_get_rule_by_name_text_and_file(tmp_path: Path) -> None:
    own = CompoundRule(alpha=1.3, beta=1.05, gamma=1.1)
    path = tmp_path / "rule.json"
    path.write_text(
        json.dumps({"alpha": 1.3, "beta": 1.05, "gamma": 1.1, "source": "a search"}), encoding="utf-8"
    )
    assert (
        get_rule("1.3,1.05,1.1")
        == get_rule(" 1.3, 1.05 ,1.1")
        == get_rule(path)
        == get_rule(str(path))
        == own
    )
    assert get_rule(own) is own
    for name, rule in RULES.items():
        assert get_rule(name) is rule


@pytest.mark.parametrize("text", ["papers", "1.2,1.1", "1.2,1.1,1.15,1", "a,b,c", "", ",,"])
def test_get_rule_lists_what_it_takes(text: str) -> None:
    with pytest.raises(
        SpecError, match="is none of paper, uniform, dWr, depth, width, resolution; or give alpha"
    ):
        get_rule(text)


@pytest.mark.parametrize("text", ["0.5,1,1", "nan,1,1", "1,1,1"])
def test_get_rule_checks_the_values(text: str) -> None:
    with pytest.raises(SpecError, match="alpha"):
        get_rule(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no rule"),
        ("[1.2, 1.1, 1.15]", "is no rule"),
        (
            '{"alpha": 1.2, "beta": 1.1}',
            "is no rule (KeyError('gamma')); it must be a JSON object with alpha",
        ),
        ('{"alpha": 0.5, "beta": 1.1, "gamma": 1}', "alpha must be at least 1, got 0.5"),
        ('{"alpha": "x", "beta": 1.1, "gamma": 1}', "alpha must be a number, got 'x'"),
        ("[" * 100_000, "is no rule"),
    ],
)
def test_get_rule_from_a_bad_file(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=f"^{re.escape(str(path))}.*{re.escape(message)}"):
        get_rule(path)


def test_get_rule_from_no_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no rule"):
        get_rule(tmp_path / "missing.json")


# --------------------------------------------------------------------------------------- scaling


@given(network_specs(), st.floats(0.1, 4), st.floats(0.1, 4), st.floats(0.5, 4))
def test_scale_applies_the_rounding_to_every_part(spec: NetworkSpec, d: float, w: float, r: float) -> None:
    before = spec.to_json()
    sides = [round(side * r) for side in spec.image_size]
    if min(sides) < 1:
        with pytest.raises(SpecError, match="leaves no pixel"):
            scale(spec, depth=d, width=w, resolution=r)
        return
    scaled = scale(spec, depth=d, width=w, resolution=r)
    assert spec.to_json() == before
    assert list(scaled.image_size) == sides
    for old, new in zip(spec.stages, scaled.stages, strict=True):
        layers = round_repeats(old.num_layers, d) if old.scale_depth else old.num_layers
        channels = round_channels(old.out_channels, w) if old.scale_width else old.out_channels
        assert (new.num_layers, new.out_channels) == (layers, channels)
        assert (new.block, new.kernel_size, new.stride) == (old.block, old.kernel_size, old.stride)
        assert (new.expand_ratio, new.se_ratio, new.skip) == (old.expand_ratio, old.se_ratio, old.skip)
    ends = [(spec.stem, scaled.stem), (spec.head, scaled.head)]
    for part, scaled_part in ends:
        if part is None or scaled_part is None:
            assert part is scaled_part
            continue
        expected = round_channels(part.out_channels, w) if part.scale_width else part.out_channels
        assert scaled_part.out_channels == expected
    kept = (
        "in_channels",
        "num_classes",
        "activation",
        "padding",
        "norm_eps",
        "dropout",
        "drop_path",
        "conv_bias",
    )
    assert [getattr(scaled, name) for name in kept] == [getattr(spec, name) for name in kept]


@given(PHIS, st.sampled_from(sorted(RULES)))
def test_compound_scale_is_scale_by_the_rules_factors(phi: float, name: str) -> None:
    factors = RULES[name].at(phi)
    expected = scale(B0, depth=factors.depth, width=factors.width, resolution=factors.resolution)
    scaled = compound_scale(B0, phi=phi, rule=RULES[name])
    assert (scaled.stem, scaled.stages, scaled.head) == (expected.stem, expected.stages, expected.head)
    assert scaled.image_size == expected.image_size


def test_phi_of_zero_is_the_baseline() -> None:
    scaled = compound_scale(B0, phi=0.0)
    assert NetworkSpec.from_dict({**scaled.to_dict(), "name": B0.name}) == B0


def test_negative_phi_shrinks() -> None:
    small = compound_scale(B0, phi=-2.0)
    assert small.image_size == (169, 169)
    assert small.num_blocks < B0.num_blocks
    assert complexity(small).macs < complexity(B0).macs / 2


@given(PHIS, PHIS, st.sampled_from(sorted(RULES)))
def test_nothing_shrinks_as_phi_grows(one: float, other: float, name: str) -> None:
    small, large = (compound_scale(B0, phi=phi, rule=RULES[name]) for phi in sorted((one, other)))
    assert small.image_size <= large.image_size
    for a, b in zip(small.stages, large.stages, strict=True):
        assert a.num_layers <= b.num_layers
        assert a.out_channels <= b.out_channels


@pytest.mark.parametrize("phi", [1, 2, 3, 4])
def test_macs_grow_by_the_rules_growth(phi: int) -> None:
    # Layers are rounded up, so the counted growth lies above; the paper asks for about 2^φ.
    ratio = complexity(compound_scale(B0, phi=phi)).macs / complexity(B0).macs
    assert 1.92**phi <= ratio < 1.35 * 1.92**phi


def test_a_non_square_baseline_keeps_its_aspect() -> None:
    wide = NetworkSpec.from_dict({**B0.to_dict(), "image_size": [128, 256]})
    assert compound_scale(wide, phi=2.0).image_size == (169, 339)
