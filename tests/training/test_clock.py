"""Where an epoch's time goes, by a clock that is set by hand."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_training import RECIPE, fit

from phiscale.training import clock
from phiscale.training.clock import StepClock
from phiscale.training.history import EpochRecord, read_history
from phiscale.training.progress import ProgressCallback, describe

RECORD = EpochRecord(
    epoch=1, learning_rate=0.1, train_loss=1.0, train_top1=0.5, seconds=10.0, images_per_second=100.0
)


class Time:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(clock, "time", made)
    return made


def two_steps(steps: StepClock, time: Time) -> tuple[float, float]:
    for wait, work, other in ((3, 5, 7), (1, 2, 4)):
        time.now += wait
        steps.step_begins()
        time.now += work
        steps.step_ends()
        time.now += other
        steps.go_on()
    return steps.input_seconds, steps.step_seconds


def test_waiting_and_working(time: Time) -> None:
    assert two_steps(StepClock(), time) == (4, 7)
    assert two_steps(StepClock(input_seconds=10, step_seconds=20), time) == (14, 27)


@pytest.mark.parametrize(("idle", "expected"), [(True, (4, 7)), (False, (0, 11))])
def test_a_gpu_that_is_busy_waits_for_nothing(
    idle: bool, expected: tuple[float, float], time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream:
        def query(self) -> bool:
            return idle

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    assert two_steps(StepClock(device=torch.device("cuda")), time) == expected


def test_a_run_stores_its_shares(tmp_path: Path) -> None:
    history = fit(tmp_path, RECIPE).history
    assert read_history(tmp_path) == history
    for record in history:
        assert record.input_share is not None
        assert record.step_share is not None
        assert record.input_share > 0
        assert record.step_share > 0
        assert record.input_share + record.step_share < 1  # there were a validation and a checkpoint, too
    # Histories of before have none.
    old = [{k: v for k, v in record.to_dict().items() if "share" not in k} for record in history]
    (tmp_path / "history.json").write_text(json.dumps(old))
    assert read_history(tmp_path)[0].input_share is None


def report(*shares: float | None) -> str:
    console = Console(file=io.StringIO(), width=300)
    progress: Any = ProgressCallback(epochs=9, steps_per_epoch=5, console=console)
    for share in shares:
        progress.report(dataclasses.replace(RECORD, input_share=share), best=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_line_tells_of_waiting_that_matters() -> None:
    assert "waiting" not in describe(RECORD, epochs=9, best=True)
    for share, text in ((0.34, "34% waiting for images"), (0.0999, None), (None, None)):
        printed = report(share)
        assert (text is None) == ("waiting" not in printed)
        assert text is None or text in printed


def test_the_hint_comes_once() -> None:
    printed = report(0.05, 0.5, 0.6)
    assert printed.count("50% waiting") == printed.count("60% waiting") == 1
    assert printed.count("phiscale data pack") == 1
    assert "--set workers=" in printed
