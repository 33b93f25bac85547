"""Processes that train together do what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
from together import run_together, train_share
from toy_training import RECIPE, state

from phiscale.errors import TrainingError
from phiscale.training.history import EpochRecord, read_history
from phiscale.training.recipe import Recipe

# Adam divides a gradient by its own size, so where that is nearly nothing noise becomes a whole step; plain
# SGD shows what is really computed.
SGD = RECIPE.override({"optimizer": "sgd", "learning_rate": 0.5})
VARIANTS = {
    "mixup, dropout, drop path": SGD,
    "no average": SGD.override({"ema_decay": 0.0, "mixup_alpha": 0.0}),
    "accumulated": SGD.override({"accumulate": 3, "clip_grad_norm": 1.0}),
    "frozen first": SGD.override({"freeze_epochs": 1}),
    "checkpointed": SGD.override({"grad_checkpointing": True}),
    "adamw": RECIPE,
}


class StopError(Exception):
    """Ends a process after an epoch."""


def curve(out: Path) -> list[float | None]:
    return [value for r in read_history(out) for value in (r.train_loss, r.train_top1, r.val_loss, r.val_top1)]


def difference(one: Path, other: Path) -> float:
    first, second = state(one), state(other)
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_are_one(variant: str, count: int, tmp_path: Path) -> None:
    recipe = VARIANTS[variant]
    train_share(tmp_path / "alone", recipe)
    assert run_together(train_share, tmp_path / "together", recipe, count=count, folder=tmp_path) == [0] * count
    print(variant, count, difference(tmp_path / "alone", tmp_path / "together"))
    print(curve(tmp_path / "alone"), curve(tmp_path / "together"))
    assert curve(tmp_path / "together") == pytest.approx(curve(tmp_path / "alone"), abs=1e-5)
    assert difference(tmp_path / "alone", tmp_path / "together") < 1e-4
