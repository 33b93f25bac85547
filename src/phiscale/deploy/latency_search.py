"""The search for the largest network on a rule that is fast enough, with few measurements.

Neighbours on a rule differ by less than two measurements of one network do, and the latency along a rule
now and then drops where multiply-adds grow. So "the largest network within the budget" is defined by what can
be measured:

- The answer's median is at most the budget when it and the next network take turns in one measurement.
- The next network is larger, and its median is above the budget in that same measurement. It is the very next
  on the rule, or one that takes about `RESOLUTION` longer than the answer at most: those in between cannot be
  told from one of the two.

The search aims a little more than a `MARGIN` below and above the budget, so that a second measurement finds
the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from phiscale.deploy.cost_model import CostModel
from phiscale.deploy.latency import RUNS, Meter
from phiscale.deploy.timing import Latency
from phiscale.scaling.budget import CountedLimits
from phiscale.scaling.ladder import Ladder
from phiscale.spec import NetworkSpec

__all__ = ["MARGIN", "MAX_MEASUREMENTS", "RESOLUTION", "LatencySearch", "Rung"]

MAX_MEASUREMENTS = 12
# Medians of one network, measured twice on an idle machine, differ by about one percent.
MARGIN = 0.01
RESOLUTION = 4 * MARGIN
AIM_SAFE = 0.8
AIM_LOW, AIM_HIGH = 1 - 1.5 * MARGIN, 1 + 1.5 * MARGIN
VERIFYING_RUNS = 2 * RUNS
# The first verification may find that noise has led the search astray; these are for going on from there.
ROUNDS = 3
# Two for the verification, and one for a step down where that finds both too slow.
RESERVED = 3
# So many networks may be too slow before the smallest of all is asked.
PATIENCE = 3
# So many networks between the margin and the budget end the search: the rule has a plateau there.
MOST_UNSURE = 2


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A network on the ladder that was measured."""

    phi: float
    spec: NetworkSpec
    latency: Latency

    @property
    def ms(self) -> float:
        """Median in milliseconds."""
        return self.latency.median_ms


class LatencySearch:
    """What is known of a ladder, and what to measure next.

    Attributes:
        rungs: The measured networks, from small to large.
        capped: The first network that the counted limits rule out.
        used: Latencies that were asked for, of which the meter may have remembered some.
    """

    def __init__(self, ladder: Ladder, counted: CountedLimits, limit: float, meter: Meter) -> None:
        self._ladder, self._limit, self._meter = ladder, limit, meter
        self._counted = counted
        self._model = CostModel(batch_size=meter.batch_size)
        self._lowest = ladder.lowest_phi()
        self._top, over = ladder.split(counted.fit)
        self.capped = ladder.network(over)
        self.rungs: list[Rung] = []
        # What is remembered counts as measured, so that the same search gives the same answer again.
        self.used = 0

    def run(self) -> tuple[Rung | None, Rung | None]:
        """The answer and the next network: None and None where all are too slow, None where none is."""
        for _ in range(ROUNDS):
            self._explore()
            answer, above = self._pair()
            pair = [rung for rung in (answer, above) if rung is not None]
            if answer is None or self.used + len(pair) > MAX_MEASUREMENTS:
                break
            answer, *others = self._measure([rung.phi for rung in pair], runs=VERIFYING_RUNS)
            if answer.ms <= self._limit and all(rung.ms > self._limit for rung in others):
                return answer, others[0] if others else None
        self._retreat()
        return self._pair()

    def _retreat(self) -> None:
        """Step down until something is within the budget, where noise has left nothing."""
        aim = AIM_SAFE
        while (
            self.used < MAX_MEASUREMENTS
            and self._largest(self._limit) is None
            and not self.is_lowest(self.rungs[0])
        ):
            phi = min(self._phi_for(self._limit * aim), self._ladder.below(self.rungs[0].phi))
            self._measure([max(phi, self._lowest)], runs=RUNS)
            aim *= AIM_SAFE

    def _explore(self) -> None:
        """Measure until the answer and the next network are close, with enough left to verify them."""
        while self.used < MAX_MEASUREMENTS - RESERVED and (phi := self._candidate()) is not None:
            self._measure([phi], runs=RUNS)

    def _measure(self, phis: list[float], *, runs: int) -> list[Rung]:
        specs = [self._ladder.network(phi) for phi in phis]
        found = []
        self.used += len(phis)
        for phi, spec, latency in zip(phis, specs, self._meter(specs, runs=runs), strict=True):
            self._model.add(spec, latency.median_ms)
            found.append(Rung(phi=phi, spec=spec, latency=latency))
        self.rungs = [rung for rung in self.rungs if rung.spec not in specs] + found
        self.rungs.sort(key=lambda rung: rung.phi)
        return found

    def _pair(self) -> tuple[Rung | None, Rung | None]:
        """The largest network that is within the budget, and the next that is not, as far as is known.

        Networks that are within by less than the margin are passed over where there is one close below.
        """
        safe = self._largest(self._limit * (1 - MARGIN))
        above = self._slower(safe)
        if safe is not None and above is not None and above.ms <= safe.ms * (1 + RESOLUTION):
            return safe, above
        if self.rungs[-1].ms <= self._limit and self._is_top(self.rungs[-1]):
            return self.rungs[-1], None
        within = [rung for rung in self.rungs if rung.ms <= self._limit]
        # With a noisy clock the largest of all may have nothing above it that is too slow.
        pairs = [(rung, self._slower(rung)) for rung in within]
        return next((pair for pair in reversed(pairs) if pair[1]), pairs[-1] if pairs else (None, None))

    def is_lowest(self, rung: Rung) -> bool:
        """Whether the rule has nothing smaller."""
        return rung.spec == self._ladder.network(self._lowest)

    def _is_top(self, rung: Rung) -> bool:
        """Whether the counted limits allow nothing larger."""
        return rung.spec == self._ladder.network(self._top)

    def _largest(self, ms: float) -> Rung | None:
        return next((rung for rung in reversed(self.rungs) if rung.ms <= ms), None)

    def _slower(self, than: Rung | None) -> Rung | None:
        """The smallest network above one that is over the budget."""
        low = -math.inf if than is None else than.phi
        return next((rung for rung in self.rungs if rung.phi > low and rung.ms > self._limit), None)

    def _candidate(self) -> float | None:
        """The φ to measure next; None where nothing would be learnt."""
        if not self.rungs:
            return self._phi_for(self._limit * AIM_LOW)
        safe = self._largest(self._limit * (1 - MARGIN))
        if safe is None:
            below, safe = self._below(self.rungs[0]), self._largest(self._limit)
            if below is not None or safe is None:
                return below
        above = self._slower(safe)
        if above is None:
            return self._above(self.rungs[-1])
        unsure = [rung for rung in self.rungs if safe.phi < rung.phi < above.phi]
        if above.ms <= safe.ms * (1 + RESOLUTION) or len(unsure) >= MOST_UNSURE:
            return None
        return self._between(safe, above)

    def _below(self, smallest: Rung) -> float | None:
        if self.is_lowest(smallest):
            return None
        if len(self.rungs) > PATIENCE:
            return None if self._largest(self._limit) else self._lowest
        phi = min(self._phi_for(self._limit * AIM_LOW), self._ladder.below(smallest.phi))
        return max(self._lowest, min(phi, smallest.phi + self._stride(self.rungs[:2])))

    def _above(self, largest: Rung) -> float | None:
        if self._is_top(largest):
            return None
        phi = max(self._phi_for(self._limit * AIM_HIGH), self._ladder.above(largest.phi))
        return min(self._top, max(phi, largest.phi + self._stride(self.rungs[:-3:-1])))

    def _stride(self, outermost: list[Rung]) -> float:
        """How far to go at least where the last step was nearly in vain: twice as far again."""
        if len(outermost) < 2:
            return 0.0
        last, before = outermost
        left, gap = (math.log(rung.ms / self._limit) for rung in (last, before))
        is_nearly_in_vain = left * gap > 0 and abs(left) > abs(gap) / 2
        return 2 * (last.phi - before.phi) if is_nearly_in_vain else 0.0

    def _between(self, safe: Rung, above: Rung) -> float | None:
        """A φ strictly between two, nearer to where the gap to the budget is wider."""
        ladder, ends = self._ladder, (safe.spec, above.spec)
        low, high = ladder.above(safe.phi), ladder.below(above.phi)
        if low >= high:
            return None
        is_low_wider = self._limit / safe.ms >= above.ms / self._limit
        aim = AIM_LOW if is_low_wider else AIM_HIGH
        start = min(max(self._phi_for(self._limit * aim), low), high)
        known = {rung.spec for rung in self.rungs}
        down, up = ladder.below, ladder.above
        for step in (down, up) if is_low_wider else (up, down):
            phi = start
            while (network := ladder.network(phi)) in known and network not in ends:
                phi = step(phi)
            if network not in known:
                return phi
        return None

    def _phi_for(self, ms: float) -> float:
        """The φ that the model expects to take so long, within the counted limits."""

        def is_fast(spec: NetworkSpec) -> bool:
            return self._counted.fit(spec) and self._model.predict(spec) <= ms

        if not is_fast(self._ladder.network(self._lowest)):
            return self._lowest
        return self._ladder.split(is_fast)[0]
