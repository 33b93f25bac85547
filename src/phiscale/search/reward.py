"""What a search for a baseline is after: accuracy, at a cost near the target, within every limit.

The reward is MnasNet's, ACC(m) · (cost(m) / T)^w with w = -0.07, as Tan & Le 2019 (section 4) used it with
multiply-adds as the cost to find EfficientNet-B0. By this w a network of twice the cost must be 5 % better,
relatively, to be worth as much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from phiscale.errors import BudgetError
from phiscale.scaling.budget import Budget
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

__all__ = ["EXPONENT", "CostName", "Goal"]

EXPONENT = -0.07
CostName = Literal["macs", "latency_ms"]


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What makes one network better than another.

    Attributes:
        limits: What a network may need at most. Networks beyond it are never trained.
        cost: The limit that is the target T of the reward.
        exponent: The w of the reward, at most 0; 0 counts accuracy alone.
        measure: Gives the latency of a network in milliseconds; needed with a limit on it.

    Raises:
        BudgetError: There is no limit on `cost`, `measure` is missing, or the exponent is above 0.

    Examples:
        >>> goal = Goal(limits=Budget(macs=20e6))
        >>> goal.reward(0.9, 20e6), round(goal.reward(0.9, 10e6), 4)
        (0.9, 0.9447)
    """

    limits: Budget
    cost: CostName = "macs"
    exponent: float = EXPONENT
    measure: Callable[[NetworkSpec], float] | None = None

    def __post_init__(self) -> None:
        limits = self.limits.limits()
        if self.cost not in get_args(CostName):
            raise BudgetError(f"cost must be one of {', '.join(get_args(CostName))}; got {self.cost!r}")
        if self.cost not in limits:
            raise BudgetError(f"the reward needs a target: give a limit on {self.cost}")
        if "latency_ms" in limits and self.measure is None:
            raise BudgetError("latency_ms needs measure=, a function from a spec to milliseconds")
        if not (math.isfinite(self.exponent) and self.exponent <= 0):
            raise BudgetError(f"exponent must be at most 0, got {self.exponent!r}; MnasNet's is {EXPONENT}")

    @property
    def target(self) -> float:
        """The T of the reward, in the unit of `cost`."""
        return self.limits.limits()[self.cost]

    def reward(self, top1: float, cost: float) -> float:
        """ACC · (cost / T)^w.

        Args:
            top1: Accuracy in [0, 1].
            cost: In the unit of `cost`, above 0.
        """
        return top1 * math.pow(cost / self.target, self.exponent)

    def costs(self, spec: NetworkSpec) -> dict[str, float]:
        """What a network needs of every limited thing.

        Counting is free, so latency is measured, and there, only where all that is counted is within limits.

        Raises:
            BudgetError: `measure` gave no positive number of milliseconds.
        """
        limits = self.limits.limits()
        counted = complexity(spec)
        costs: dict[str, float] = {name: getattr(counted, name) for name in limits if name != "latency_ms"}
        if "latency_ms" in limits and self.fits(costs):
            assert self.measure is not None
            latency = float(self.measure(spec))
            if not (latency > 0 and math.isfinite(latency)):
                raise BudgetError(f"measure must return milliseconds, got {latency!r} for {spec.name}")
            costs["latency_ms"] = latency
        return costs

    def violations(self, costs: Mapping[str, float]) -> dict[str, float]:
        """How far each cost is beyond its limit, as a fraction of it; at most 0 where it is within."""
        limits = self.limits.limits()
        return {name: cost / limits[name] - 1 for name, cost in costs.items()}

    def fits(self, costs: Mapping[str, float]) -> bool:
        """Whether no cost is beyond its limit."""
        return all(excess <= 0 for excess in self.violations(costs).values())
