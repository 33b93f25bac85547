from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_model import make_model
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy import export as export_module
from phiscale.deploy.export_store import RECORD, list_exports
from phiscale.deploy.runtimes.base import open_runtime
from phiscale.errors import DataError, MissingDependencyError, ModelDirError
from phiscale.weights.config import read_config

FORMATS = ["onnx", "openvino"]


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.mark.parametrize("format", FORMATS)
def test_an_export_answers_like_the_network(format: str, model_dir: Path) -> None:  # noqa: A002
    folder = ps.export(model_dir, format)  # type: ignore[arg-type]
    assert folder == model_dir / "exports" / f"{format}-fp32"
    record = json.loads((folder / RECORD).read_text())
    assert record["check"]["agreement"] == 1.0
    assert record["check"]["max_difference"] < 1e-4
    assert record["check"]["images"] == 64
    assert set(record["latency_ms"]) == {"export", "eager"}

    model = read_config(model_dir)
    pixels = np.random.default_rng(0).integers(
        0, 256, (3, *model.preprocess.size, model.preprocess.channels), dtype=np.uint8
    )
    found, wanted = open_runtime(model, format)(pixels), open_runtime(model, "torch")(pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    # A batch of another size, and the first batch's answer is not overwritten by it.
    again = open_runtime(model, format)
    first = again(pixels)
    kept = first.copy()
    again(pixels[:1])
    np.testing.assert_array_equal(first, kept)


def test_auto_takes_the_fastest_and_only_of_these_weights(model_dir: Path) -> None:
    folder = ps.export(model_dir, "onnx")
    _pretend(folder, {"export": 1.0, "eager": 2.0})
    model = read_config(model_dir)
    assert type(open_runtime(model)).__name__ == "OnnxRuntime"
    _pretend(folder, {"export": 3.0, "eager": 2.0})
    assert type(open_runtime(model)).__name__ == "TorchRuntime"
    make_model(model_dir, seed=1)  # trained again
    assert list_exports(read_config(model_dir)) == []
    with pytest.raises(ModelDirError, match="phiscale export"):
        open_runtime(read_config(model_dir), "onnx")


def test_a_damaged_export_gives_way_to_torch(model_dir: Path) -> None:
    folder = ps.export(model_dir, "onnx")
    _pretend(folder, {"export": 1.0, "eager": 2.0})
    (folder / "model.onnx").write_bytes(b"not a graph")
    model = read_config(model_dir)
    assert type(open_runtime(model)).__name__ == "TorchRuntime"
    with pytest.raises(ModelDirError, match="export again"):
        open_runtime(model, "onnx")
    (folder / RECORD).write_text("{")
    assert list_exports(model) == []


def test_an_export_that_answers_differently_leaves_nothing(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong:
        def __call__(self, images: np.ndarray) -> np.ndarray:
            return np.tile(np.asarray([0.9, 0.1, 0.0], np.float32), (len(images), 1))

    monkeypatch.setattr(export_module, "open_export", lambda _export: Wrong())
    with pytest.raises(ModelDirError, match="answers differently from the network on 64 images"):
        ps.export(model_dir, "onnx")
    assert list((model_dir / "exports").iterdir()) == []
    assert ps.load(model_dir).classes  # the model directory still opens


def test_an_interrupted_export_keeps_the_old_one(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ps.export(model_dir, "onnx")
    before = (folder / "model.onnx").read_bytes()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_compare", stop)
    with pytest.raises(KeyboardInterrupt):
        ps.export(model_dir, "onnx")
    assert (folder / "model.onnx").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["onnx-fp32"]


def test_mistakes_are_one_line(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelDirError, match="no format is named 'tflite'"):
        ps.export(model_dir, "tflite")  # type: ignore[arg-type]
    with pytest.raises(ModelDirError, match="onnx is exported in fp32, not in bf16"):
        ps.export(model_dir, "onnx", precision="bf16")
    with pytest.raises(DataError, match="give a folder of images"):
        ps.export(model_dir, "onnx", images=tmp_path / "nowhere")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[deploy\]'"):
        ps.export(model_dir, "onnx")
    shutil.rmtree(model_dir)
    with pytest.raises(ModelDirError, match="does not exist"):
        ps.export(model_dir, "onnx")


def test_command(model_dir: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(model_dir), "onnx", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["format"] == "onnx"
    result = CliRunner().invoke(app, ["export", str(model_dir), "openvino", "--dynamic-size"])
    assert result.exit_code == 0, result.output
    assert "100.0% the same class on 64 images" in result.stdout


def _pretend(folder: Path, latency_ms: dict[str, float]) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "latency_ms": latency_ms}))
