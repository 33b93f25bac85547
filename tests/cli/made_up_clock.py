"""A clock for commands: multiply-adds in place of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from phiscale.deploy.latency import LatencyMeter
from phiscale.deploy.timing import Latency
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec


def install_clock(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[NetworkSpec]:
    """Put a formula in the place of the measurement; the cache and all around it are the real ones.

    Args:
        monkeypatch: Takes it away again.
        cache: Folder for what is remembered.

    Returns:
        The networks that were timed, which grows.
    """
    measured: list[NetworkSpec] = []

    def measure(self: LatencyMeter, specs: Sequence[NetworkSpec], runs: int) -> list[Latency]:
        measured.extend(specs)
        batch = self.setting.batch_size
        times = [batch * (0.1 + complexity(spec).macs / 1e8) for spec in specs]
        return [Latency(median_ms=ms, p90_ms=1.1 * ms, runs=runs, batch_size=batch) for ms in times]

    monkeypatch.setattr(LatencyMeter, "_measure", measure)
    monkeypatch.setenv("PHISCALE_CACHE", str(cache))
    return measured
