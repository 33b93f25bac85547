"""Searches on three machines, one of which is lost, or whose driver is."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import log_lines, recorded, start, wait_for_the_end_of
from made_up import SMALL, Hill, Slow

from phiscale.cluster import RayBackend
from phiscale.search.objective import Trial
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore
from ray_machines import three_machines

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and log files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning"),
]

HILL = Hill(SMALL)
TRIALS = [Trial(spec=SMALL, seed=seed, epochs=1) for seed in range(12)]
EXPECTED = {trial.key: HILL(SMALL, seed=trial.seed, epochs=1) for trial in TRIALS}


@pytest.fixture
def cluster() -> Iterator[Any]:
    with three_machines() as cluster:
        yield cluster


def begun(log: Path) -> Counter[str]:
    """How often each trial was begun."""
    return Counter(key for key, _ in log_lines(log))


def test_a_machine_that_is_removed_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    removed: list[tuple[set[str], Counter[str]]] = []

    with TrialStore(tmp_path / "trials.db") as store, RayBackend(cluster.address) as backend:
        assert backend.slots() == 3

        def remove(done: int, _: int) -> None:
            if done == 4 and not removed:
                # All machines are busy for longer than it takes; this one goes without a word.
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
                known = {key for key in EXPECTED if store.get(trial_of(key))}
                removed.append((known, begun(log)))

        scores = run_trials(TRIALS, Slow(HILL, log, seconds=3.0), store, backend=backend, progress=remove)
        # Its processes were missed at once; that the machine is gone, Ray finds out a little later.
        end = time.monotonic() + 60
        while backend.slots() != 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(store) == len(TRIALS)
    assert scores == EXPECTED
    ((known, before),) = removed
    after = begun(log)
    assert len(known) == 4
    assert {key: after[key] for key in known} == {key: before[key] for key in known}
    # What the lost machine was at was begun once more, and nothing else.
    twice = {key for key, times in after.items() if times > 1}
    assert len(twice) == 1
    assert not twice & known


def trial_of(key: str) -> Trial:
    (found,) = [trial for trial in TRIALS if trial.key == key]
    return found


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_goes_on(cluster: Any, tmp_path: Path, how: signal.Signals) -> None:
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    for _ in range(2):
        known, lines = recorded(broken), len(log_lines(broken / "log"))
        driver = start(broken, cluster.address, seconds=0.5)
        while recorded(broken) == known and driver.poll() is None:
            time.sleep(0.01)
        driver.send_signal(how)
        driver.wait(timeout=60)
        again = log_lines(broken / "log")[lines:]
        for _, pid in again:
            wait_for_the_end_of(pid)
        assert not known & {key for key, _ in again}  # what was recorded is not trained again
    assert 0 < len(recorded(broken)) < 12
    assert start(broken, cluster.address).wait(timeout=120) == 0
    assert start(unbroken, "1").wait(timeout=120) == 0
    assert recorded(broken) == recorded(unbroken)
    assert len(recorded(broken)) == 12
    for name in ("result.json", "ranking.csv", "rule.json"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes()
