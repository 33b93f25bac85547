from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from made_up import SMALL, Deadly, Hill, OneFails, Slow

from phiscale.errors import TrainingError
from phiscale.search.objective import Objective, Report, Score, Trial
from phiscale.search.runner import Results, run_here, run_trials
from phiscale.search.store import TrialStore
from phiscale.spec import NetworkSpec

HILL = Hill(SMALL)
TRIALS = [Trial(spec=SMALL, seed=seed, epochs=1) for seed in range(4)]
EXPECTED = {trial.key: HILL(SMALL, seed=trial.seed, epochs=1) for trial in TRIALS}


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore(tmp_path / "trials.db")


def trained(log: Path) -> Counter[str]:
    return Counter(line.split()[0] for line in log.read_text().splitlines())


@pytest.mark.parametrize("workers", [1, 2])
def test_each_trial_is_trained_once(store: TrialStore, tmp_path: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    objective, log = Slow(HILL, tmp_path / "log"), tmp_path / "log"
    twice = [*TRIALS, *TRIALS]
    with store:
        first = run_trials(TRIALS[1:2], objective, store)
        scores = run_trials(
            twice, objective, store, workers=workers, progress=lambda *both: seen.append(both)
        )
        assert run_trials(twice, objective, store, workers=workers) == scores
    assert scores == EXPECTED
    assert list(scores) == [trial.key for trial in TRIALS]
    assert first.items() <= scores.items()
    assert trained(log) == Counter(trial.key for trial in TRIALS)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_workers_are_other_processes(store: TrialStore, tmp_path: Path) -> None:
    with store:
        run_trials(TRIALS, Slow(HILL, tmp_path / "log", seconds=0.3), store, workers=2)
    pids = {int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines()}
    assert os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class ThreadSettings:
    """Reports the thread settings of its process as a score, 0.1 for each that is 1."""

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return Score(top1=sum(os.environ.get(name) == "1" for name in names) / 10, epochs=1, train_seconds=0)


def test_workers_have_one_thread(store: TrialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with store:
        scores = run_trials(TRIALS[:2], ThreadSettings(), store, workers=2)
    assert {score.top1 for score in scores.values()} == {0.3}


def test_the_trial_of_a_dead_worker_runs_again(store: TrialStore, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    objective = Deadly(HILL, tmp_path / "deaths", seed=1, deaths=2)
    with store:
        assert run_trials(TRIALS, objective, store, workers=2) == EXPECTED
    assert len(list((tmp_path / "deaths").iterdir())) == 2


def test_a_trial_that_kills_every_worker_is_given_up(store: TrialStore, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    objective = Deadly(HILL, tmp_path / "deaths", seed=1, deaths=99)
    with store:
        with pytest.raises(TrainingError, match=r"seed 1 died 3 times, last with exit code -9"):
            run_trials(TRIALS, objective, store, workers=2)
        assert len(store) == 3  # the others are kept


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_told_when_the_others_are_recorded(store: TrialStore, workers: int) -> None:
    with store:
        with pytest.raises(ArithmeticError, match="nan") as caught:
            run_trials(TRIALS, OneFails(), store, workers=workers)
        assert len(store) == 3
    if workers > 1:
        assert any("in a worker process" in note for note in caught.value.__notes__)


def test_a_store_that_fails_ends_the_workers(store: TrialStore, tmp_path: Path) -> None:
    class Full(TrialStore):
        def put(self, trial: Trial, score: Score) -> None:
            raise TrainingError("the disk is full")

    log = tmp_path / "log"
    with store, Full(tmp_path / "full.db") as full, pytest.raises(TrainingError, match="full"):
        run_trials(TRIALS, Slow(HILL, log, seconds=0.2), full, workers=2)
    before = log.read_text()
    time.sleep(0.5)
    assert log.read_text() == before


def test_any_backend(store: TrialStore) -> None:
    asked: list[int] = []

    def backwards(trials: Sequence[Trial], objective: Objective) -> Results:
        asked.append(len(trials))
        return run_here(trials[::-1], objective)

    with store:
        assert run_trials(TRIALS, HILL, store, backend=backwards) == EXPECTED
    assert asked == [4]


def test_no_workers(store: TrialStore) -> None:
    with store, pytest.raises(ValueError, match="at least 1"):
        run_trials(TRIALS, HILL, store, workers=0)


@pytest.mark.parametrize("top1", [-0.1, 1.1, float("nan")])
def test_a_score_is_a_share(top1: float) -> None:
    with pytest.raises(ValueError, match="top1"):
        Score(top1=top1, epochs=1, train_seconds=1.0)
