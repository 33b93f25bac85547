"""LiteRT, where it is installed: `make toolchains`."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from networks import MBCONV, METADATA, SPECS, assert_same_answers, eager, make_model, pixels, write

import phiscale as ps
from phiscale.deploy.exporters.litert import LABELS, write_litert
from phiscale.deploy.exporters.litert import METADATA as METADATA_FILE
from phiscale.deploy.runtimes.litert import LiteRtRuntime
from phiscale.errors import ModelDirError

pytest.importorskip("litert_torch")


@pytest.mark.parametrize("name", SPECS)
def test_answers_like_the_network(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", SPECS[name])
    runtime = LiteRtRuntime(write(write_litert, model, tmp_path / "model.tflite"))
    images = pixels(model)
    assert_same_answers(runtime(images), eager(model)(images))


def test_the_converter_folds_the_padding_of_blocks(tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = make_model(tmp_path / "model", MBCONV)
    path = write(write_litert, model, tmp_path / "model.tflite")
    kinds = [op["op_name"] for op in interpreter.Interpreter(str(path))._get_ops_details()]
    assert "DEPTHWISE_CONV_2D" in kinds
    assert len([kind for kind in kinds if "PAD" in kind]) <= 1  # the stem's


def test_export_and_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    folder = ps.export(model.path, "litert")
    assert json.loads((folder / "export.json").read_text())["check"]["max_difference"] < 1e-5
    assert capsys.readouterr().out == ""
    with zipfile.ZipFile(write(write_litert, model, tmp_path / "model.tflite")) as archive:
        assert archive.read(LABELS).decode().splitlines() == list(model.classes)
        assert json.loads(archive.read(METADATA_FILE)) == METADATA


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    with pytest.raises(ModelDirError, match="litert is exported for one image size"):
        ps.export(model.path, "litert", dynamic_size=True)
    path = tmp_path / "model.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(ModelDirError, match=r"cannot open .*; export again"):
        LiteRtRuntime(path)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientnet_b0", "efficientnet_lite0"])
def test_full_size(network: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ps.get_spec(network))
    runtime = LiteRtRuntime(write(write_litert, model, tmp_path / "model.tflite"))
    images = pixels(model)
    assert_same_answers(runtime(images), eager(model)(images))
