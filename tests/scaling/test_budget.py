from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest

from phiscale.errors import BudgetError
from phiscale.families import get_spec
from phiscale.scaling.budget import LIMITS, Budget, BudgetFit, solve_budget
from phiscale.scaling.complexity import Complexity, complexity
from phiscale.scaling.compound import RULES, CompoundRule, compound_scale
from phiscale.spec import NetworkSpec

B0 = get_spec("efficientnet_b0")
COUNTED = [name for name in LIMITS if name != "latency_ms"]
BASELINES = {
    "b0": B0,
    "b3": get_spec("efficientnet_b3"),
    "lite0": get_spec("efficientnet_lite0"),
    "mobilenet_v1": get_spec("mobilenet_v1"),
    "mobilenet_v2": get_spec("mobilenet_v2"),
    "resnet18": get_spec("resnet18"),
    "resnet50": get_spec("resnet50"),
    "wide image": replace(B0, image_size=(128, 320)),
    "tall image, one channel": replace(get_spec("mobilenet_v2"), image_size=(257, 130), in_channels=1),
}


def at(spec: NetworkSpec, phi: float, rule: CompoundRule) -> NetworkSpec:
    """The network at φ, with a name that does not depend on φ."""
    return replace(compound_scale(spec, phi=phi, rule=rule), name=spec.name)


def grid(
    spec: NetworkSpec, rule: CompoundRule, low: float, high: float, points: int
) -> Iterator[NetworkSpec]:
    """The different networks at evenly spread φ, in order."""
    before = None
    for index in range(points):
        network = at(spec, low + (high - low) * index / (points - 1), rule)
        if network != before:
            yield network
        before = network


def network_above(spec: NetworkSpec, rule: CompoundRule, phi: float) -> NetworkSpec:
    """The next network on a rule after the one at φ, by bisection over φ alone."""
    here = at(spec, phi, rule)
    step = 1e-6
    while at(spec, phi + step, rule) == here:
        step *= 2
    low, high = phi, phi + step
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if at(spec, middle, rule) == here else (low, middle)
    return at(spec, high, rule)


# ------------------------------------------------------------------------- against brute force


def random_problem(seed: int) -> tuple[NetworkSpec, CompoundRule, dict[str, float]]:
    """A baseline, a rule, and one to three limits around a network that lies on the rule."""
    rng = random.Random(seed)
    spec = BASELINES[rng.choice(sorted(BASELINES))]
    name = rng.choice(sorted(RULES))
    limited = rng.sample(COUNTED, rng.randint(1, 3))
    if name == "resolution" and set(limited) <= {"params", "file_bytes"}:
        limited.append("macs")
    known = complexity(at(spec, rng.uniform(-1.5, 2.0), RULES[name]))
    return spec, RULES[name], {limit: getattr(known, limit) * rng.uniform(1.0, 1.5) for limit in limited}


def fits(cost: Complexity, limits: dict[str, float]) -> bool:
    return all(getattr(cost, name) <= limit for name, limit in limits.items())


@pytest.mark.parametrize("seed", range(50))
def test_brute_force_finds_nothing_larger(seed: int) -> None:
    spec, rule, limits = random_problem(seed)
    fit = solve_budget(spec, Budget(**limits), rule=rule)
    assert fits(fit.complexity, limits)
    size = fit.complexity.macs + fit.complexity.params
    fitting = 0
    for network in grid(spec, rule, fit.phi - 0.25, fit.phi + 2.5, 2_000):
        cost = complexity(network)
        if fits(cost, limits):
            fitting += 1
            assert cost.macs + cost.params <= size, network
    assert fitting > 0


@pytest.mark.parametrize("seed", range(50))
def test_the_answer_is_described_as_it_is(seed: int) -> None:
    spec, rule, limits = random_problem(seed)
    fit = solve_budget(spec, Budget(**limits), rule=rule)
    assert replace(fit.spec, name=spec.name) == at(spec, fit.phi, rule)
    assert fit.spec.name.startswith(f"{spec.name}_phi")
    assert (fit.scaling, fit.rule) == (rule.at(fit.phi), rule)
    assert fit.complexity == complexity(fit.spec)
    assert fit.costs == {name: getattr(fit.complexity, name) for name in limits}
    assert fit.utilization == {name: fit.costs[name] / limits[name] for name in limits}
    above = complexity(network_above(spec, rule, fit.phi))
    assert fit.next_costs == {name: getattr(above, name) for name in limits}
    assert fit.binding == tuple(
        name for name in LIMITS if name in limits and getattr(above, name) > limits[name]
    )
    assert fit.binding


@pytest.mark.parametrize("name", sorted(RULES))
@pytest.mark.parametrize("baseline", sorted(BASELINES))
def test_no_cost_shrinks_along_a_rule(baseline: str, name: str) -> None:
    # Bisection is right only as long as this holds.
    before: Complexity | None = None
    for network in grid(BASELINES[baseline], RULES[name], -2.0, 2.5, 250):
        cost = complexity(network, 2)
        if before is not None:
            for limit in [*COUNTED, "activations"]:
                assert getattr(before, limit) <= getattr(cost, limit), (limit, network)
        before = cost


def test_phi_has_no_more_digits_than_needed() -> None:
    fit = solve_budget(B0, Budget(macs=1e9))
    text = f"{fit.phi:g}"
    assert float(text) == fit.phi
    shorter = {float(f"{fit.phi:.{len(text.partition('.')[2]) - 1}f}")}
    assert all(at(B0, phi, RULES["paper"]) != replace(fit.spec, name=B0.name) for phi in shorter)


def test_the_batch_and_the_optimiser_count_for_memory() -> None:
    budget = Budget(training_bytes=2e9)
    phis = [solve_budget(B0, budget, batch_size=batch).phi for batch in (1, 8, 32)]
    assert phis[0] > phis[1] > phis[2]
    light = solve_budget(B0, budget, optimizer_states=0)
    heavy = solve_budget(B0, budget, optimizer_states=2)
    assert light.phi > heavy.phi
    assert light.complexity == complexity(light.spec, optimizer_states=0)


def test_negative_phi_for_a_small_budget() -> None:
    fit = solve_budget(B0, Budget(macs=10e6))
    assert fit.phi < 0
    assert fit.complexity.macs <= 10e6


def test_an_exact_limit_is_kept() -> None:
    # A limit that a network meets to the last multiply-add is no reason to refuse it.
    fit = solve_budget(B0, Budget(macs=complexity(B0).macs))
    assert fit.complexity.macs == complexity(B0).macs
    less = solve_budget(B0, Budget(macs=complexity(B0).macs - 1))
    assert less.complexity.macs < complexity(B0).macs


@pytest.mark.parametrize(
    "rule",
    [
        CompoundRule(alpha=1.2, beta=1.1, gamma=1.0001),
        CompoundRule(alpha=1.0, beta=1.0, gamma=1.00001),
        CompoundRule(alpha=50.0, beta=1.0, gamma=1.0),
        CompoundRule(alpha=1.0001, beta=1.5, gamma=1.0),
    ],
)
def test_lopsided_rules(rule: CompoundRule) -> None:
    fit = solve_budget(B0, Budget(macs=1e9), rule=rule)
    assert 0.7e9 < fit.complexity.macs <= 1e9
    assert fit.binding == ("macs",)


# ------------------------------------------------------------------------------------- latency


class Stopwatch:
    """A latency that depends on the network alone, and a record of who was measured."""

    def __init__(self, latency: Callable[[NetworkSpec], float]) -> None:
        self.latency = latency
        self.measured: list[NetworkSpec] = []

    def __call__(self, spec: NetworkSpec) -> float:
        self.measured.append(spec)
        return self.latency(spec)


def _by_macs(spec: NetworkSpec) -> float:
    return 1.0 + complexity(spec).macs / 1e8


@pytest.mark.parametrize("limit", [2.0, 5.0, 60.0])
@pytest.mark.parametrize("name", sorted(RULES))
def test_latency_is_measured_seldom(name: str, limit: float) -> None:
    watch = Stopwatch(_by_macs)
    try:
        fit = solve_budget(B0, Budget(latency_ms=limit), rule=RULES[name], measure=watch)
    except BudgetError:
        assert name in ("depth", "width")  # the image stays, so 100M multiply-adds cannot be reached
        assert limit == 2.0
        return
    assert fit.costs["latency_ms"] == _by_macs(fit.spec) <= limit
    assert fit.binding == ("latency_ms",)
    assert _by_macs(network_above(B0, RULES[name], fit.phi)) > limit
    assert len(watch.measured) <= 30
    assert len({replace(spec, name="any") for spec in watch.measured}) == len(watch.measured)


@pytest.mark.parametrize("macs", [50e6, 300e6, 2e9])
def test_what_counting_rejects_is_never_measured(macs: float) -> None:
    watch = Stopwatch(_by_macs)
    fit = solve_budget(B0, Budget(macs=macs, latency_ms=1e6), measure=watch)
    assert watch.measured
    assert all(complexity(spec).macs <= macs for spec in watch.measured)
    assert fit.binding == ("macs",)
    assert "latency_ms" not in fit.next_costs
    assert fit.spec.image_size == solve_budget(B0, Budget(macs=macs)).spec.image_size


def test_an_impossible_count_is_never_measured() -> None:
    watch = Stopwatch(_by_macs)
    with pytest.raises(BudgetError, match="macs=1,000 but it needs"):
        solve_budget(B0, Budget(macs=1e3, latency_ms=1e6), measure=watch)
    assert watch.measured == []


def test_an_impossible_latency_says_what_the_smallest_network_takes() -> None:
    with pytest.raises(BudgetError, match=re.escape("latency_ms=0.5 but it needs 1.0")):
        solve_budget(B0, Budget(latency_ms=0.5), measure=_by_macs)


def test_a_noisy_clock_still_gives_a_network_that_was_in_time() -> None:
    rng = random.Random(0)
    watch = Stopwatch(lambda spec: _by_macs(spec) * rng.uniform(0.8, 1.2))
    fit = solve_budget(B0, Budget(latency_ms=5.0), measure=watch)
    assert fit.costs["latency_ms"] <= 5.0
    assert len(watch.measured) <= 30


@pytest.mark.parametrize("latency", [math.nan, math.inf, -1.0])
def test_a_broken_clock(latency: float) -> None:
    with pytest.raises(BudgetError, match="measure must return milliseconds, got"):
        solve_budget(B0, Budget(latency_ms=5.0), measure=lambda _spec: latency)


def test_latency_needs_a_clock() -> None:
    with pytest.raises(BudgetError, match="latency_ms needs measure="):
        solve_budget(B0, Budget(latency_ms=5.0))


# ------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize("limit", COUNTED)
def test_an_impossible_budget_says_what_the_smallest_network_needs(limit: str) -> None:
    smallest = complexity(at(B0, math.log(32 / 224) / math.log(1.15) + 1e-9, RULES["paper"]))
    assert smallest.image_size == (32, 32)
    need = getattr(smallest, limit)
    with pytest.raises(BudgetError) as caught:
        solve_budget(B0, Budget(**{limit: need - 1}))
    message = str(caught.value)
    assert "the smallest from efficientnet_b0 has an image of 32×32 px" in message
    assert f"{limit}={need - 1:,.0f} but it needs {need:,.0f}" in message
    assert getattr(solve_budget(B0, Budget(**{limit: need})).complexity, limit) == need


def test_only_the_limits_that_fail_are_named() -> None:
    with pytest.raises(BudgetError) as caught:
        solve_budget(B0, Budget(params=10, macs=1e12))
    assert "params=10 but it needs" in str(caught.value)
    assert "macs=" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("resolution", {"params": 1e8}),
        ("resolution", {"file_bytes": 1e9, "params": 1e8}),
        ("width", {"macs": 1e25}),
    ],
)
def test_a_budget_without_bound(name: str, limits: dict[str, float]) -> None:
    with pytest.raises(BudgetError, match=r"set no bound on this rule, which grows .* add a limit on macs"):
        solve_budget(B0, Budget(**limits), rule=RULES[name])


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "1G"])
@pytest.mark.parametrize("limit", list(LIMITS))
def test_limits_are_checked(limit: str, value: Any) -> None:
    with pytest.raises(
        BudgetError, match=f"^{limit} must be a positive number, got {re.escape(repr(value))}"
    ):
        Budget(**{limit: value})


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(BudgetError, match="a budget needs at least one limit: macs, params, inference_bytes"):
        Budget()


def test_limits_are_the_fields_of_a_budget() -> None:
    assert [field.name for field in fields(Budget)] == list(LIMITS)
    assert Budget(macs=1, params=2).limits() == {"macs": 1, "params": 2}


def test_fits_are_values() -> None:
    one, other = (solve_budget(B0, Budget(macs=5e8)) for _ in range(2))
    assert isinstance(one, BudgetFit)
    assert one == other
