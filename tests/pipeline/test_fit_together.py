"""What `run` says about a training on several processes, whatever they lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from smooth_pictures import make_images

import phiscale as ps
from phiscale.errors import TrainingError
from phiscale.pipeline import plan_fit, run
from phiscale.pipeline.fit import OnEpoch
from phiscale.training.history import EpochRecord
from phiscale.training.train import TrainResult

SHORT = {"epochs": 4, "warmup_epochs": 0, "batch_size": 8}


def test_every_epoch_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_fit(make_images(tmp_path / "images"), budget=ps.Budget(macs=1e6), overrides=SHORT)

    def losing(work: Callable[[OnEpoch], TrainResult], *, out: Path, on_epoch: OnEpoch) -> TrainResult:
        """In this process; epochs 2 and 4 are over and are not told."""

        def tell(record: EpochRecord) -> None:
            if record.epoch in (1, 3):
                on_epoch(record)

        return work(tell)

    told: list[int] = []
    result = run(plan, tmp_path / "out", together=losing, on_epoch=lambda record: told.append(record.epoch))
    assert told == [1, 2, 3, 4]
    assert [record.epoch for record in result.training.history] == told
    assert [line[:9] for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")] == [
        f"epoch {epoch}/4" for epoch in told
    ]
    with pytest.raises(TrainingError, match="holds a run already"):
        run(plan, tmp_path / "out", together=losing)


def test_a_machine_that_does_not_see_the_folder(tmp_path: Path) -> None:
    plan = plan_fit(make_images(tmp_path / "images"), budget=ps.Budget(macs=1e6), overrides=SHORT)

    def elsewhere(work: Callable[[OnEpoch], TrainResult], *, out: Path, on_epoch: OnEpoch) -> TrainResult:
        (out / "plan.json").unlink()
        return work(on_epoch)

    with pytest.raises(TrainingError, match=r"does not see .*out; put the model directory into a folder"):
        run(plan, tmp_path / "out", together=elsewhere)
