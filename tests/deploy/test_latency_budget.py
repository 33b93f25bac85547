from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_meter import MadeUpMeter, picky, roofline

from phiscale.deploy.latency import LatencyMeter
from phiscale.deploy.latency_budget import LatencyFit, milliseconds_for, solve_latency
from phiscale.deploy.latency_search import MAX_MEASUREMENTS, RESOLUTION
from phiscale.deploy.setting import Setting
from phiscale.errors import BudgetError
from phiscale.families import get_spec
from phiscale.scaling.budget import Budget, solve_budget
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES
from phiscale.scaling.ladder import Ladder
from phiscale.scaling.small_images import for_image_size
from phiscale.spec import NetworkSpec
from small_model import TINY

B0 = get_spec("efficientnet_b0")
FAMILIES = ("efficientnet_b0", "efficientnet_b4", "efficientnet_lite0", "mobilenet_v2", "resnet18")


def solve(
    name: str, ms: float, rule: str = "paper", *, latency: Callable[[NetworkSpec], float] = roofline
) -> tuple[LatencyFit, MadeUpMeter]:
    meter = MadeUpMeter(latency)
    return solve_latency(get_spec(name), Budget(latency_ms=ms), rule=RULES[rule], meter=meter), meter


# --------------------------------------------------------------------------------- the answer


@pytest.mark.parametrize("latency", [roofline, picky])
@pytest.mark.parametrize("ms", [1.6, 6.0, 40.0])
@pytest.mark.parametrize("rule", ["paper", "dWr", "resolution"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_answer_is_within_the_budget_and_the_next_is_not(
    name: str, rule: str, ms: float, latency: Callable[[NetworkSpec], float]
) -> None:
    try:
        fit, meter = solve(name, ms, rule, latency=latency)
    except BudgetError:
        smallest = Ladder(get_spec(name), RULES[rule])
        assert latency(smallest.network(smallest.lowest_phi())) > ms
        return
    assert meter.measurements == fit.measurements <= MAX_MEASUREMENTS
    assert fit.next_spec is not None
    assert fit.next_phi is not None
    assert fit.latency_ms == latency(fit.spec) <= ms < latency(fit.next_spec)
    # Both lie on the rule, the next one above; and they are as close as they can be told apart.
    ladder = Ladder(get_spec(name), RULES[rule])
    assert fit.phi < fit.next_phi
    for spec, phi in ((fit.spec, fit.phi), (fit.next_spec, fit.next_phi)):
        assert replace(spec, name=name) == ladder.network(phi)
    following = ladder.network(ladder.above(fit.phi))
    is_neighbour = following == replace(fit.next_spec, name=name)
    assert is_neighbour or latency(fit.next_spec) <= (1 + 2 * RESOLUTION) * latency(fit.spec)
    # What was measured last was these two, in turn.
    assert meter.calls[-1] == [replace(spec, name="any") for spec in (fit.spec, fit.next_spec)]


def test_few_measurements_are_the_rule() -> None:
    used = [solve(name, ms)[0].measurements for name in FAMILIES for ms in (3.0, 8.0, 20.0)]
    assert sorted(used)[len(used) // 2] <= 6


@pytest.mark.parametrize("noise", [0.005, 0.01])
@pytest.mark.parametrize("seed", range(12))
def test_noise_spoils_neither_the_number_of_measurements_nor_the_answer(seed: int, noise: float) -> None:
    meter = MadeUpMeter(picky, noise=noise, seed=seed)
    fit = solve_latency(get_spec(FAMILIES[seed % 5]), Budget(latency_ms=8.0), meter=meter)
    assert meter.measurements <= MAX_MEASUREMENTS
    assert fit.next_latency is not None
    assert fit.latency_ms <= 8.0 < fit.next_latency.median_ms
    # Whatever the noise, the truth is not far from what was measured.
    assert picky(fit.spec) <= 8.0 * (1 + 3 * noise)


def test_a_clock_that_is_all_noise_ends_too() -> None:
    complaints = []
    for seed in range(10):
        meter = MadeUpMeter(roofline, noise=0.3, seed=seed)
        try:
            assert solve_latency(B0, Budget(latency_ms=5.0), meter=meter).latency_ms <= 5.0
        except BudgetError as error:
            complaints.append(str(error))
        assert meter.measurements <= MAX_MEASUREMENTS
    assert all("vary too much" in text or "but it needs" in text for text in complaints)


def test_a_step_in_the_latency_is_found() -> None:
    """Where the budget falls into a jump, the answer is just below it and the next just above."""

    def steps(spec: NetworkSpec) -> float:
        return 10.0 if spec.num_blocks >= 20 else 2.0 + complexity(spec).macs / 1e10

    fit, _ = solve("efficientnet_b0", 5.0, latency=steps)
    assert fit.next_spec is not None
    assert fit.spec.num_blocks < 20 <= fit.next_spec.num_blocks


def test_the_same_search_twice_measures_once(tmp_path: Path) -> None:
    budget = Budget(latency_ms=1.0)
    first = solve_latency(TINY, budget, meter=_remembering(tmp_path))
    again = solve_latency(TINY, budget, meter=_remembering(tmp_path))
    assert first.measurements > 0
    assert again.measurements == 0
    assert replace(again, measurements=first.measurements) == first


def _remembering(folder: Path) -> LatencyMeter:
    """A real meter whose clock is a formula, so that it is the cache that is tested."""
    meter = LatencyMeter(Setting(runtime="torch", threads=1), folder=folder)
    made_up = MadeUpMeter(lambda spec: complexity(spec).macs / 1e8 + 0.01)
    meter._measure = lambda specs, runs: made_up(specs, runs=runs)  # type: ignore[method-assign]
    return meter


# ------------------------------------------------------------------------- with other limits


def test_other_limits_hold_too() -> None:
    meter = MadeUpMeter()
    fit = solve_latency(B0, Budget(latency_ms=8.0, params=4e6), meter=meter)
    assert fit.costs["params"] <= 4e6
    assert fit.latency_ms <= 8.0
    assert all(complexity(spec).params <= 4e6 for specs in meter.calls for spec in specs)


def test_a_counted_limit_that_binds_first_needs_one_look_at_the_clock() -> None:
    fit = solve_latency(B0, Budget(latency_ms=1e4, macs=3e8), meter=(meter := MadeUpMeter()))
    counted = solve_budget(B0, Budget(macs=3e8))
    assert fit.spec == counted.spec
    assert fit.binding == ("macs",)
    assert (fit.next_spec, fit.next_latency) == (None, None)
    assert fit.timing()["next"] is None
    assert meter.measurements <= 2


def test_the_fit_is_described_as_by_counting() -> None:
    fit, _ = solve("efficientnet_b0", 8.0)
    assert fit.binding == ("latency_ms",)
    assert fit.utilization == {"latency_ms": fit.latency_ms / 8.0}
    assert fit.complexity == complexity(fit.spec)
    assert fit.spec.name == f"efficientnet_b0_phi{fit.phi:g}"
    assert fit.p90_ms == pytest.approx(1.1 * fit.latency_ms)


def test_the_timing_is_plain_values() -> None:
    fit, _ = solve("efficientnet_b0", 8.0)
    timing = json.loads(json.dumps(fit.timing()))
    assert timing["where"] == "nowhere"
    assert timing["median_ms"] == fit.latency_ms
    assert fit.next_spec is not None
    assert timing["next"]["macs"] == complexity(fit.next_spec).macs


def test_batches_and_throughput() -> None:
    meter = MadeUpMeter(batch_size=16)
    fit = solve_latency(B0, Budget(latency_ms=milliseconds_for(250, 16)), meter=meter)
    assert fit.latency.images_per_second >= 250
    assert fit.next_latency is not None
    assert fit.next_latency.images_per_second < 250


# ------------------------------------------------------------------------------ what cannot be


def test_an_impossible_latency_says_what_the_smallest_network_takes() -> None:
    ladder = Ladder(B0, RULES["paper"])
    smallest = roofline(ladder.network(ladder.lowest_phi()))
    with pytest.raises(BudgetError, match=rf"32×32 px, and latency_ms=0.1 but it needs {smallest:.4g}"):
        solve("efficientnet_b0", 0.1)


def test_an_impossible_count_is_never_measured() -> None:
    meter = MadeUpMeter()
    with pytest.raises(BudgetError, match="params=10 but it needs"):
        solve_latency(B0, Budget(latency_ms=5.0, params=10), meter=meter)
    assert meter.calls == []


def test_a_budget_without_time_is_for_the_other_solver() -> None:
    with pytest.raises(BudgetError, match="solve_budget is for the others"):
        solve_latency(B0, Budget(macs=1e9), meter=MadeUpMeter())


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_a_throughput_is_a_positive_number(number: float) -> None:
    with pytest.raises(BudgetError, match="images_per_second must be a positive number"):
        milliseconds_for(number, 8)


# -------------------------------------------------------------------------------- odd ladders


def _mostly_overhead(spec: NetworkSpec) -> float:
    return 0.1 + complexity(spec).macs / 1e8


@pytest.mark.parametrize("min_map", [2, 1])
@pytest.mark.parametrize("ms", [0.1197, 0.12, 0.15, 0.3])
def test_where_starting_a_run_costs_most(ms: float, min_map: int) -> None:
    """Tiny images, of which the smallest network just fits: what is above it is looked at all the same."""
    spec = replace(for_image_size(B0, (40, 40), min_map=min_map), num_classes=2)
    meter = MadeUpMeter(_mostly_overhead)
    rule = RULES["paper"].without_resolution()
    fit = solve_latency(spec, Budget(latency_ms=ms, macs=50e6), meter=meter, rule=rule)
    assert fit.binding == ("latency_ms",)
    assert fit.next_spec is not None
    assert _mostly_overhead(fit.spec) <= ms < _mostly_overhead(fit.next_spec)
    assert meter.measurements <= MAX_MEASUREMENTS
