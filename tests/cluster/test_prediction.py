"""Predictions by Ray are those of this process, in the same order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import phiscale as ps
import phiscale.cluster.prediction
from phiscale.cli.main import app
from phiscale.cluster import RayPrediction
from phiscale.deploy.predictor import Predictor
from phiscale.errors import ModelDirError, TrainingError
from ray_machines import MEMORY, clear_up, importable
from small_model import make_model

# Ray leaves sockets and log files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning")

COUNT = 90


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """One, with two cores."""
    ray: Any = pytest.importorskip("ray", reason="the cluster extra is not installed")
    with importable():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=MEMORY,
        )
        yield
        ray.shutdown()
        clear_up()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and pictures of which one is broken."""
    folder = tmp_path_factory.mktemp("predict")
    make_model(folder / "model")
    (folder / "photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            folder / f"photos/{index}.png"
        )
    (folder / "photos/17.png").write_bytes(b"broken")
    return folder


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phiscale.cluster.prediction, "SLICE", 10)


@dataclass(frozen=True)
class Deadly:
    """Opens a model, but kills the process where a file is not yet there."""

    model: Path
    mark: Path
    always: bool = False

    def __call__(self) -> Predictor:
        if self.always or not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return ps.load(self.model)


def photos(folder: Path) -> list[str]:
    return [str(folder / "photos" / f"{index}.png") for index in range(COUNT)]


def test_the_file_is_the_same_to_the_byte(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # relative paths, which a worker elsewhere must find
    for name, options in (("here.parquet", ()), ("there.parquet", ("--ray", "auto"))):
        arguments = ["predict", "model", "photos", "--output", str(tmp_path / name), *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert f"1 of {COUNT} images could not be read" in result.stderr
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", str(folder / "model"), str(folder / "photos"), "--output"]
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    assert CliRunner().invoke(app, [*arguments, str(whole)]).exit_code == 0
    asked: list[int] = []
    stream = RayPrediction.stream

    def breaking(self: RayPrediction, *args: Any, **options: Any) -> Iterator[Any]:
        asked.append(options["start"])
        for number, answer in enumerate(stream(self, *args, **options)):
            if len(asked) == 1 and number == 50:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(RayPrediction, "stream", breaking)
    assert CliRunner().invoke(app, [*arguments, str(broken), "--ray", "auto"]).exit_code == 130
    assert CliRunner().invoke(app, [*arguments, str(broken), "--ray", "auto"]).exit_code == 0
    assert asked == [0, 48]
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_slice_whose_worker_dies_is_done_again(folder: Path, tmp_path: Path) -> None:
    model = ps.load(folder / "model")
    deadly = Deadly(folder / "model", tmp_path / "mark")
    answers = list(RayPrediction().stream(deadly, model, photos(folder)))
    assert (tmp_path / "mark").exists()
    assert answers == model.predict(photos(folder))


def test_images_that_kill_every_worker(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phiscale.cluster.prediction, "RETRIES", 1)
    deadly = Deadly(folder / "model", tmp_path / "mark", always=True)
    with pytest.raises(TrainingError, match="could not be done on the Ray cluster"):
        next(RayPrediction().stream(deadly, ps.load(folder / "model"), photos(folder)[:4]))


def test_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = partial(ps.load, make_model(tmp_path / "other", seed=1))
    with pytest.raises(ModelDirError, match=r"opens the model with weights .*; give all machines the same"):
        next(RayPrediction().stream(other, ps.load(folder / "model"), photos(folder)))
