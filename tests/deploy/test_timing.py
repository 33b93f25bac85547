from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from phiscale.deploy.timing import ROUNDS, Latency, time_in_turn

IMAGES = np.zeros((2, 4, 4, 3), np.uint8)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked: list[str] = []


class Worker:
    """A runtime that takes what it is told to, run by run."""

    def __init__(self, clock: Clock, name: str, seconds: list[float]) -> None:
        self.clock, self.name, self.seconds, self.run = clock, name, seconds, 0

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.clock.now += self.seconds[self.run % len(self.seconds)]
        self.clock.worked.append(self.name)
        self.run += 1
        return np.zeros((len(images), 1), np.float32)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("phiscale.deploy.timing.time.perf_counter", lambda: made.now)
    return made


def test_median_and_p90_are_of_the_runs(clock: Clock) -> None:
    # Two slow runs in ten, after three of warm-up.
    seconds = [0.1] * 3 + ([0.1] * 8 + [0.5] * 2) * 8
    (latency,) = time_in_turn([(Worker(clock, "a", seconds), IMAGES)], runs=80)
    assert latency.runs == 80
    assert latency.batch_size == 2
    assert latency.median_ms == pytest.approx(100)
    assert latency.p90_ms == pytest.approx(500)
    assert latency.images_per_second == pytest.approx(20)
    assert not latency.is_steady


def test_networks_take_turns(clock: Clock) -> None:
    workers = [(Worker(clock, name, [0.1]), IMAGES) for name in "ab"]
    time_in_turn(workers, runs=2 * ROUNDS)
    # Three runs of warm-up each; then in every round one that does not count, and two that do.
    assert "".join(clock.worked) == "aaabbb" + "aaabbb" * ROUNDS


def test_the_first_run_of_a_turn_does_not_count_among_others(clock: Clock) -> None:
    cold = [0.1] * 3 + [0.7, 0.1, 0.1] * ROUNDS
    alone = time_in_turn([(Worker(clock, "a", [0.1] * 3 + cold[3:]), IMAGES)], runs=3 * ROUNDS)
    both = time_in_turn([(Worker(clock, name, cold), IMAGES) for name in "ab"], runs=2 * ROUNDS)
    assert [latency.p90_ms for latency in both] == pytest.approx([100, 100])
    assert alone[0].p90_ms == pytest.approx(700)


def test_fast_networks_run_more_often_and_slow_ones_less(clock: Clock) -> None:
    fast, slow = time_in_turn(
        [(Worker(clock, "fast", [0.001]), IMAGES), (Worker(clock, "slow", [5.0]), IMAGES)], runs=40
    )
    assert fast.runs >= 500
    assert slow.runs == ROUNDS


def test_progress(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []
    time_in_turn([(Worker(clock, "a", [0.1]), IMAGES)], runs=8, progress=lambda *step: seen.append(step))
    assert seen == [(done, ROUNDS) for done in range(1, ROUNDS + 1)]


def test_a_steady_latency() -> None:
    assert Latency(median_ms=10.0, p90_ms=11.0, runs=5).is_steady
    assert Latency(median_ms=10.0, p90_ms=11.0, runs=5, batch_size=4).images_per_second == pytest.approx(400)
