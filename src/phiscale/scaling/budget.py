"""From a budget to the largest network on a scaling rule that satisfies every limit.

The search runs over truly rounded networks. Along a rule with factors of at least 1, layers, channels
and image side never shrink as φ grows, and neither does any counted cost, so the networks that fit are
those up to some φ, which bisection finds exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from phiscale.errors import BudgetError
from phiscale.scaling.complexity import MAX_BLOCKS, Complexity, complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling, compound_scale
from phiscale.spec import NetworkSpec

__all__ = ["LIMITS", "Budget", "BudgetFit", "solve_budget"]

PHI_TOLERANCE = 1e-9
# Past these no real device has the memory, and a limit that still holds never will bind.
MAX_SIDE = 16_384
MAX_CHANNELS = 200_000
MIN_FACTOR = 1e-300

LIMITS: Mapping[str, str] = {
    "macs": "multiply-adds",
    "params": "parameters",
    "inference_bytes": "bytes of memory for inference",
    "training_bytes": "bytes of memory for training",
    "file_bytes": "bytes of weights on disk",
    "latency_ms": "milliseconds",
}

Measure = Callable[[NetworkSpec], float]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that a network must satisfy, all of those given.

    Attributes:
        macs: Multiply-adds for one image.
        params: Trainable parameters.
        inference_bytes: Memory of a forward pass, in bytes.
        training_bytes: Memory of a training step, in bytes.
        file_bytes: Size of the weights on disk, in bytes.
        latency_ms: Milliseconds as measured by the `measure` of `solve_budget`.

    Raises:
        BudgetError: No limit is given, or one is not a positive number.
    """

    macs: float | None = None
    params: float | None = None
    inference_bytes: float | None = None
    training_bytes: float | None = None
    file_bytes: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not (value > 0 and math.isfinite(value)):
                raise BudgetError(f"{name} must be a positive number, got {value!r}")
        if not self.limits():
            raise BudgetError(f"a budget needs at least one limit: {', '.join(LIMITS)}")

    def limits(self) -> dict[str, float]:
        """The limits that are given."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class BudgetFit:
    """The largest network on a rule within a budget.

    Attributes:
        spec: The network.
        phi: Its compound coefficient, with no more digits than it takes to give this network.
        scaling: Its factors d, w and r.
        rule: The rule it lies on.
        complexity: Its counted cost.
        costs: What it needs of each limited thing.
        utilization: Each cost as a fraction of its limit, at most 1.
        binding: The limits that the next larger network on the rule would break.
        next_costs: What that next network needs; its latency is measured only where it satisfies the
            other limits.
    """

    spec: NetworkSpec
    phi: float
    scaling: Scaling
    rule: CompoundRule
    complexity: Complexity
    costs: Mapping[str, float]
    utilization: Mapping[str, float]
    binding: tuple[str, ...]
    next_costs: Mapping[str, float]


def solve_budget(
    spec: NetworkSpec,
    budget: Budget,
    *,
    rule: CompoundRule = RULES["paper"],
    measure: Measure | None = None,
    batch_size: int = 1,
    training_batch_size: int | None = None,
    optimizer_states: int = 2,
) -> BudgetFit:
    """Find the largest network on a rule that satisfies every limit of a budget.

    Args:
        spec: The baseline, at φ = 0; φ may come out negative.
        budget: The limits.
        rule: The direction to grow in.
        measure: Gives the latency of a network in milliseconds; needed with `latency_ms`. It is called
            at most about thirty times, never twice for one network, and should grow along the rule.
        batch_size: Images per batch, for the memory limits.
        training_batch_size: Images per batch of a training step, where that is another number.
        optimizer_states: Numbers that the optimiser keeps per parameter, for the training memory.

    Raises:
        BudgetError: Even the smallest network on the rule is over a limit (the message says what it
            needs); no limit binds on this rule; `measure` is missing, or returns no time.

    Examples:
        >>> from phiscale import get_spec
        >>> fit = solve_budget(get_spec("efficientnet_b0"), Budget(macs=1e9))
        >>> fit.spec.image_size, fit.complexity.macs <= 1e9, fit.binding
        ((259, 259), True, ('macs',))
    """
    limits = budget.limits()
    if "latency_ms" in limits and measure is None:
        raise BudgetError("latency_ms needs measure=, a function that takes a spec and returns milliseconds")
    batches = (batch_size, training_batch_size or batch_size)
    ladder = _Ladder(spec, rule, limits, measure, batches, optimizer_states)
    low, high = _bracket(ladder)
    while high - low > PHI_TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if ladder.fits(middle) else (low, middle)
    best, above = ladder.network(low), ladder.network(high)
    if ladder.is_absurd(above):
        raise BudgetError(
            f"{', '.join(limits)} set no bound on this rule, which grows (depth, width, resolution) by "
            f"({rule.alpha:g}, {rule.beta:g}, {rule.gamma:g}); add a limit on macs"
        )
    phi = _shortest_phi(ladder, low)
    costs, next_costs = ladder.costs(best), ladder.costs(above)
    return BudgetFit(
        spec=replace(best, name=f"{spec.name}_phi{phi:g}"),
        phi=phi,
        scaling=rule.at(phi),
        rule=rule,
        complexity=complexity(best, batch_size, optimizer_states=optimizer_states),
        costs=costs,
        utilization={name: cost / limits[name] for name, cost in costs.items()},
        binding=tuple(name for name, cost in next_costs.items() if cost > limits[name]),
        next_costs=next_costs,
    )


class _Ladder:
    """The networks along a rule, and whether each is within the limits."""

    def __init__(
        self,
        spec: NetworkSpec,
        rule: CompoundRule,
        limits: Mapping[str, float],
        measure: Measure | None,
        batch_sizes: tuple[int, int],
        optimizer_states: int,
    ) -> None:
        self.spec, self.rule, self.limits, self.measure = spec, rule, limits, measure
        self.inference_batch, self.training_batch = batch_sizes
        self.optimizer_states = optimizer_states
        self.latencies: dict[NetworkSpec, float] = {}

    def network(self, phi: float) -> NetworkSpec:
        # One name for all, so that equal networks compare equal.
        return replace(compound_scale(self.spec, phi=phi, rule=self.rule), name=self.spec.name)

    def counted_costs(self, network: NetworkSpec) -> dict[str, float]:
        inference, training = (
            complexity(network, batch, optimizer_states=self.optimizer_states)
            for batch in (self.inference_batch, self.training_batch)
        )
        return {
            name: getattr(training if name == "training_bytes" else inference, name)
            for name in self.limits
            if name != "latency_ms"
        }

    def costs(self, network: NetworkSpec) -> dict[str, float]:
        """What a network needs; counting is free, so what it rejects is never measured."""
        costs = self.counted_costs(network)
        if "latency_ms" in self.limits and all(cost <= self.limits[name] for name, cost in costs.items()):
            costs["latency_ms"] = self.latency(network)
        return costs

    def latency(self, network: NetworkSpec) -> float:
        if network not in self.latencies:
            assert self.measure is not None
            latency = float(self.measure(network))
            if not (latency >= 0 and math.isfinite(latency)):
                raise BudgetError(f"measure must return milliseconds, got {latency!r} for {network.name}")
            self.latencies[network] = latency
        return self.latencies[network]

    def fits(self, phi: float) -> bool:
        network = self.network(phi)
        return not self.is_absurd(network) and all(
            cost <= self.limits[name] for name, cost in self.costs(network).items()
        )

    def lowest_phi(self) -> float:
        """The φ of the smallest sensible network: nothing shrinks further, or the image gets too small."""
        rule, spec = self.rule, self.spec
        # Where one factor hardly grows, another would vanish before the first has done its part.
        floor = math.log(MIN_FACTOR) / math.log(max(rule.alpha, rule.beta, rule.gamma))
        if rule.gamma > 1:
            # A hair above, so that the last pixel survives the power's rounding.
            low = math.log(spec.output_stride / min(spec.image_size)) / math.log(rule.gamma) + PHI_TOLERANCE
            return max(low, floor)
        lows = []
        if rule.alpha > 1:
            lows.append(-math.log(max(s.num_layers for s in spec.stages)) / math.log(rule.alpha))
        if rule.beta > 1:
            widest = max(spec.stem.out_channels, spec.num_features, *(s.out_channels for s in spec.stages))
            lows.append(min(0.0, math.log(8 / widest) / math.log(rule.beta)))
        return max(min(lows) - PHI_TOLERANCE, floor)

    def is_absurd(self, network: NetworkSpec) -> bool:
        return (
            max(network.image_size) > MAX_SIDE
            or network.num_blocks > MAX_BLOCKS
            or max(network.num_features, *(s.out_channels for s in network.stages)) > MAX_CHANNELS
        )


def _bracket(ladder: _Ladder) -> tuple[float, float]:
    """A φ that fits and one that does not."""
    low = ladder.lowest_phi()
    if not ladder.fits(low):
        needs = ladder.costs(ladder.network(low))
        over = ", ".join(
            f"{name}={_number(ladder.limits[name])} but it needs {_number(cost)}"
            for name, cost in needs.items()
            if cost > ladder.limits[name]
        )
        size = ladder.network(low).image_size
        raise BudgetError(
            f"no network on this rule fits: the smallest from {ladder.spec.name} has an image of "
            f"{size[0]}×{size[1]} px, and {over}; raise the limit or start from a smaller baseline"
        )
    step = 1.0
    high = low + step
    while ladder.fits(high):
        low, step = high, step * 1.5
        high = low + step
    return low, high


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _shortest_phi(ladder: _Ladder, phi: float) -> float:
    """The φ with the fewest decimals that gives the same network."""
    network = ladder.network(phi)
    for digits in range(1, 12):
        for candidate in (round(phi, digits), math.floor(phi * 10**digits) / 10**digits):
            if ladder.network(candidate) == network:
                return candidate
    return phi
