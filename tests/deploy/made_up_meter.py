"""A meter that measures nothing: latencies from a formula, with noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from phiscale.deploy.timing import Latency
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec


def roofline(spec: NetworkSpec) -> float:
    """Milliseconds of a machine that is good at multiply-adds and bad at moving numbers."""
    cost = complexity(spec)
    return 0.15 + 0.02 * spec.num_blocks + cost.macs / 9e7 + cost.activations / 6e6


def picky(spec: NetworkSpec) -> float:
    """The same, with kernels that like channels in sixteens: it falls here and there along a rule."""
    odd = sum(stage.out_channels % 16 != 0 for stage in spec.stages)
    return roofline(spec) * (1 + 0.02 * odd) * (1.03 if spec.image_size[0] % 4 else 1.0)


class MadeUpMeter:
    """Measures by a formula.

    Args:
        latency: The formula.
        noise: Standard deviation of a measurement, as a fraction.
        seed: Of the noise.

    Attributes:
        calls: The networks of each call.
    """

    where = "nowhere"

    def __init__(
        self,
        latency: Callable[[NetworkSpec], float] = roofline,
        *,
        noise: float = 0.0,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        self.latency, self.noise, self.batch_size = latency, noise, batch_size
        self.calls: list[list[NetworkSpec]] = []
        self._rng = random.Random(seed)

    @property
    def measurements(self) -> int:
        return sum(len(specs) for specs in self.calls)

    def __call__(self, specs: Sequence[NetworkSpec], *, runs: int = 0) -> list[Latency]:
        self.calls.append([replace(spec, name="any") for spec in specs])
        found = []
        for spec in specs:
            ms = self.latency(spec) * self.batch_size * (1 + self._rng.gauss(0, self.noise))
            found.append(Latency(median_ms=ms, p90_ms=1.1 * ms, runs=runs, batch_size=self.batch_size))
        return found
