"""Runtimes timed in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from phiscale.deploy.runtimes.base import Runtime

__all__ = ["ROUNDS", "Latency", "time_in_turn"]

WARM_UP_RUNS = 3
ROUNDS = 8
# A fast network runs longer, so that its median is of more than a blink; a slow one stops earlier.
LEAST_SECONDS, MOST_SECONDS = 0.5, 8.0
# On an idle machine nine of ten runs take less than a tenth longer than the median.
UNSTEADY = 1.5


@dataclass(frozen=True, kw_only=True)
class Latency:
    """What the runs of one network took.

    Attributes:
        median_ms: Median of a run, in milliseconds.
        p90_ms: What nine of ten runs did not exceed, in milliseconds.
        runs: How many there were.
        batch_size: Images in each.
    """

    median_ms: float
    p90_ms: float
    runs: int
    batch_size: int = 1

    @property
    def images_per_second(self) -> float:
        """Images per second, one batch after the other."""
        return 1000 * self.batch_size / self.median_ms

    @property
    def is_steady(self) -> bool:
        """Whether the machine had little else to do meanwhile."""
        return self.p90_ms <= UNSTEADY * self.median_ms


def time_in_turn(
    networks: Sequence[tuple[Runtime, NDArray[np.uint8]]],
    *,
    runs: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Latency]:
    """Time networks in turn, so that a slow moment of the machine hits them all.

    Each is warmed up, and then runs a few times in a row in each of several rounds. The first run of a
    turn is not counted where there are others: it finds their numbers in the processor's caches.

    Args:
        networks: Each with its batch (N, H, W, C).
        runs: How often each runs at least, unless it takes seconds.
        progress: Called with the rounds that are done, and with how many there are.

    Returns:
        The latency of each.
    """
    timed = [_Timed(runtime, images, runs) for runtime, images in networks]
    for done in range(ROUNDS):
        for one in timed:
            one.take_turn(has_company=len(timed) > 1)
        if progress is not None:
            progress(done + 1, ROUNDS)
    return [one.latency() for one in timed]


class _Timed:
    """A network, and what its runs took so far."""

    def __init__(self, runtime: Runtime, images: NDArray[np.uint8], runs: int) -> None:
        self._runtime, self._images = runtime, images
        self._ms: list[float] = []
        least = min(self._run() for _ in range(WARM_UP_RUNS))
        wanted = max(runs, LEAST_SECONDS / least)
        self._runs_a_turn = max(1, math.ceil(min(wanted, MOST_SECONDS / least) / ROUNDS))

    def take_turn(self, *, has_company: bool) -> None:
        if has_company:
            self._run()
        self._ms += [1000 * self._run() for _ in range(self._runs_a_turn)]

    def latency(self) -> Latency:
        median, p90 = np.percentile(self._ms, (50, 90))
        return Latency(
            median_ms=float(median), p90_ms=float(p90), runs=len(self._ms), batch_size=len(self._images)
        )

    def _run(self) -> float:
        """One run. Returns its seconds."""
        began = time.perf_counter()
        self._runtime(self._images)
        return time.perf_counter() - began
