"""Trials as Ray tasks on this machine; `test_cluster_machines` has several and is slow."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_up import SMALL, Deadly, Hill, OneFails, Slow

import phiscale.cluster.connection
import phiscale.cluster.trials
from phiscale.cluster import RayBackend
from phiscale.errors import MissingDependencyError, TrainingError
from phiscale.search.objective import Report, Score, Trial
from phiscale.search.runner import run_trials
from phiscale.search.store import TrialStore
from phiscale.spec import NetworkSpec
from ray_machines import MEMORY, clear_up, importable

# Ray leaves sockets and log files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")

HILL = Hill(SMALL)
TRIALS = [Trial(spec=SMALL, seed=seed, epochs=1) for seed in range(4)]
EXPECTED = {trial.key: HILL(SMALL, seed=trial.seed, epochs=1) for trial in TRIALS}


@pytest.fixture(scope="module")
def here() -> Iterator[RayBackend]:
    """One machine with two cores."""
    ray: Any = pytest.importorskip("ray", reason="the cluster extra is not installed")
    with importable():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=MEMORY,
        )
        yield RayBackend()
        ray.shutdown()
        clear_up()


@dataclass(frozen=True)
class Surroundings:
    """Says in its score whether its process has one thread and no GPU, and which process it is."""

    def __call__(
        self, spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        settings = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        as_wanted = [os.environ.get(name) for name in settings] == ["1", "1", "1", ""]
        return Score(top1=float(as_wanted), epochs=1, train_seconds=float(os.getpid()))


def test_a_search_by_ray_is_the_local_one(here: RayBackend, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    deadly = Deadly(HILL, tmp_path / "deaths", seed=1, deaths=2)
    with TrialStore(tmp_path / "trials.db") as store:
        assert run_trials(TRIALS, deadly, store, backend=here) == EXPECTED
        assert len(list((tmp_path / "deaths").iterdir())) == 2
        assert run_trials(TRIALS, OneFails(), store, backend=here) == EXPECTED  # nothing is left to train
    assert here.slots() == 2
    assert str(here) == "1 machine by Ray, 2 trainings at a time"


def test_a_trial_that_kills_every_worker_is_given_up(here: RayBackend, tmp_path: Path) -> None:
    (tmp_path / "deaths").mkdir()
    deadly = Deadly(HILL, tmp_path / "deaths", seed=1, deaths=99)
    with TrialStore(tmp_path / "trials.db") as store:
        with pytest.raises(TrainingError, match=r"seed 1 died 3 times, last by WorkerCrashedError"):
            run_trials(TRIALS, deadly, store, backend=here)
        assert len(store) == 3


def test_an_error_is_told_when_the_others_are_recorded(here: RayBackend, tmp_path: Path) -> None:
    with TrialStore(tmp_path / "trials.db") as store:
        with pytest.raises(ArithmeticError, match="nan") as caught:
            run_trials(TRIALS, OneFails(), store, backend=here)
        assert len(store) == 3
    assert any(f"on {socket.gethostname()}:" in note for note in caught.value.__notes__)


def test_trials_have_one_thread_and_no_gpu(here: RayBackend, tmp_path: Path) -> None:
    with TrialStore(tmp_path / "trials.db") as store:
        scores = run_trials(TRIALS, Surroundings(), store, backend=here).values()
    assert {score.top1 for score in scores} == {1.0}
    assert os.getpid() not in {score.train_seconds for score in scores}


def test_what_a_script_defines_can_be_trained(here: RayBackend) -> None:
    def objective(
        spec: NetworkSpec, *, seed: int, epochs: int | None = None, report: Report | None = None
    ) -> Score:
        return HILL(spec, seed=seed, epochs=epochs)

    assert {trial.key: score for trial, score in here(TRIALS, objective)} == EXPECTED


def test_a_trial_that_no_machine_has_room_for(here: RayBackend) -> None:
    with pytest.raises(TrainingError, match="no machine of the Ray cluster has 1 CPU and 1 GPU for a trial"):
        next(RayBackend(gpus_per_trial=1)(TRIALS, HILL))
    with pytest.raises(TrainingError, match="has 3 CPU for a trial"):
        next(RayBackend(cpus_per_trial=3)(TRIALS, HILL))


def test_a_cluster_without_machines_is_given_up(
    here: RayBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LOOK", 0.05), ("PATIENCE", 0.2)):
        monkeypatch.setattr(phiscale.cluster.connection, name, seconds)
    monkeypatch.setattr(phiscale.cluster.trials, "GRACE", 0.1)
    with_room = iter([2, 2])  # when it begins, and before it sends

    class Vanishing(RayBackend):
        def slots(self) -> int:
            return next(with_room, 0)

    slow = Slow(HILL, tmp_path / "log", seconds=5)
    with pytest.raises(TrainingError, match="no machine of the Ray cluster has 1 CPU for a trial"):
        next(Vanishing()(TRIALS[:1], slow))


def test_a_machine_with_other_versions_is_refused(here: RayBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phiscale.cluster.trials, "versions", lambda: {"phiscale": "9.9"})
    with pytest.raises(TrainingError, match=r"versions on .* are phiscale .*; those of the search are .*9"):
        list(here(TRIALS, HILL))


def test_a_machine_without_the_objective_is_refused(
    here: RayBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nowhere_else.py").write_text("class Missing:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from nowhere_else import Missing  # type: ignore[import-not-found]

    with pytest.raises(TrainingError, match=r"cannot run trials: .*nowhere_else.*; install the same"):
        list(here(TRIALS, Missing()))


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1:1", "refused"), ("head", "not auto, local or HOST:PORT"), ("ray://head:10001", "not auto")],
)
def test_an_address_that_is_none(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray: Any = pytest.importorskip("ray", reason="the cluster extra is not installed")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(TrainingError, match=rf"at {address}: .*{reason}.*run `ray start"):
        RayBackend(address).connect()


def test_numbers_that_are_none() -> None:
    for needs in ({"cpus_per_trial": 0}, {"gpus_per_trial": -1}, {"cpus_per_trial": float("nan")}):
        with pytest.raises(ValueError, match="must be above 0"):
            RayBackend(**needs)


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[cluster\]'"):
        RayBackend().connect()
