from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_up_clock import install_clock
from PIL import Image
from typer.testing import CliRunner

from phiscale.cli.main import app
from phiscale.errors import RecipeError, SpecError

RUNNER = CliRunner()
SHORT = ("--macs", "1M", "--epochs", "1", "--set", "warmup_epochs=0", "--batch-size", "8")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for label, name in enumerate(("ash", "elm")):
        (root / name).mkdir(parents=True)
        for index in range(10):
            rng = np.random.default_rng((label, index))
            pixels = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
            image.save(root / name / f"{index}.png")
    return root


def test_says_what_it_found_chose_and_reached(images: Path, tmp_path: Path) -> None:
    (images / "ash" / "broken.png").write_bytes(b"")
    result = RUNNER.invoke(app, ["fit", str(images), "--out", str(tmp_path / "model"), *SHORT])
    assert result.exit_code == 0, result.output
    text = result.stdout
    assert "2 classes, 16 train, 4 val" in text
    assert "zero byte, such as ash/broken.png" in text
    assert "the largest network within the budget is efficientnet_b0 at φ =" in text
    assert "an epoch" in text
    assert "top-1" in text
    assert str(tmp_path / "model") in text


def test_a_dry_run_writes_nothing(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = RUNNER.invoke(app, ["fit", str(images), "--out", str(out), *SHORT, "--dry-run"])
    assert result.exit_code == 0, result.output
    for line in ("memory   about", "disk     about", "time     about"):
        assert line in result.stdout
    result = RUNNER.invoke(app, ["fit", str(images), "--out", str(out), *SHORT, "--dry-run", "--json"])
    content = json.loads(result.stdout)
    assert content["plan"]["recipe"]["batch_size"] == 8
    assert content["forecast"]["seconds"] >= content["forecast"]["epoch_seconds"] > 0
    assert not out.exists()


def test_json_is_all_that_is_printed(images: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["fit", str(images), "--out", str(tmp_path / "model"), *SHORT, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert len(content["history"]) == 1
    assert content["metrics"]["num_images"] == 4
    assert content["interrupted"] is False


def test_what_is_fast_enough(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = install_clock(monkeypatch, tmp_path / "cache")
    where = ("fit", str(images), "--out", str(tmp_path / "model"))
    result = RUNNER.invoke(
        app, [*where, *SHORT[2:], "--latency-ms", "0.12", "--macs", "50M", "--threads", "1"]
    )
    assert result.exit_code == 0, result.output
    assert "latency_ms binds" in " ".join(result.stdout.split())
    assert "it takes" in result.stdout
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["provenance"]["budget"]["timing"]["median_ms"] <= 0.12
    number = len(timed)
    assert number > 0
    assert RUNNER.invoke(app, [*where, "--resume"]).exit_code == 0
    assert len(timed) == number


def test_settings(images: Path, tmp_path: Path) -> None:
    def fit(*more: str) -> BaseException | None:
        return RUNNER.invoke(app, ["fit", str(images), "--out", str(tmp_path / "m"), *more]).exception

    assert isinstance(fit("--set", "epochs"), RecipeError)
    error = fit("--set", "augment.polcy=none")
    assert isinstance(error, RecipeError)
    assert "policy" in str(error)  # did you mean
    assert isinstance(fit("--resize", "stretch"), SpecError)
    assert not (tmp_path / "m").exists()


def test_the_demo_makes_what_it_says(tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["demo", "--out", str(tmp_path), "--epochs", "1", "--macs", "2M"])
    assert result.exit_code == 0, result.output
    assert "held-out emoji" in result.stdout
    for name in ("training", "confusion", "predictions"):
        with Image.open(tmp_path / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 300
    assert (tmp_path / "model" / "metrics.json").exists()


def test_workers_are_of_a_cluster(images: Path, tmp_path: Path) -> None:
    def fit(*more: str) -> str:
        result = RUNNER.invoke(app, ["fit", str(images), "--out", str(tmp_path / "m"), *more])
        assert result.exit_code == 2
        return " ".join(result.output.replace("│", " ").split())

    assert "--workers is how many processes train together and goes with --ray" in fit("--workers", "2")
    assert "go with --ray" in fit("--gpus-per-worker", "1")
    assert "--ray needs --workers" in fit("--ray", "auto")
    assert not (tmp_path / "m").exists()
