"""Networks of equal cost: one dimension scaled, or all three, to the same counted multiply-adds.

The networks of the paper's Table 7 differ by up to a quarter once layers and channels are rounded and
counted (1.45G to 1.80G). Here the arms of a comparison are chosen together from rounded networks, so that
the dearest costs at most 3 % more than the cheapest.

Rounding leaves gaps: on a small baseline, one more layer in each stage may cost half as much again. So the
cost that the arms share may lie a little beside the one asked for, and an arm that still finds no network
there gets a fine second factor on width or resolution, which is written down with it.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from phiscale.errors import BudgetError
from phiscale.scaling.complexity import MAX_BLOCKS, complexity
from phiscale.scaling.compound import CompoundRule, Scaling, scale
from phiscale.spec import NetworkSpec

__all__ = ["FINEST", "MACS_TOLERANCE", "REACH", "Arm", "Comparison", "Dimension", "Direction", "match_macs"]

MACS_TOLERANCE = 0.03
# How far the cost that the arms share may lie from the one asked for.
REACH = 0.2
# A second factor lies between 1 / FINEST and FINEST.
FINEST = 1.1
# Networks of a direction that are tried with a second factor: those nearest to the cost.
FINE_NETWORKS = 6
# An arm of one pure direction is worth more than the exact cost: a second factor may move an arm by 1 %
# before the whole comparison is rather moved by 3 %.
FINE_PENALTY, FINE_WEIGHT, SHIFT_WEIGHT = 0.02, 1.0, 0.5
LARGEST_PHI = 12.0
PHI_TOLERANCE = 1e-4

Dimension = Literal["depth", "width", "resolution"]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """A way to scale a baseline: from fixed factors along a rule.

    Attributes:
        name: What its arms are called.
        rule: Its factors for φ = 1.
        start: Factors at φ = 0, such as depth 2 and resolution 1.3 for one curve of Figure 4.
        lowest_phi: The smallest φ; 0 does not shrink what `start` gives.
    """

    name: str
    rule: CompoundRule
    start: Scaling = field(default_factory=Scaling)
    lowest_phi: float = 0.0

    def at(self, phi: float) -> Scaling:
        """The factors at φ."""
        grown = self.rule.at(phi)
        return Scaling(
            depth=self.start.depth * grown.depth,
            width=self.start.width * grown.width,
            resolution=self.start.resolution * grown.resolution,
        )

    @property
    def swept(self) -> tuple[Dimension, ...]:
        """The dimensions that its rule scales."""
        rule = self.rule
        factors: dict[Dimension, float] = {"depth": rule.alpha, "width": rule.beta, "resolution": rule.gamma}
        return tuple(name for name, factor in factors.items() if factor > 1)

    @property
    def fine(self) -> tuple[Dimension, ...]:
        """Where a second factor is fine enough, and is not the one that is swept alone: never depth."""
        sides: tuple[Dimension, ...] = ("width", "resolution")
        return tuple(side for side in sides if self.swept != (side,))


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One network of a comparison.

    Attributes:
        name: Of its direction.
        spec: The network.
        scaling: The factors that give it, with no more digits than that takes.
        macs: Its counted multiply-adds.
        fine: The dimension of the second factor, where one was needed to meet the cost; else None.
        fine_factor: The second factor, to three decimals; 1 without one.
    """

    name: str
    spec: NetworkSpec
    scaling: Scaling
    macs: int
    fine: Dimension | None = None
    fine_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Networks of one baseline at equal multiply-adds.

    Attributes:
        baseline: What was scaled.
        target: Multiply-adds that were asked for.
        arms: The networks, in the order of their directions; at least two.
        missing: Directions without a network at this cost, and why.
    """

    baseline: NetworkSpec
    target: float
    arms: tuple[Arm, ...]
    missing: Mapping[str, str]

    @property
    def spread(self) -> float:
        """By how much the dearest arm costs more than the cheapest, as a fraction."""
        costs = [arm.macs for arm in self.arms]
        return max(costs) / min(costs) - 1.0

    @property
    def macs(self) -> float:
        """The multiply-adds that the arms share: their geometric mean."""
        return math.exp(sum(math.log(arm.macs) for arm in self.arms) / len(self.arms))

    def arm(self, name: str) -> Arm | None:
        """The arm of a direction, or None where it is missing."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    direction: int
    scaling: Scaling
    network: NetworkSpec
    macs: int
    fine: Dimension | None = None
    fine_factor: float = 1.0
    penalty: float = 0.0


def match_macs(
    baseline: NetworkSpec,
    directions: Sequence[Direction],
    target: float,
    *,
    tolerance: float = MACS_TOLERANCE,
    reach: float = REACH,
) -> Comparison:
    """Choose one network of each direction, all at the same counted multiply-adds.

    A network counts for a direction only where every dimension of its rule has grown. With all factors
    just above 1 only the layers do, and that would be depth scaling under another name.

    Args:
        baseline: The network to scale.
        directions: The ways to scale it.
        target: Multiply-adds to aim at.
        tolerance: The dearest network costs at most this fraction more than the cheapest.
        reach: How far the cost may lie from `target`, as a fraction.

    Returns:
        The comparison. A direction that has no network there is in `missing`, with the reason; as many as
        possible are compared.

    Raises:
        BudgetError: `target` is not positive, or fewer than two directions meet.

    Examples:
        >>> from phiscale import get_spec
        >>> from phiscale.scaling.compound import RULES
        >>> ways = [Direction(name=name, rule=RULES[name]) for name in ("width", "paper")]
        >>> found = match_macs(get_spec("efficientnet_b0"), ways, 4 * 386e6)
        >>> [arm.name for arm in found.arms], found.spread <= 0.03
        (['width', 'paper'], True)
    """
    if not (target > 0 and math.isfinite(target)):
        raise BudgetError(f"the multiply-adds to compare at must be a positive number, got {target!r}")
    low, high = target / (1 + reach), target * (1 + reach)
    # A second factor reaches networks from further away.
    far = FINEST**2
    near = [_along(baseline, ways, index, low / far, high * far) for index, ways in enumerate(directions)]
    plain = [[one for one in found if low <= one.macs <= high] for found in near]
    chosen = _best_window(plain, target, tolerance)
    if len(chosen) < len(directions):
        pool = [
            found + _with_second_factor(baseline, directions[index], near[index], target, (low, high))
            for index, found in enumerate(plain)
        ]
        chosen = _best_window(pool, target, tolerance)
    missing = {
        ways.name: _why_missing(baseline, ways, near[index], target)
        for index, ways in enumerate(directions)
        if index not in chosen
    }
    if len(chosen) < 2:
        raise BudgetError(
            f"no two of {', '.join(ways.name for ways in directions)} meet near {target:,.0f} multiply-adds "
            f"from {baseline.name} ({'; '.join(missing.values())}); choose another budget"
        )
    arms = tuple(_arm(baseline, directions[index], chosen[index]) for index in sorted(chosen))
    return Comparison(baseline=baseline, target=target, arms=arms, missing=missing)


# ------------------------------------------------------------------------------------- candidates


def _scale(baseline: NetworkSpec, factors: Scaling) -> NetworkSpec:
    return scale(baseline, depth=factors.depth, width=factors.width, resolution=factors.resolution)


def _scaled(baseline: NetworkSpec, factors: Scaling) -> NetworkSpec:
    """The network with the baseline's name, so that equal networks compare equal."""
    return replace(_scale(baseline, factors), name=baseline.name)


def _macs(network: NetworkSpec) -> float:
    # What is too large to be counted is larger than any target.
    return complexity(network).macs if network.num_blocks <= MAX_BLOCKS else math.inf


def _along(
    baseline: NetworkSpec, direction: Direction, index: int, low: float, high: float
) -> list[_Candidate]:
    """Every network of a direction that costs between `low` and `high`."""

    def network(phi: float) -> NetworkSpec:
        return _scaled(baseline, direction.at(phi))

    first = _first_phi(network, direction.lowest_phi, low)
    last = _first_phi(network, direction.lowest_phi, high)
    start = _scaled(baseline, direction.start)
    found = []
    for phi in _one_of_each(network, first, last):
        candidate = network(phi)
        macs = _macs(candidate)
        if low <= macs <= high and _has_grown(start, candidate, direction):
            found.append(
                _Candidate(direction=index, scaling=direction.at(phi), network=candidate, macs=int(macs))
            )
    return found


def _has_grown(start: NetworkSpec, network: NetworkSpec, direction: Direction) -> bool:
    """Whether each dimension of a direction has grown; one that may shrink has no such duty."""
    grown: dict[Dimension, bool] = {
        "depth": network.num_blocks > start.num_blocks,
        "width": _channels(network) > _channels(start),
        "resolution": network.image_size > start.image_size,
    }
    return direction.lowest_phi < 0 or all(grown[dimension] for dimension in direction.swept)


def _channels(network: NetworkSpec) -> int:
    """The channels of stem, stages and head, added up."""
    head = network.head.out_channels if network.head else 0
    return network.stem.out_channels + sum(stage.out_channels for stage in network.stages) + head


def _first_phi(network: Callable[[float], NetworkSpec], lowest: float, wanted: float) -> float:
    """The smallest φ whose network costs at least `wanted`, at most `LARGEST_PHI`."""
    if _macs(network(lowest)) >= wanted:
        return lowest
    low, high = lowest, lowest + 1.0
    while _macs(network(high)) < wanted:
        if high >= LARGEST_PHI:
            return LARGEST_PHI
        low, high = high, high + 1.0
    while high - low > PHI_TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if _macs(network(middle)) < wanted else (low, middle)
    return high


def _one_of_each(network: Callable[[float], NetworkSpec], low: float, high: float) -> list[float]:
    """A parameter for each network between two, from the middle of the interval that gives it."""
    borders = [low, *_borders(network, low, high), high]
    # Where an interval is no wider than the borders are known to, its middle may lie in the next one.
    return [(a + b) / 2 for a, b in itertools.pairwise(borders) if b - a > 2 * PHI_TOLERANCE]


def _borders(network: Callable[[float], NetworkSpec], low: float, high: float) -> Iterator[float]:
    """Where one network ends and the next begins: between equal ends nothing changes."""

    def between(low: float, first: NetworkSpec, high: float, last: NetworkSpec) -> Iterator[float]:
        middle = (low + high) / 2
        if first == last:
            return
        if high - low <= PHI_TOLERANCE:
            yield middle
            return
        inner = network(middle)
        yield from between(low, first, middle, inner)
        yield from between(middle, inner, high, last)

    yield from between(low, network(low), high, network(high))


def _with_second_factor(
    baseline: NetworkSpec,
    direction: Direction,
    near: Iterable[_Candidate],
    target: float,
    limits: tuple[float, float],
) -> list[_Candidate]:
    """The networks near the cost, each with a second factor close to 1."""
    low, high = limits
    start = _scaled(baseline, direction.start)
    nearest = sorted(near, key=lambda one: abs(math.log(one.macs / target)))[:FINE_NETWORKS]
    return [
        found
        for main in nearest
        for dimension in direction.fine
        for found in _refine(baseline, main, dimension)
        if low <= found.macs <= high and _has_grown(start, found.network, direction)
    ]


def _refine(baseline: NetworkSpec, main: _Candidate, dimension: Dimension) -> Iterator[_Candidate]:
    def factors(exponent: float) -> Scaling:
        return replace(main.scaling, **{dimension: getattr(main.scaling, dimension) * FINEST**exponent})

    def network(exponent: float) -> NetworkSpec:
        return _scaled(baseline, factors(exponent))

    for exponent in _one_of_each(network, -1.0, 1.0):
        candidate = network(exponent)
        if candidate == main.network:
            continue
        macs = int(_macs(candidate))
        yield replace(
            main,
            scaling=factors(exponent),
            network=candidate,
            macs=macs,
            fine=dimension,
            fine_factor=round(FINEST**exponent, 3),
            penalty=FINE_PENALTY + FINE_WEIGHT * abs(math.log(macs / main.macs)),
        )


# ----------------------------------------------------------------------------------------- choice


def _best_window(
    candidates: Sequence[Sequence[_Candidate]], target: float, tolerance: float
) -> dict[int, _Candidate]:
    """One candidate of as many directions as can meet within `tolerance`, by direction.

    Among windows with equally many directions the best has the least `_regret`.
    """
    pool = sorted((one for found in candidates for one in found), key=lambda one: one.macs)
    costs = [one.macs for one in pool]
    best: dict[int, _Candidate] = {}
    best_score = (0, 0.0)
    for start, first in enumerate(pool):
        end = bisect_right(costs, first.macs * (1 + tolerance))
        chosen = _choose(pool[start:end])
        score = (len(chosen), -_regret(chosen.values(), target))
        if not best or score > best_score:
            best, best_score = chosen, score
    return best


def _choose(window: Iterable[_Candidate]) -> dict[int, _Candidate]:
    """The purest candidate of each direction, and none of a network that is another's already."""
    chosen: dict[int, _Candidate] = {}
    taken: set[NetworkSpec] = set()
    for one in sorted(window, key=lambda one: (one.penalty, one.direction)):
        if one.direction not in chosen and one.network not in taken:
            chosen[one.direction] = one
            taken.add(one.network)
    return chosen


def _regret(chosen: Collection[_Candidate], target: float) -> float:
    """What speaks against a window: distance from the target, spread, and what second factors move."""
    logs = [math.log(one.macs / target) for one in chosen]
    penalty = sum(one.penalty for one in chosen)
    return SHIFT_WEIGHT * abs(sum(logs) / len(logs)) + max(logs) - min(logs) + penalty


def _arm(baseline: NetworkSpec, direction: Direction, chosen: _Candidate) -> Arm:
    scaling = _shortest(baseline, chosen)
    return Arm(
        name=direction.name,
        spec=_scale(baseline, scaling),
        scaling=scaling,
        macs=chosen.macs,
        fine=chosen.fine,
        fine_factor=chosen.fine_factor,
    )


def _shortest(baseline: NetworkSpec, chosen: _Candidate) -> Scaling:
    """The factors with the fewest decimals that give the same network."""
    for digits in range(1, 9):
        values = {name: round(value, digits) for name, value in asdict(chosen.scaling).items()}
        if min(values.values()) > 0 and _scaled(baseline, Scaling(**values)) == chosen.network:
            return Scaling(**values)
    return chosen.scaling


def _why_missing(
    baseline: NetworkSpec, direction: Direction, near: Sequence[_Candidate], target: float
) -> str:
    start = _macs(_scaled(baseline, direction.at(direction.lowest_phi)))
    if start > target:
        return f"{direction.name} costs {start:,.0f} multiply-adds at the least"
    below = max((one.macs for one in near if one.macs <= target), default=None)
    above = min((one.macs for one in near if one.macs > target), default=None)
    nearest = " and ".join(f"{macs:,.0f}" for macs in (below, above) if macs is not None)
    if not nearest:
        return f"{direction.name} has no network near {target:,.0f} multiply-adds"
    return f"{direction.name} meets no other arm; its nearest networks cost {nearest} multiply-adds"
