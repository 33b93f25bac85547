"""Scores that a formula gives, for studies that train nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from made_up import noise

from phiscale.scaling.complexity import complexity
from phiscale.search.objective import Report, Score
from phiscale.spec import NetworkSpec


@dataclass(frozen=True)
class Saturating:
    """Top-1 grows with layers, channels and pixels, each less the more there is of it; seeds shake it."""

    base: NetworkSpec
    spread: float = 0.004

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        growths = (
            spec.num_blocks / self.base.num_blocks,
            spec.num_features / self.base.num_features,
            spec.image_size[0] / self.base.image_size[0],
        )
        gain = math.fsum(1 - growth**-2 for growth in growths)
        top1 = 0.85 + 0.03 * gain + self.spread * noise(spec, seed, epochs)
        return Score(top1=top1, epochs=epochs or 10, train_seconds=complexity(spec).macs / 1e7)
