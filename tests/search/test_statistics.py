from __future__ import annotations

import math
import random

import pytest

from phiscale.errors import require
from phiscale.search.statistics import confidence_interval, paired_difference


def test_the_interval_is_students() -> None:
    values = [0.811, 0.824, 0.802, 0.830, 0.817]
    expected = require("scipy.stats", extra="search").ttest_1samp(values, 0.0).confidence_interval(0.9)
    interval = confidence_interval(values, 0.9)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert interval.mean == pytest.approx(math.fsum(values) / 5)
    assert (interval.count, interval.level) == (5, 0.9)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(2000):
        interval = confidence_interval([rng.gauss(0.7, 0.01) for _ in range(3)])
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 0.7 <= interval.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)  # four standard errors


def test_one_value_says_nothing_of_the_spread() -> None:
    interval = confidence_interval([0.5])
    assert (interval.mean, interval.low, interval.high, interval.std) == (0.5, None, None, None)


def test_pairs_take_out_what_the_seeds_share() -> None:
    shared = [0.1, 0.5, 0.9]
    paired = paired_difference([value + 0.01 for value in shared], shared)
    assert paired.mean == pytest.approx(0.01)
    assert paired.std == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="zip"):
        paired_difference([0.1], [0.1, 0.2])


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([math.nan], 0.95), ([0.1, 0.2], 1.0)])
def test_what_has_no_interval(values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match=r"value|level"):
        confidence_interval(values, level)
