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
from phiscale.scaling.complexity import Complexity, complexity
from phiscale.scaling.compound import RULES, CompoundRule, Scaling
from phiscale.scaling.ladder import Ladder
from phiscale.spec import NetworkSpec

__all__ = ["LIMITS", "Budget", "BudgetFit", "CountedLimits", "describe_fit", "no_network", "solve_budget"]

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
    ladder = Ladder(spec, rule)
    counted = CountedLimits(
        limits={name: limit for name, limit in limits.items() if name != "latency_ms"},
        inference_batch=batch_size,
        training_batch=training_batch_size or batch_size,
        optimizer_states=optimizer_states,
    )
    measured = _Measured(counted, limits, measure)
    smallest = ladder.network(ladder.lowest_phi())
    if not measured.fits(smallest):
        raise no_network(smallest, measured.costs(smallest), limits)
    low, high = ladder.split(measured.fits)
    above = ladder.network(high)
    if ladder.is_absurd(above):
        raise BudgetError(
            f"{', '.join(limits)} set no bound on this rule, which grows (depth, width, resolution) by "
            f"({rule.alpha:g}, {rule.beta:g}, {rule.gamma:g}); add a limit on macs"
        )
    return describe_fit(
        ladder, low, limits, counted, measured.costs(ladder.network(low)), measured.costs(above)
    )


@dataclass(frozen=True, kw_only=True)
class CountedLimits:
    """The limits of a budget that counting decides: all but the latency.

    Attributes:
        limits: Name → limit.
        inference_batch: Images per batch, for the memory of a forward pass.
        training_batch: Images per batch of a training step.
        optimizer_states: Numbers that the optimiser keeps per parameter.
    """

    limits: Mapping[str, float]
    inference_batch: int = 1
    training_batch: int = 1
    optimizer_states: int = 2

    def costs(self, network: NetworkSpec) -> dict[str, float]:
        """What a network needs of each limited thing."""
        if not self.limits:
            return {}
        inference, training = (
            complexity(network, batch, optimizer_states=self.optimizer_states)
            for batch in (self.inference_batch, self.training_batch)
        )
        return {
            name: getattr(training if name == "training_bytes" else inference, name) for name in self.limits
        }

    def fit(self, network: NetworkSpec) -> bool:
        """Whether a network is within all of them."""
        return all(cost <= self.limits[name] for name, cost in self.costs(network).items())


class _Measured:
    """Whether networks are within the limits, the latency among them."""

    def __init__(self, counted: CountedLimits, limits: Mapping[str, float], measure: Measure | None) -> None:
        self.counted, self.limits, self.measure = counted, limits, measure
        self.latencies: dict[NetworkSpec, float] = {}

    def costs(self, network: NetworkSpec) -> dict[str, float]:
        """What a network needs; counting is free, so what it rejects is never measured."""
        costs = self.counted.costs(network)
        if "latency_ms" in self.limits and self.counted.fit(network):
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

    def fits(self, network: NetworkSpec) -> bool:
        return all(cost <= self.limits[name] for name, cost in self.costs(network).items())


def describe_fit(
    ladder: Ladder,
    phi: float,
    limits: Mapping[str, float],
    counted: CountedLimits,
    costs: Mapping[str, float],
    next_costs: Mapping[str, float],
) -> BudgetFit:
    """The answer of a solver.

    Args:
        ladder: Baseline and rule.
        phi: Of the network that was found.
        limits: All limits.
        counted: Those that are counted, with the batches that they are counted for.
        costs: What the network needs of each limited thing.
        next_costs: What the next larger one needs.
    """
    network, shortest = ladder.network(phi), ladder.shortest_phi(phi)
    return BudgetFit(
        spec=replace(network, name=f"{ladder.spec.name}_phi{shortest:g}"),
        phi=shortest,
        scaling=ladder.rule.at(shortest),
        rule=ladder.rule,
        complexity=complexity(network, counted.inference_batch, optimizer_states=counted.optimizer_states),
        costs=costs,
        utilization={name: cost / limits[name] for name, cost in costs.items()},
        binding=tuple(name for name, cost in next_costs.items() if cost > limits[name]),
        next_costs=next_costs,
    )


def no_network(smallest: NetworkSpec, costs: Mapping[str, float], limits: Mapping[str, float]) -> BudgetError:
    """The error for a budget that even the smallest network on a rule is over."""
    over = ", ".join(
        f"{name}={_number(limits[name])} but it needs {_number(cost)}"
        for name, cost in costs.items()
        if cost > limits[name]
    )
    height, width = smallest.image_size
    return BudgetError(
        f"no network on this rule fits: the smallest from {smallest.name} has an image of "
        f"{height}×{width} px, and {over}; raise the limit or start from a smaller baseline"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
