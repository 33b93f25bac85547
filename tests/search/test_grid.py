from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import SMALL
from torch.utils.flop_counter import FlopCounterMode

import phiscale as ps
from phiscale.errors import SpecError
from phiscale.nn.network import Network
from phiscale.scaling.compound import CompoundRule, compound_scale
from phiscale.search.grid import PAPER, enumerate_rules, make_candidates

Triple = tuple[float, float, float]


def brute_force(step: str, tolerance: str, growth: str) -> list[Triple]:
    """Every point of the cube, in decimals, which are exact here."""
    d, most = Decimal(step), Decimal(growth) + Decimal(tolerance)
    sides = []
    for power in (1, 2, 2):
        side = [Decimal(1)]
        while (side[-1] + d) ** power <= most:
            side.append(side[-1] + d)
        sides.append(side)
    return [
        (float(a), float(b), float(c))
        for a in sides[0]
        for b in sides[1]
        for c in sides[2]
        if abs(a * b * b * c * c - Decimal(growth)) <= Decimal(tolerance) and not a == b == c == 1
    ]


def triples(rules: list[CompoundRule]) -> list[Triple]:
    return [(rule.alpha, rule.beta, rule.gamma) for rule in rules]


@given(
    step=st.sampled_from(["0.05", "0.1", "0.125", "0.07", "0.25", "1"]),
    tolerance=st.decimals("0", "0.9", places=3),
    growth=st.decimals("1.1", "3", places=2),
)
def test_every_grid_point_within_tolerance_and_none_twice(
    step: str, tolerance: Decimal, growth: Decimal
) -> None:
    found = triples(list(enumerate_rules(step=step, tolerance=str(tolerance), growth=str(growth))))
    assert found == brute_force(step, str(tolerance), str(growth))
    assert len(set(found)) == len(found)


def test_a_point_on_the_edge_is_inside() -> None:
    # 1.2 · 1.1² · 1.15² = 1.92027: that distance to 2 is 0.07973, to the last digit.
    edge = Decimal(2) - Decimal("1.2") * Decimal("1.1") ** 2 * Decimal("1.15") ** 2
    assert (1.2, 1.1, 1.15) in triples(list(enumerate_rules(tolerance=str(edge))))
    assert (1.2, 1.1, 1.15) not in triples(list(enumerate_rules(tolerance=str(edge - Decimal("1e-9")))))


@pytest.mark.parametrize(
    "wrong",
    [{"step": 0}, {"step": "x"}, {"step": 2}, {"tolerance": -1}, {"growth": 1}, {"growth": "nan"}],
)
def test_arguments_out_of_range(wrong: dict[str, float | str]) -> None:
    with pytest.raises(SpecError, match=r"step|tolerance|growth"):
        list(enumerate_rules(**wrong))


@pytest.mark.parametrize("baseline", [SMALL, ps.get_spec("mobilenet_v2"), ps.get_spec("resnet18")])
def test_candidates_are_the_different_networks_of_the_grid(baseline: ps.NetworkSpec) -> None:
    rules = list(enumerate_rules(step=0.1))
    found = make_candidates(baseline, rules, cost_tolerance=0.2)
    networks = {replace(compound_scale(baseline, phi=1.0, rule=rule), name="x") for rule in (*rules, PAPER)}
    assert {replace(candidate.spec, name="x") for candidate in found} == networks
    assert len(found) == len(networks)
    members = [rule for candidate in found for rule in candidate.rules]
    assert sorted(triples(members)) == sorted({*triples(rules), (1.2, 1.1, 1.15)})
    base = ps.complexity(baseline).macs
    for candidate in found:
        assert candidate.rule in candidate.rules
        assert candidate.macs_growth == ps.complexity(candidate.spec).macs / base
        assert candidate.on_target == (abs(candidate.macs_growth - 2) <= 0.4)
    assert sum(candidate.is_paper for candidate in found) == 1


def test_counted_cost_is_that_of_the_built_network() -> None:
    for candidate in make_candidates(SMALL, enumerate_rules(step=0.2)):
        net = Network(candidate.spec).eval()
        counter = FlopCounterMode(display=False)
        with counter, torch.inference_mode():
            net(torch.zeros(1, 1, *candidate.spec.image_size))
        assert counter.get_total_flops() == 2 * candidate.complexity.macs
        assert sum(p.numel() for p in net.parameters()) == candidate.complexity.params
