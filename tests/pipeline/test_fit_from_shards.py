"""From shards, stopped within an epoch and gone on with: the weights of an unbroken run on the folder."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import phiscale as ps
from malformed import picture
from phiscale.data.packing import pack
from phiscale.data.sources import open_source
from phiscale.training import checkpoints
from phiscale.training.clock import StepClock

SETTINGS = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "cache": "off", "workers": 2}


def test_a_stopped_run_on_shards_ends_as_an_unbroken_one_on_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(60):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(200, 150, seed=number).save(path)
    pack(open_source(tmp_path / "images", val_fraction=0), tmp_path / "shards", shard_size=50_000)
    options: dict[str, Any] = {"model": "mobilenet_v1", "budget": ps.Budget(macs=1e6), "image_size": 32}
    options |= {"overrides": SETTINGS, "progress": False}
    ps.fit(tmp_path / "images", tmp_path / "whole", **options)

    real, steps = StepClock.step_ends, 0

    def step_ends(self: StepClock) -> None:
        nonlocal steps
        real(self)
        steps += 1
        if steps == 9:  # the third of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(StepClock, "step_ends", step_ends)
        ps.fit(tmp_path / "shards", tmp_path / "run", **options)
    found = checkpoints.find(tmp_path / "run")
    assert found is not None
    assert checkpoints.RunState.take_from(found[1]).part.batches == 3
    ps.fit(tmp_path / "shards", tmp_path / "run", resume=True, progress=False)
    whole, run = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert whole.keys() == run.keys()
    assert [name for name, value in whole.items() if not torch.equal(value, run[name])] == []
