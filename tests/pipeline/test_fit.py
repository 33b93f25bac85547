from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from smooth_pictures import make_images

import phiscale as ps
from malformed import make_malformed
from phiscale.errors import ModelDirError, TrainingError
from phiscale.pipeline.fit import run, tune_plan
from phiscale.pipeline.plan import plan_fit, read_plan
from phiscale.training.recipe import get_recipe

SHORT = {"epochs": 2, "warmup_epochs": 0, "batch_size": 8}
BUDGET = ps.Budget(macs=1e6)


def test_from_images_to_predictions(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    model = ps.fit(images, tmp_path / "model", budget=BUDGET, overrides=SHORT, progress=False)
    assert model == tmp_path / "model"
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["data"]["split"] == "val"
    assert metrics["num_images"] == 6
    predictor = ps.load(model)
    (prediction,) = predictor.predict([images / "ash" / "0.png"], top_k=3)
    assert set(prediction.labels) == {"ash", "elm", "oak"}
    assert sum(prediction.scores) == pytest.approx(1.0, abs=1e-5)
    config = json.loads((model / "config.json").read_text())
    assert config["provenance"]["budget"]["utilization"]["macs"] <= 1.0
    assert config["provenance"]["data"]["images"] == {"train": 24, "val": 6, "test": 0}


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")

    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        overrides = {**SHORT, "seed": seed}
        return load_file(
            ps.fit(images, tmp_path / name, budget=BUDGET, overrides=overrides, progress=False)
            / "model.safetensors"
        )

    state = torch.random.get_rng_state()
    first, again, other = weights("a", 1), weights("b", 1), weights("c", 2)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's randomness is left alone
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])


def test_a_run_is_not_thrown_away_by_accident(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    ps.fit(images, tmp_path / "model", budget=BUDGET, overrides=SHORT, progress=False)
    with pytest.raises(TrainingError, match="holds a run already"):
        ps.fit(images, tmp_path / "model", budget=BUDGET, overrides=SHORT, progress=False)
    ps.fit(images, tmp_path / "model", budget=BUDGET, overrides=SHORT, progress=False, overwrite=True)


def test_fine_tuning_keeps_what_fits(tmp_path: Path) -> None:
    first = ps.fit(
        make_images(tmp_path / "a"), tmp_path / "first", budget=BUDGET, overrides=SHORT, progress=False
    )
    more = make_images(tmp_path / "b")
    (more / "oak").rename(more / "fir")
    overrides = {**SHORT, "freeze_epochs": 1, "ema_decay": 0, "learning_rate": 1e-12}
    second = ps.fit(more, tmp_path / "second", weights=first, overrides=overrides, progress=False)
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    # At such a rate nothing moves: what is equal was taken over, what is not was made anew.
    torch.testing.assert_close(after["stem.conv.weight"], before["stem.conv.weight"], rtol=0, atol=1e-6)
    assert ps.load(second).classes == ("ash", "elm", "fir")


def test_fine_tuning_from_a_weight_file(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    first = ps.fit(images, tmp_path / "first", budget=BUDGET, overrides=SHORT, progress=False)
    spec = tmp_path / "spec.json"
    spec.write_text(
        ps.NetworkSpec.from_dict(json.loads((first / "config.json").read_text())["spec"]).to_json()
    )
    overrides = {**SHORT, "freeze_epochs": 1, "ema_decay": 0, "learning_rate": 1e-12}
    weights = first / "model.safetensors"
    second = ps.fit(
        images, tmp_path / "second", model=spec, weights=weights, overrides=overrides, progress=False
    )
    before, after = load_file(weights), load_file(second / "model.safetensors")
    torch.testing.assert_close(after["stem.conv.weight"], before["stem.conv.weight"], rtol=0, atol=1e-6)
    with pytest.raises(ModelDirError, match="does not exist"):
        ps.fit(images, tmp_path / "third", weights=tmp_path / "nowhere.safetensors", progress=False)
    with pytest.raises(ModelDirError, match="the network is resnet18"):
        ps.fit(images, tmp_path / "third", model="resnet18", weights=weights, progress=False)


def test_small_images_take_all_weights_but_the_classifiers(tmp_path: Path) -> None:
    """Lower strides change no shape, so pretrained weights are kept."""
    wide = replace(ps.get_spec("mobilenet_v2"), num_classes=10)
    weights = ps.save(ps.create_model(wide), tmp_path / "wide") / "model.safetensors"
    images = make_images(tmp_path / "images", size=(32, 32))
    overrides = {**SHORT, "epochs": 1, "ema_decay": 0, "learning_rate": 1e-12}
    options: dict[str, Any] = {
        "model": "mobilenet_v2",
        "weights": weights,
        "overrides": overrides,
        "progress": False,
    }
    for keep, stride in ((False, 8), (True, 32)):
        out = ps.fit(images, tmp_path / f"out-{stride}", keep_strides=keep, **options)
        assert ps.load(out).model.spec.output_stride == stride
        before, after = load_file(weights), load_file(out / "model.safetensors")
        assert before.keys() == after.keys()
        for name, value in before.items():
            if "running" not in name and "num_batches" not in name and not name.startswith("classifier"):
                torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6, msg=name)


def test_malformed_images_stop_nothing(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    make_malformed(images / "ash")
    model = ps.fit(images, tmp_path / "model", budget=BUDGET, overrides=SHORT, progress=False)
    plan = json.loads((model / "plan.json").read_text())
    assert sum("bad_" in name for name in plan["unusable"]) > 40
    assert not any("odd_" in name for name in plan["unusable"])


def _start(images: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    code = "from phiscale.cli.main import main; main()"
    command = [sys.executable, "-c", code, "fit", str(images), "--out", str(out), "--macs", "1M"]
    settings = ("--epochs", "6", "--set", "warmup_epochs=1")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, *settings, *more], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _epochs(out: Path) -> int:
    try:
        return len(json.loads((out / "history.json").read_text()))
    except (OSError, ValueError):
        return 0


def test_killed_and_resumed_equals_unbroken(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    unbroken = _start(images, tmp_path / "unbroken")
    _, errors = unbroken.communicate(timeout=120)
    assert unbroken.returncode == 0, errors.decode()
    broken = tmp_path / "broken"
    process = _start(images, broken)
    deadline = time.monotonic() + 120
    while _epochs(broken) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 2 <= _epochs(broken) < 6
    ps.load(broken)  # opens at any time
    resumed = _start(images, broken, "--resume")
    _, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors.decode()
    expected = load_file(tmp_path / "unbroken" / "model.safetensors")
    found = load_file(broken / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    process = _start(images, tmp_path / "model", "--set", "epochs=500")
    deadline = time.monotonic() + 120
    while _epochs(tmp_path / "model") < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"resume" in errors
    assert b"Traceback" not in errors


def test_a_tuned_run_is_resumed_as_it_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe("fast").override(SHORT)
    plan = plan_fit(make_images(tmp_path / "images"), recipe=recipe, image_size=32)
    assert plan.recipe.tune == "auto"
    short = tune_plan(plan)  # 30 images do not pay for a measurement
    assert (short.recipe.tune, short.recipe.precision, short.notes) == ("off", "32-true", plan.notes)

    module = importlib.import_module("phiscale.pipeline.fit")  # its function hides it
    monkeypatch.setattr(module, "worth_tuning", lambda *_, **__: True)
    # The clock is not to be relied on: the faster of two ways is made so.
    times = {"32-true": 2.0, "bf16-mixed": 1.0}
    monkeypatch.setattr("phiscale.training.tune._Trial.time", lambda self, way: times[way.precision])
    # On pictures of 32 px, whose maps are 1 px at last, bf16 is far off, torch's own too.
    monkeypatch.setattr("phiscale.training.tune.AUTOCAST_TIMES", 10.0)
    number = signal.SIGINT
    result = run(plan, tmp_path / "model", progress=False, on_epoch=lambda _: os.kill(os.getpid(), number))
    assert result.training.interrupted
    stored = read_plan(tmp_path / "model")
    assert (stored.recipe.tune, stored.recipe.precision, stored.recipe.fast_layers) == (
        "off",
        "bf16-mixed",
        True,
    )
    assert stored.notes[-1].startswith("mixed bf16, fast layers: 2.0 × as fast")

    times["bf16-mixed"] = 3.0  # would be chosen no longer
    resumed = run(stored, tmp_path / "model", resume=True, progress=False)
    assert len(resumed.training.history) == SHORT["epochs"]
    written = json.loads((tmp_path / "model" / "config.json").read_text())["provenance"]
    assert written["training"]["recipe"]["precision"] == "bf16-mixed"
    assert written["chosen"] == list(stored.notes)
