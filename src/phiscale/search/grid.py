"""Every (α, β, γ) of a grid that grows the cost as wanted, and the networks that they give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from phiscale.errors import SpecError
from phiscale.scaling.complexity import Complexity, complexity
from phiscale.scaling.compound import RULES, CompoundRule, compound_scale
from phiscale.spec import NetworkSpec

__all__ = ["PAPER", "Candidate", "enumerate_rules", "make_candidates"]

PAPER = RULES["paper"]
SMALLEST_STEP = Fraction(1, 1000)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network to be tried, with all the rules whose factors round to it.

    Attributes:
        spec: The baseline at φ = 1.
        rule: Of its rules the paper's, or else the one whose α·β²·γ² is nearest to the wanted growth.
        rules: All of them.
        complexity: Counted cost.
        macs_growth: Counted multiply-adds, as a multiple of the baseline's.
        on_target: Whether that is near enough to the wanted growth.
    """

    spec: NetworkSpec
    rule: CompoundRule
    rules: tuple[CompoundRule, ...]
    complexity: Complexity
    macs_growth: float
    on_target: bool

    @property
    def is_paper(self) -> bool:
        """Whether the paper's (1.2, 1.1, 1.15) gives this network."""
        return PAPER in self.rules


def enumerate_rules(
    *, step: float | str = 0.05, tolerance: float | str = 0.1, growth: float | str = 2
) -> Iterator[CompoundRule]:
    """All rules with |α·β²·γ² - growth| ≤ tolerance whose factors are 1 plus multiples of `step`.

    Numbers are taken for the decimals that they are written as, and the arithmetic is exact: a point on the
    edge is inside, and no point is lost or doubled by rounding.

    Args:
        step: Distance of neighbouring factors, from 0.001 to 1.
        tolerance: Largest distance from `growth`.
        growth: Wanted factor on multiply-adds before rounding, above 1.

    Yields:
        Rules in ascending order. (1, 1, 1), which grows nothing, is none.

    Raises:
        SpecError: An argument is out of range.

    Examples:
        >>> rules = list(enumerate_rules(step=0.1, tolerance=0))
        >>> [(rule.alpha, rule.beta, rule.gamma) for rule in rules]
        [(2.0, 1.0, 1.0)]
    """
    exact_step, exact_tolerance, exact_growth = _checked(step, tolerance, growth)
    # With step = p / q every factor is an integer over q, and the condition one between integers.
    p, q = exact_step.numerator, exact_step.denominator
    low = math.ceil((exact_growth - exact_tolerance) * q**5)
    high = math.floor((exact_growth + exact_tolerance) * q**5)
    for a in range(q, high // q**4 + 1, p):
        for b in range(q, math.isqrt(high // (a * q**2)) + 1, p):
            rest = a * b * b
            smallest = max(q, _ceil_sqrt(-(-low // rest)))
            first = q + -(-(smallest - q) // p) * p
            for c in range(first, math.isqrt(high // rest) + 1, p):
                if not a == b == c == q:
                    yield CompoundRule(alpha=a / q, beta=b / q, gamma=c / q)


def make_candidates(
    baseline: NetworkSpec,
    rules: Iterable[CompoundRule],
    *,
    growth: float = 2.0,
    cost_tolerance: float = 0.2,
) -> list[Candidate]:
    """The networks that rules give at φ = 1, counted after rounding; equal ones are one candidate.

    Layers are rounded up, so a network may cost far more than α·β²·γ² says: networks are compared fairly
    only where the counted multiply-adds are alike.

    Args:
        baseline: The network at φ = 0.
        rules: The paper's rule is added where it is not among them.
        growth: Wanted multiply-adds, as a multiple of the baseline's.
        cost_tolerance: Largest distance from that, as a share of it.

    Returns:
        All candidates, also those off the target, in ascending order of their rules.

    Raises:
        SpecError: `cost_tolerance` is negative, or a network cannot be counted.
    """
    if not cost_tolerance >= 0:
        raise SpecError(f"cost_tolerance must be at least 0, got {cost_tolerance!r}")
    by_network: dict[NetworkSpec, list[CompoundRule]] = {}
    for rule in dict.fromkeys((*rules, PAPER)):
        # One name for all, so that equal networks compare equal.
        network = replace(compound_scale(baseline, phi=1.0, rule=rule), name=baseline.name)
        by_network.setdefault(network, []).append(rule)
    base = complexity(baseline).macs
    found = [
        _candidate(network, members, base, growth, cost_tolerance) for network, members in by_network.items()
    ]
    return sorted(found, key=lambda candidate: _factors(candidate.rule))


def _candidate(
    network: NetworkSpec, rules: list[CompoundRule], base: int, growth: float, cost_tolerance: float
) -> Candidate:
    # Rounded, so that the last bit of a product does not decide between equals.
    nearest = min(rules, key=lambda rule: (round(abs(rule.growth - growth), 9), _factors(rule)))
    rule = PAPER if PAPER in rules else nearest
    cost = complexity(network)
    ratio = cost.macs / base
    return Candidate(
        spec=replace(network, name=f"{network.name}_a{rule.alpha:g}_b{rule.beta:g}_g{rule.gamma:g}"),
        rule=rule,
        rules=tuple(sorted(rules, key=_factors)),
        complexity=cost,
        macs_growth=ratio,
        on_target=abs(ratio / growth - 1) <= cost_tolerance,
    )


def _factors(rule: CompoundRule) -> tuple[float, float, float]:
    return (rule.alpha, rule.beta, rule.gamma)


def _checked(*values: float | str) -> tuple[Fraction, Fraction, Fraction]:
    """Step, tolerance and growth as exact numbers."""
    try:
        step, tolerance, growth = (Fraction(str(value)) for value in values)
    except ValueError:
        raise SpecError(f"step, tolerance and growth must be numbers, got {values!r}") from None
    if not SMALLEST_STEP <= step <= 1:
        raise SpecError(f"step must lie between {float(SMALLEST_STEP)} and 1, got {values[0]}; try 0.05")
    if tolerance < 0:
        raise SpecError(f"tolerance must be at least 0, got {values[1]}")
    if not 1 < growth <= 16:
        raise SpecError(f"growth must be above 1 and at most 16, got {values[2]}; the paper's is 2")
    if tolerance >= growth:
        raise SpecError(f"tolerance {values[1]} must be below the growth {values[2]}; try 0.1")
    return step, tolerance, growth


def _ceil_sqrt(value: int) -> int:
    root = math.isqrt(value)
    return root if root * root == value else root + 1
