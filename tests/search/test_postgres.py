from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from made_up import SMALL, Hill
from postgres_server import running_postgres

from phiscale.errors import TrainingError
from phiscale.search.objective import Score, Trial
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore

TRIALS = [Trial(spec=SMALL, seed=seed, epochs=1) for seed in range(6)]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed")
    with running_postgres() as url:
        yield url


def test_a_search_in_postgresql(url: str) -> None:
    hill = Hill(SMALL)
    with TrialStore(url, study="search", settings={"classes": 10}) as store:
        run_trials(TRIALS[:2], hill, store)
    with TrialStore(url, study="search", settings={"classes": 10}) as store:
        assert len(store) == 2
        scores = run_trials(TRIALS, hill, store, workers=2)
    assert scores == {trial.key: hill(SMALL, seed=trial.seed, epochs=1) for trial in TRIALS}
    with pytest.raises(TrainingError, match="classes was 10, is 9"):
        TrialStore(url, study="search", settings={"classes": 9})


def test_two_drivers_share_a_study(url: str) -> None:
    score = Score(top1=0.5, epochs=1, train_seconds=1.0)
    with TrialStore(url, study="shared") as one, TrialStore(url, study="shared") as other:
        assert other.get(TRIALS[0]) is None
        one.put(TRIALS[0], score)
        assert other.get(TRIALS[0]) == score
        other.put(TRIALS[0], replace(score, top1=0.9))
        assert one.get(TRIALS[0]) == score
        assert len(one) == len(other) == 1


def test_studies_of_one_database_are_apart(url: str) -> None:
    with TrialStore(url, study="a") as a, TrialStore(url, study="b") as b:
        a.put(TRIALS[0], Score(top1=0.5, epochs=1, train_seconds=1.0))
        assert b.get(TRIALS[0]) is None
