from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from phiscale.errors import SpecError
from phiscale.scaling.rounding import round_channels, round_repeats

# Small counts more often: only there does rounding down lose a tenth.
CHANNELS = st.integers(1, 40) | st.integers(1, 4096)
FACTORS = st.floats(0.01, 10)


@given(CHANNELS, FACTORS, st.sampled_from([4, 8, 16]))
def test_channels_follow_the_rule(channels: int, width: float, divisor: int) -> None:
    assume(width != 1.0)
    rounded = round_channels(channels, width, divisor=divisor)
    exact = Fraction(channels) * Fraction(width)
    assert rounded % divisor == 0
    assert rounded >= divisor
    # Floats decide the borders of the rule, so a hair is allowed there.
    hair = Fraction(1, 10**9) * exact
    assert rounded >= Fraction(9, 10) * exact - hair
    nearest = max(divisor, math.floor(exact / divisor + Fraction(1, 2)) * divisor)
    if nearest < Fraction(9, 10) * exact - hair:
        assert rounded == nearest + divisor
    elif nearest > Fraction(9, 10) * exact + hair and abs(exact % divisor - Fraction(divisor, 2)) > hair:
        assert rounded == nearest


@given(CHANNELS, FACTORS, FACTORS)
def test_channels_never_shrink_as_width_grows(channels: int, one: float, other: float) -> None:
    # A factor of exactly 1 changes nothing, so it keeps counts that are no multiple of 8.
    assume(channels % 8 == 0 or 1.0 not in (one, other))
    narrow, wide = sorted((one, other))
    assert round_channels(channels, narrow) <= round_channels(channels, wide)


@pytest.mark.parametrize(
    ("exact", "rounded"),
    [
        (17.7, 16),
        (17.8, 24),
        (19.9, 24),
        (26.6, 24),
        (26.7, 32),
        (27.9, 32),
        (35.5, 32),
        (35.6, 40),
        (1.0, 8),
    ],
)
def test_rounding_down_never_loses_a_tenth(exact: float, rounded: int) -> None:
    assert round_channels(10, exact / 10) == rounded


@given(CHANNELS)
def test_a_width_of_one_changes_nothing(channels: int) -> None:
    assert round_channels(channels, 1.0) == channels


@pytest.mark.parametrize(
    ("width", "channels"),
    [
        (1.1, [32, 16, 24, 48, 88, 120, 208, 352, 1408]),
        (1.2, [40, 24, 32, 48, 96, 136, 232, 384, 1536]),
        (1.4, [48, 24, 32, 56, 112, 160, 272, 448, 1792]),
        (1.6, [48, 24, 40, 64, 128, 176, 304, 512, 2048]),
        (1.8, [56, 32, 40, 72, 144, 200, 344, 576, 2304]),
        (2.0, [64, 32, 48, 80, 160, 224, 384, 640, 2560]),
    ],
)
def test_channels_of_the_published_family(width: float, channels: list[int]) -> None:
    b0 = [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    assert [round_channels(c, width) for c in b0] == channels


@pytest.mark.parametrize(
    ("depth", "repeats"),
    [
        (1.1, [2, 3, 3, 4, 4, 5, 2]),
        (1.4, [2, 3, 3, 5, 5, 6, 2]),
        (1.8, [2, 4, 4, 6, 6, 8, 2]),
        (2.6, [3, 6, 6, 8, 8, 11, 3]),
        (3.1, [4, 7, 7, 10, 10, 13, 4]),
        (0.5, [1, 1, 1, 2, 2, 2, 1]),
    ],
)
def test_repeats_of_the_published_family(depth: float, repeats: list[int]) -> None:
    assert [round_repeats(n, depth) for n in (1, 2, 2, 3, 3, 4, 1)] == repeats


@given(st.integers(1, 100), FACTORS, FACTORS)
def test_repeats_are_the_ceiling_and_monotone(repeats: int, one: float, other: float) -> None:
    shallow, deep = sorted((one, other))
    assert round_repeats(repeats, shallow) <= round_repeats(repeats, deep)
    rounded = round_repeats(repeats, deep)
    assert rounded >= 1
    assert rounded - 1 < repeats * deep * (1 + 1e-12)
    assert rounded >= repeats * deep * (1 - 1e-12)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf, 1e308])
def test_factors_that_nothing_can_be_scaled_by(factor: float) -> None:
    with pytest.raises(SpecError, match="width"):
        round_channels(32, factor)
    with pytest.raises(SpecError, match="depth"):
        round_repeats(4, factor)
