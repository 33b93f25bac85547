"""The networks along a rule, from the smallest sensible one up.

Rounding makes a ladder of the continuous φ: each network lies on it over an interval, and none of layers,
channels and image side shrinks from one to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from phiscale.scaling.complexity import MAX_BLOCKS
from phiscale.scaling.compound import CompoundRule, compound_scale
from phiscale.spec import NetworkSpec

__all__ = ["PHI_TOLERANCE", "Ladder"]

PHI_TOLERANCE = 1e-9
# Past these no real device has the memory, and a limit that still holds never will bind.
MAX_SIDE = 16_384
MAX_CHANNELS = 200_000
MIN_FACTOR = 1e-300
FIRST_STEP = 1e-3


@dataclass(frozen=True)
class Ladder:
    """A baseline at φ = 0 and the rule that it is scaled by."""

    spec: NetworkSpec
    rule: CompoundRule

    def network(self, phi: float) -> NetworkSpec:
        """The network at φ, with the baseline's name, so that equal networks compare equal."""
        return replace(compound_scale(self.spec, phi=phi, rule=self.rule), name=self.spec.name)

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
        """Whether a network is larger than any device can take."""
        return (
            max(network.image_size) > MAX_SIDE
            or network.num_blocks > MAX_BLOCKS
            or max(network.num_features, *(s.out_channels for s in network.stages)) > MAX_CHANNELS
        )

    def split(self, fits: Callable[[NetworkSpec], bool]) -> tuple[float, float]:
        """Where the networks that fit end, by bisection.

        Args:
            fits: True up to some network on the ladder, the smallest included, and false above it. It is
                not asked about networks that are absurdly large.

        Returns:
            A φ that fits and one above it, `PHI_TOLERANCE` apart, that does not.
        """
        low, step = self.lowest_phi(), 1.0
        high = low + step
        while self._is_within(high, fits):
            low, step = high, step * 1.5
            high = low + step
        while high - low > PHI_TOLERANCE:
            middle = (low + high) / 2
            low, high = (middle, high) if self._is_within(middle, fits) else (low, middle)
        return low, high

    def _is_within(self, phi: float, fits: Callable[[NetworkSpec], bool]) -> bool:
        network = self.network(phi)
        return not self.is_absurd(network) and fits(network)

    def above(self, phi: float) -> float:
        """The smallest φ of the next larger network, to within `PHI_TOLERANCE`."""
        return self._next(phi, 1.0)

    def below(self, phi: float) -> float:
        """The largest φ of the next smaller network, to within `PHI_TOLERANCE`; there must be one."""
        return self._next(phi, -1.0)

    def _next(self, phi: float, direction: float) -> float:
        here, step = self.network(phi), FIRST_STEP
        inside, outside = phi, phi + direction * step
        while self.network(outside) == here:
            step *= 2
            inside, outside = outside, outside + direction * step
        while abs(outside - inside) > PHI_TOLERANCE:
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if self.network(middle) == here else (inside, middle)
        return outside

    def shortest_phi(self, phi: float) -> float:
        """The φ with the fewest decimals that gives the same network."""
        network = self.network(phi)
        for digits in range(1, 12):
            for candidate in (round(phi, digits), math.floor(phi * 10**digits) / 10**digits):
                if self.network(candidate) == network:
                    return candidate
        return phi
