from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from test_samples import make_classes
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy import export as export_module
from phiscale.deploy.export_store import RECORD, list_exports
from phiscale.deploy.exporters.openvino import computes_in
from phiscale.deploy.exporters.toolchain import get_toolchain
from phiscale.deploy.runtimes.base import open_runtime
from phiscale.errors import DataError, MissingDependencyError, ModelDirError
from phiscale.weights.config import read_config
from small_model import TINY, make_model

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


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_without_skips(format: str, model_dir: Path, tmp_path: Path) -> None:  # noqa: A002
    spec = replace(TINY, stages=tuple(replace(stage, skip=False) for stage in TINY.stages))
    folder = make_model(tmp_path / "without", spec=spec)
    ps.export(folder, format)  # type: ignore[arg-type]
    without, with_skips = read_config(folder), read_config(model_dir)
    assert without.spec == spec
    pixels = np.random.default_rng(0).integers(0, 256, (3, *without.preprocess.size, 3), dtype=np.uint8)
    wanted = open_runtime(without, "torch")(pixels)
    np.testing.assert_allclose(open_runtime(without, format)(pixels), wanted, atol=1e-5)
    # The weights are those of the network with skips, and the answers are others.
    assert np.abs(open_runtime(with_skips, "torch")(pixels) - wanted).max() > 1e-3


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


@pytest.mark.skipif(
    "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="no bfloat16 here"
)
def test_bf16_is_measured_where_there_are_images(model_dir: Path, tmp_path: Path) -> None:
    ps.export(model_dir, "openvino", precision="bf16")
    [export] = list_exports(read_config(model_dir))
    assert (export.precision, export.loss, export.is_within_max_drop) == ("bf16", None, True)
    photos = make_classes(tmp_path / "photos", {"cat": 10, "dog": 10, "owl": 10})
    ps.export(model_dir, "openvino", precision="bf16", images=photos, max_drop=0.0)
    [export] = list_exports(read_config(model_dir))
    assert export.loss is not None
    assert (export.loss.measure, export.loss.images, export.max_drop) == ("accuracy", 15, 0.0)
    assert export.quantization is None


def test_bf16_needs_a_processor_that_has_it(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def get_property(self, *_: str) -> list[str]:
            return ["FP32", "INT8"]

    with monkeypatch.context() as patch:
        patch.setattr(ov, "Core", Old)
        assert (computes_in("fp32"), computes_in("int8")) == ("fp32", "fp32")
        with pytest.raises(ModelDirError, match="does not compute in bfloat16"):
            computes_in("bf16")


def test_what_cannot_run_here_is_written_without_a_check(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = replace(get_toolchain("onnx"), why_not_here=lambda: "it runs on the moon only")
    monkeypatch.setattr(export_module, "get_toolchain", lambda _format: elsewhere)
    result = CliRunner().invoke(app, ["export", str(model_dir), "onnx"])
    assert result.exit_code == 0, result.output
    assert "checked  not: it runs on the moon only\n" in result.stdout
    model = read_config(model_dir)
    [export] = list_exports(model)
    assert (export.check, export.unchecked) == (None, "it runs on the moon only")
    # It runs where it can when it is asked for by name, and by itself nowhere.
    assert type(open_runtime(model, "onnx")).__name__ == "OnnxRuntime"
    assert type(open_runtime(model)).__name__ == "TorchRuntime"


@pytest.mark.parametrize("max_drop", [-0.1, 100.5, float("nan"), float("inf")])
def test_a_limit_is_a_number_of_points(model_dir: Path, max_drop: float) -> None:
    with pytest.raises(ModelDirError, match="max_drop is in points of accuracy, from 0 to 100"):
        ps.export(model_dir, "openvino", precision="int8", max_drop=max_drop)


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
