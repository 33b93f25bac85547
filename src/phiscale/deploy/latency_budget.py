"""The largest network on a rule within a budget of milliseconds, verified."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from phiscale.deploy.latency import Meter
from phiscale.deploy.latency_search import LatencySearch
from phiscale.deploy.timing import Latency
from phiscale.errors import BudgetError
from phiscale.scaling.budget import (
    Budget,
    BudgetFit,
    CountedLimits,
    describe_fit,
    no_network,
)
from phiscale.scaling.complexity import complexity
from phiscale.scaling.compound import RULES, CompoundRule
from phiscale.scaling.ladder import Ladder
from phiscale.spec import NetworkSpec

__all__ = ["LatencyFit", "milliseconds_for", "solve_latency"]


@dataclass(frozen=True, kw_only=True)
class LatencyFit(BudgetFit):
    """The largest network on a rule within a budget of milliseconds, and of other things where given.

    Attributes:
        latency: Of the network, as verified.
        next_spec: The next larger network, which is too slow; None where another limit rules it out, or where
            the times of the machine vary too much to tell.
        next_phi: Its φ.
        next_latency: Its latency, measured in turn with that of the network.
        measurements: Networks that were timed for this; what was remembered does not count.
        where: Engine and machine, in words.
    """

    latency: Latency
    next_spec: NetworkSpec | None
    next_phi: float | None
    next_latency: Latency | None
    measurements: int
    where: str

    @property
    def latency_ms(self) -> float:
        """Median of the network in milliseconds."""
        return self.latency.median_ms

    @property
    def p90_ms(self) -> float:
        """What nine of ten runs of the network did not exceed, in milliseconds."""
        return self.latency.p90_ms

    def timing(self) -> dict[str, Any]:
        """What was measured, as plain values, ready for JSON."""
        return {
            "where": self.where,
            "median_ms": self.latency.median_ms,
            "p90_ms": self.latency.p90_ms,
            "batch_size": self.latency.batch_size,
            "images_per_second": self.latency.images_per_second,
            "runs": self.latency.runs,
            "measurements": self.measurements,
            "next": None
            if self.next_spec is None or self.next_latency is None
            else {
                "phi": self.next_phi,
                "image_size": list(self.next_spec.image_size),
                "macs": complexity(self.next_spec).macs,
                "median_ms": self.next_latency.median_ms,
                "p90_ms": self.next_latency.p90_ms,
            },
        }


def milliseconds_for(images_per_second: float, batch_size: int) -> float:
    """The latency of a batch at which a throughput is reached, one batch after the other.

    Args:
        images_per_second: At least so many; a positive number.
        batch_size: Images in a batch.

    Raises:
        BudgetError: The throughput is not a positive number.
    """
    if not (images_per_second > 0 and math.isfinite(images_per_second)):
        raise BudgetError(f"images_per_second must be a positive number, got {images_per_second!r}")
    return 1000 * batch_size / images_per_second


def solve_latency(
    spec: NetworkSpec,
    budget: Budget,
    *,
    meter: Meter,
    rule: CompoundRule = RULES["paper"],
    batch_size: int = 1,
    training_batch_size: int | None = None,
    optimizer_states: int = 2,
) -> LatencyFit:
    """Find the largest network on a rule within a budget that limits the latency.

    At most twelve networks are timed. Counted limits are kept without measuring.

    Args:
        spec: The baseline, at φ = 0; φ may come out negative.
        budget: The limits, with `latency_ms`.
        meter: Measures networks, such as a `LatencyMeter`.
        rule: The direction to grow in.
        batch_size: Images per batch, for the memory of a forward pass.
        training_batch_size: Images per batch of a training step, where that is another number.
        optimizer_states: Numbers that the optimiser keeps per parameter, for the training memory.

    Raises:
        BudgetError: There is no `latency_ms`, or even the smallest network on the rule is over a limit (the
            message says what it needs).
        MissingDependencyError: The engine is not installed.
    """
    limits = budget.limits()
    if "latency_ms" not in limits:
        raise BudgetError("solve_latency needs a limit on latency_ms; solve_budget is for the others")
    counted = CountedLimits(
        limits={name: limit for name, limit in limits.items() if name != "latency_ms"},
        inference_batch=batch_size,
        training_batch=training_batch_size or batch_size,
        optimizer_states=optimizer_states,
    )
    ladder = Ladder(spec, rule)
    smallest = ladder.network(ladder.lowest_phi())
    if not counted.fit(smallest):
        raise no_network(smallest, counted.costs(smallest), limits)
    before = meter.measurements
    search = LatencySearch(ladder, counted, limits["latency_ms"], meter)
    answer, above = search.run()
    if answer is None and not search.is_lowest(search.rungs[0]):
        raise BudgetError(
            f"{search.used} measurements found no network within latency_ms={budget.latency_ms:g}, because "
            "the times of this machine vary too much; run it again when nothing else runs"
        )
    if answer is None:
        costs = {"latency_ms": search.rungs[0].latency.median_ms}
        raise no_network(smallest, costs, limits)
    following = search.capped if above is None else above.spec
    fit = describe_fit(
        ladder,
        answer.phi,
        limits,
        counted,
        {**counted.costs(answer.spec), "latency_ms": answer.ms},
        counted.costs(following) | ({} if above is None else {"latency_ms": above.ms}),
    )
    return LatencyFit(
        **{field.name: getattr(fit, field.name) for field in fields(fit)},
        latency=answer.latency,
        next_spec=None if above is None else replace(above.spec, name=f"{spec.name}_phi{above.phi:g}"),
        next_phi=None if above is None else ladder.shortest_phi(above.phi),
        next_latency=None if above is None else above.latency,
        measurements=meter.measurements - before,
        where=meter.where,
    )
