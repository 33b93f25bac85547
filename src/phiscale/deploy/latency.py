"""How long networks take on this machine, measured and remembered.

What is timed is what an export does: from uint8 images to probabilities, in an engine. The weights are
random; time does not depend on their values.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from phiscale.deploy.latency_cache import LatencyCache
from phiscale.deploy.machine import this_machine
from phiscale.deploy.random_network import opened, random_images
from phiscale.deploy.setting import Setting
from phiscale.deploy.timing import ROUNDS, Latency, time_in_turn
from phiscale.spec import NetworkSpec

__all__ = ["RUNS", "LatencyMeter", "Meter"]

RUNS = 40


class Meter(Protocol):
    """Measures networks. `LatencyMeter` does it on this machine; one for a phone can be written."""

    @property
    def where(self) -> str:
        """Engine and machine, in words."""
        ...

    @property
    def batch_size(self) -> int:
        """Images in a run."""
        ...

    @property
    def measurements(self) -> int:
        """Networks that were timed so far; what was remembered does not count."""
        ...

    def __call__(self, specs: Sequence[NetworkSpec], *, runs: int = RUNS) -> list[Latency]:
        """Measure networks that take turns.

        Args:
            specs: The networks.
            runs: How often each runs, about.

        Returns:
            The latency of each, in order.
        """
        ...


class LatencyMeter:
    """Measures networks on this machine, and remembers what it has measured.

    What was measured while the machine was busy is not kept on disk.

    Args:
        setting: How networks are run.
        remember: Whether latencies are kept on disk and taken from there.
        fresh: Whether to measure anew what is on disk; the new times take the place of the old.
        folder: Where latencies are kept; None is the user's cache.
        on_measured: Called for every network that was timed, with its latency.
        progress: Called within a measurement, with the steps that are done and with how many there are:
            networks that were made ready, and rounds of runs.

    Attributes:
        setting: How networks are run.
        measurements: Networks that were timed; what was remembered does not count.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        remember: bool = True,
        fresh: bool = False,
        folder: Path | None = None,
        on_measured: Callable[[NetworkSpec, Latency], None] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.setting = setting
        self.measurements = 0
        self._cache = LatencyCache(_conditions(setting), folder=folder) if remember else None
        self._fresh, self._on_measured, self._progress = fresh, on_measured, progress
        self._own: dict[tuple[tuple[NetworkSpec, ...], int], list[Latency]] = {}

    @property
    def where(self) -> str:
        """Engine and machine, in words."""
        return f"{self.setting}, on {this_machine()}"

    @property
    def batch_size(self) -> int:
        """Images in a run."""
        return self.setting.batch_size

    def __call__(self, specs: Sequence[NetworkSpec], *, runs: int = RUNS) -> list[Latency]:
        """Measure networks that take turns, or remember how the same ones did.

        Args:
            specs: The networks.
            runs: How often each runs, about.

        Returns:
            The latency of each, in order.

        Raises:
            MissingDependencyError: What writes the engine's files is not installed.
            ModelDirError: The engine cannot take a network.
        """
        known = self._recall(specs, runs)
        if known is not None:
            return known
        measured = self._measure(specs, runs)
        self.measurements += len(specs)
        self._own[(*specs,), runs] = measured
        if self._cache is not None and all(latency.is_steady for latency in measured):
            self._cache.write(specs, measured, runs=runs)
        if self._on_measured is not None:
            for spec, latency in zip(specs, measured, strict=True):
                self._on_measured(spec, latency)
        return measured

    def _recall(self, specs: Sequence[NetworkSpec], runs: int) -> list[Latency] | None:
        own = self._own.get(((*specs,), runs))
        if own is not None or self._cache is None or self._fresh:
            return own
        return self._cache.read(specs, runs=runs)

    def _measure(self, specs: Sequence[NetworkSpec], runs: int) -> list[Latency]:
        networks = []
        with ExitStack() as stack:
            for spec in specs:
                runtime = stack.enter_context(opened(spec, self.setting))
                networks.append((runtime, random_images(spec, self.setting.batch_size)))
                self._report(len(networks), len(specs))
            return time_in_turn(networks, runs=runs, progress=partial(self._report, before=len(specs)))

    def _report(self, done: int, total: int, *, before: int = 0) -> None:
        """Tell how far the making ready is, and after it the rounds."""
        if self._progress is not None:
            rest = 0 if before else ROUNDS
            self._progress(before + done, before + total + rest)


def _conditions(setting: Setting) -> dict[str, str | int]:
    """All that the time of a network depends on, beside the network."""
    return {
        "engine": setting.engine,
        "precision": setting.precision,
        "threads": setting.threads,
        "batch_size": setting.batch_size,
        "phiscale": importlib.metadata.version("phiscale"),  # writes the graph
        "machine": this_machine().id,
        "processor": str(this_machine()),
    }
