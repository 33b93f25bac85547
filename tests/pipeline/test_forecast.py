"""The forecast's arithmetic with a made-up clock and machine, and one real calibration."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from smooth_pictures import make_images

import phiscale as ps
from phiscale.pipeline import FitPlan, plan_fit
from phiscale.pipeline.forecast import OTHER_SECONDS, Calibration, calibrate, forecast
from phiscale.pipeline.room import Room, look
from phiscale.training.calibrate import StepTimes

STEPS = StepTimes(train=0.5, load=0.25, validate=0.125, load_val=0.0625, save=2.0)
MEASURED = Calibration(steps=STEPS, decode=0.03125)
ROOMY = Room(resident=400_000_000, memory=10**12, disk=10**12)
TRAIN, VAL = 24, 6


def plan(folder: Path, **overrides: Any) -> FitPlan:
    images = folder / "images"
    if not images.exists():
        make_images(images)
    settings = {"epochs": 4, "warmup_epochs": 0, "batch_size": 8, **overrides}
    return plan_fit(images, budget=ps.Budget(macs=1e6), overrides=settings)


def test_time_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    found = forecast(plan(tmp_path), tmp_path, spent=7.0, calibration=MEASURED, room=ROOMY, clock=lambda: 0.0)
    epoch = TRAIN * (0.5 + 0.25) + VAL * (0.125 + 0.0625) + 2.0
    cache, evaluation = (TRAIN + VAL) * 0.03125, VAL * (0.125 + 0.0625 + 2 * 0.03125)
    assert found.epoch_seconds == epoch
    assert found.seconds == 7.0 + OTHER_SECONDS + cache + 2.0 + 4 * epoch + evaluation
    resumed = forecast(
        plan(tmp_path), tmp_path, epochs_done=3, calibration=MEASURED, room=ROOMY, clock=lambda: 0.0
    )
    assert resumed.epochs == 1
    assert resumed.seconds == OTHER_SECONDS + cache + 2.0 + epoch + evaluation


def test_frozen_epochs_run_forward_only(tmp_path: Path) -> None:
    def seconds(frozen: int) -> float:
        chosen = plan(tmp_path, freeze_epochs=frozen)
        found = forecast(chosen, tmp_path, calibration=MEASURED, room=ROOMY, clock=lambda: 0.0).seconds
        assert found is not None
        return found

    assert seconds(0) - seconds(1) == TRAIN * (0.5 - 0.125)


def test_a_batch_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    found = forecast(plan(tmp_path, batch_size=16), tmp_path, calibration=MEASURED, room=ROOMY)
    assert found.epoch_seconds == 16 * 0.75 + VAL * 0.1875 + 2.0


def test_memory_is_the_process_its_tensors_and_the_cache(tmp_path: Path) -> None:
    chosen = plan(tmp_path)
    with_cache = forecast(chosen, tmp_path, calibration=MEASURED, room=ROOMY)
    without = forecast(plan(tmp_path, cache="off"), tmp_path, calibration=MEASURED, room=ROOMY)
    pixels = (TRAIN + VAL) * 40 * 48 * 3
    assert (with_cache.cache, with_cache.cache_bytes) == ("memory", pixels)
    assert with_cache.memory_bytes - without.memory_bytes == pixels
    more = replace(ROOMY, resident=500_000_000)
    later = forecast(chosen, tmp_path, calibration=MEASURED, room=more)
    assert later.memory_bytes - with_cache.memory_bytes == 100_000_000
    # Weights' average, and the two moments of AdamW.
    cost = ps.complexity(chosen.spec, 8, optimizer_states=3)
    assert with_cache.tensor_bytes == cost.training_bytes


def test_the_disk_holds_what_a_run_writes(tmp_path: Path) -> None:
    chosen = plan(tmp_path, epochs=1, ema_decay=0.9)
    expected = forecast(chosen, tmp_path / "model", calibration=MEASURED, room=ROOMY)
    from phiscale.pipeline import run

    run(chosen, tmp_path / "model", progress=False)
    checkpoint = (tmp_path / "model" / "checkpoints" / "last.ckpt").stat().st_size
    # Names and shapes of some hundred small tensors weigh something in a network as small as this.
    assert checkpoint == pytest.approx(expected.checkpoint_bytes, rel=0.5)
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == pytest.approx(
        expected.model_bytes, rel=0.05
    )


def test_says_what_would_fit(tmp_path: Path) -> None:
    chosen = plan(tmp_path, batch_size=16)
    need = forecast(chosen, tmp_path, calibration=MEASURED, room=ROOMY)
    assert need.problems == need.suggestions == ()
    added = need.memory_bytes - 400_000_000
    tight = Room(resident=400_000_000, memory=added - 1_000_000, disk=1000)
    found = forecast(chosen, tmp_path, calibration=MEASURED, room=tight)
    assert len(found.problems) == 2
    assert "--batch-size 8 --set accumulate=2" in found.suggestions
    assert "--set grad_checkpointing=true" in found.suggestions
    assert "--out on another disk" in found.suggestions
    smaller = plan(tmp_path, batch_size=8, accumulate=2)
    assert not any(
        "memory" in problem
        for problem in forecast(smaller, tmp_path, calibration=MEASURED, room=tight).problems
    )
    network = next(option for option in found.suggestions if option.startswith("--training-memory"))
    limit = float(network.split()[1].removesuffix("MB,")) * 1e6
    budget = ps.Budget(macs=1e6, training_bytes=limit)
    settings = {"epochs": 4, "warmup_epochs": 0, "batch_size": 16}
    fitting = plan_fit(tmp_path / "images", budget=budget, overrides=settings)
    assert forecast(fitting, tmp_path, calibration=MEASURED, room=replace(tight, disk=None)).problems == ()


def test_no_time_where_nothing_fits(tmp_path: Path) -> None:
    found = forecast(plan(tmp_path), tmp_path, room=Room(resident=0, memory=1000, disk=None))
    assert found.epoch_seconds is None
    assert found.seconds is None
    assert found.problems


def test_a_calibration_trains_for_a_few_steps_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ticks = count()
    chosen = plan(tmp_path, accumulate=2)
    state = torch.random.get_rng_state()
    found = calibrate(chosen, clock=lambda: float(next(ticks)))
    assert torch.equal(torch.random.get_rng_state(), state)
    # The clock moves by one at each look: between two looks lies one batch of eight.
    assert found.steps.load == found.steps.train == found.steps.validate == pytest.approx(1 / 8)
    assert found.steps.save == 1.0
    assert found.decode == pytest.approx(1 / TRAIN)
    assert not (tmp_path / "model").exists()


def test_this_machine_has_room(tmp_path: Path) -> None:
    room = look(tmp_path / "not" / "yet" / "there")
    assert room.disk is not None
    assert room.disk > 0
    if room.memory is not None and room.resident is not None:
        assert room.memory > 0
        assert room.resident > 1_000_000
