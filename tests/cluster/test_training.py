"""One training on three machines, of which one may be lost, or a worker, or the driver."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image

from phiscale.cluster import RayTraining
from phiscale.errors import TrainingError
from phiscale.pipeline import FitPlan, plan_fit, run
from phiscale.pipeline.fit import OnEpoch
from phiscale.scaling.budget import Budget
from phiscale.training.history import EpochRecord, read_history
from phiscale.training.train import TrainResult
from ray_machines import three_machines

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and log files to the garbage collector, and uses what it has deprecated.
    pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
    ),
]

EPOCHS = 6
# A rate at which training is calm: at 0.5 it blows up, and makes a tenth of the loss out of a last digit.
SETTINGS = {
    "epochs": EPOCHS, "warmup_epochs": 0, "batch_size": 12, "optimizer": "sgd", "learning_rate": 0.005,
    "mixup_alpha": 0.2, "dropout": 0.2, "drop_path": 0.2, "cache": "off",
}  # fmt: skip


Work = Callable[[OnEpoch], TrainResult]


class Enough(Exception):  # noqa: N818 - not an error
    """Ends a run from its callback."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> FitPlan:
    root = tmp_path_factory.mktemp("images")
    for label, name in enumerate(("ash", "elm", "oak")):
        (root / name).mkdir()
        for index in range(40):
            rng = np.random.default_rng((label, index))
            pixels = rng.integers(0, 200, (5, 5, 3), dtype=np.uint8) + np.eye(3, dtype=np.uint8)[label] * 40
            picture = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
            picture.save(root / name / f"{index}.png")
    return plan_fit(root, budget=Budget(macs=1e6), overrides=SETTINGS)


@pytest.fixture(scope="module")
def alone(plan: FitPlan, tmp_path_factory: pytest.TempPathFactory) -> list[float | None]:
    """The curve of one process without Ray."""
    out = tmp_path_factory.mktemp("alone")
    run(plan, out, progress=False)
    return curve(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with three_machines() as cluster:
        yield cluster


def curve(out: Path) -> list[float | None]:
    records = read_history(out)
    return [value for r in records for value in (r.train_loss, r.train_top1, r.val_loss, r.val_top1)]


def stop_after(epoch: int, record: EpochRecord) -> None:
    if record.epoch == epoch:
        raise Enough


@dataclass(frozen=True)
class Killing:
    """Trains with a worker that is killed once, in the midst of an epoch."""

    training: RayTraining
    out: Path
    mark: Path

    def __call__(self, work: Work, *, out: Path, on_epoch: OnEpoch) -> TrainResult:
        return self.training(partial(self.die_once, work), out=out, on_epoch=on_epoch)

    def die_once(self, work: Work, on_epoch: OnEpoch) -> TrainResult:
        if dist.get_rank() == 1 and not self.mark.exists():
            threading.Thread(target=self.die, daemon=True).start()
        return work(on_epoch)

    def die(self) -> None:
        while not (self.out / "history.json").exists() or len(read_history(self.out)) < 2:
            time.sleep(0.002)
        self.mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_one_process(
    workers: int, plan: FitPlan, alone: list[float | None], cluster: Any, tmp_path: Path
) -> None:
    told: list[int] = []
    with RayTraining(cluster.address, workers=workers) as training:
        result = run(
            plan,
            tmp_path,
            progress=False,
            together=training,
            on_epoch=lambda record: told.append(record.epoch),
        )
    assert curve(tmp_path) == pytest.approx(alone, rel=1e-4)
    assert told == list(range(1, EPOCHS + 1))
    assert [record.epoch for record in result.training.history] == told
    assert result.evaluation is not None
    assert not (tmp_path / ".ray").exists()


def test_a_killed_worker_costs_an_epoch_at_most(
    plan: FitPlan, alone: list[float | None], cluster: Any, tmp_path: Path
) -> None:
    told: Counter[int] = Counter()
    out, mark = tmp_path / "run", tmp_path / "mark"
    with RayTraining(cluster.address, workers=2) as training:
        run(
            plan,
            out,
            progress=False,
            together=Killing(training, out, mark),
            on_epoch=lambda record: told.update([record.epoch]),
        )
    assert mark.exists()
    assert curve(out) == pytest.approx(alone, rel=1e-4)
    assert set(told) == set(range(1, EPOCHS + 1))
    assert told.total() <= EPOCHS + 1


@pytest.mark.parametrize("workers", [(2, 1), (0, 2), (2, 0)])
def test_a_run_goes_on_with_other_workers(
    workers: tuple[int, int], plan: FitPlan, alone: list[float | None], cluster: Any, tmp_path: Path
) -> None:
    def train(count: int, **options: Any) -> None:
        if count == 0:
            run(plan, tmp_path, progress=False, **options)
            return
        with RayTraining(cluster.address, workers=count) as training:
            run(plan, tmp_path, progress=False, together=training, **options)

    with pytest.raises(Enough):
        train(workers[0], on_epoch=partial(stop_after, 2))
    assert 2 <= len(read_history(tmp_path)) < EPOCHS
    train(workers[1], resume=True)
    assert curve(tmp_path) == pytest.approx(alone, rel=1e-4)


def test_an_error_of_a_worker_is_told(plan: FitPlan, cluster: Any, tmp_path: Path) -> None:
    def fail(work: Any, on_epoch: OnEpoch) -> TrainResult:
        if dist.get_rank() == 1:
            raise TrainingError("no such luck")
        result: TrainResult = work(on_epoch)
        return result

    class Failing:
        def __call__(self, work: Any, *, out: Path, on_epoch: OnEpoch) -> TrainResult:
            return training(partial(fail, work), out=out, on_epoch=on_epoch)

    with (
        RayTraining(cluster.address, workers=2) as training,
        pytest.raises(TrainingError, match="no such luck"),
    ):
        run(plan, tmp_path, progress=False, together=Failing())


def test_more_workers_than_there_is_room_for(plan: FitPlan, cluster: Any, tmp_path: Path) -> None:
    with (
        RayTraining(cluster.address, workers=4) as training,
        pytest.raises(TrainingError, match=r"room for 3 workers, not for 4; .* or give --workers 3"),
    ):
        run(plan, tmp_path, progress=False, together=training)


def test_a_lost_machine_leaves_the_others(plan: FitPlan, alone: list[float | None], tmp_path: Path) -> None:
    told: Counter[int] = Counter()
    with three_machines() as cluster, RayTraining(cluster.address, workers=3) as training:

        def lose(record: EpochRecord) -> None:
            told.update([record.epoch])
            if record.epoch == 2 and told.total() == 2:
                cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)

        run(plan, tmp_path, progress=False, together=training, on_epoch=lose)
        assert training.slots() == 2
    assert curve(tmp_path) == pytest.approx(alone, rel=1e-4)
    assert told.total() + 1 > EPOCHS
