from __future__ import annotations

import math

import pytest
from hidden_optimum import SPACE, TEMPLATE, goal
from hypothesis import given
from hypothesis import strategies as st

from phiscale.errors import BudgetError
from phiscale.scaling.budget import Budget
from phiscale.scaling.complexity import complexity
from phiscale.search.reward import Goal
from phiscale.spec import NetworkSpec

accuracies = st.floats(0.01, 1.0)
costs = st.floats(1.0, 1e10)


def test_at_the_target_the_reward_is_the_accuracy() -> None:
    assert Goal(limits=Budget(macs=4e8)).reward(0.773, 4e8) == 0.773


def test_twice_the_cost_must_be_five_per_cent_better() -> None:
    # Tan et al. 2019, section 3: "doubling the latency usually brings about 5 % relative accuracy gain".
    same = Goal(limits=Budget(macs=4e8))
    assert same.reward(0.7, 4e8) / same.reward(0.7, 8e8) == pytest.approx(2**0.07)
    assert 1.049 < 2**0.07 < 1.05


@given(accuracies, accuracies, costs, costs)
def test_more_accuracy_and_less_cost_never_lower_the_reward(a: float, b: float, c: float, d: float) -> None:
    one = Goal(limits=Budget(macs=1e6))
    assert one.reward(max(a, b), min(c, d)) >= one.reward(min(a, b), max(c, d))


def test_costs_are_counted_and_compared_with_every_limit() -> None:
    counted = complexity(TEMPLATE)
    one = Goal(limits=Budget(macs=2.0 * counted.macs, params=counted.params / 2))
    needed = one.costs(TEMPLATE)
    assert needed == {"macs": counted.macs, "params": counted.params}
    assert one.violations(needed) == {"macs": -0.5, "params": 1.0}
    assert not one.fits(needed)
    assert one.target == 2 * counted.macs


def test_latency_is_measured_only_within_the_counted_limits() -> None:
    measured: list[NetworkSpec] = []

    def measure(spec: NetworkSpec) -> float:
        measured.append(spec)
        return 3.0

    most = complexity(TEMPLATE).macs - 1
    one = Goal(limits=Budget(macs=most, latency_ms=4.0), cost="latency_ms", measure=measure)
    assert set(one.costs(TEMPLATE)) == {"macs"}
    smallest = SPACE.smallest()
    assert one.costs(smallest)["latency_ms"] == 3.0
    assert measured == [smallest]
    assert one.target == 4.0


@pytest.mark.parametrize("answer", [0.0, -1.0, math.nan, math.inf])
def test_a_measurement_must_be_a_time(answer: float) -> None:
    one = Goal(limits=Budget(latency_ms=4.0), cost="latency_ms", measure=lambda spec: answer)
    with pytest.raises(BudgetError, match="measure must return milliseconds"):
        one.costs(TEMPLATE)


def test_a_goal_must_be_complete() -> None:
    with pytest.raises(BudgetError, match="give a limit on macs"):
        Goal(limits=Budget(params=1e6))
    with pytest.raises(BudgetError, match="needs measure="):
        Goal(limits=Budget(macs=1e6, latency_ms=1.0))
    with pytest.raises(BudgetError, match="at most 0"):
        goal(exponent=0.07)
    with pytest.raises(BudgetError, match="cost must be one of"):
        Goal(limits=Budget(params=1e6), cost="params")  # type: ignore[arg-type]
