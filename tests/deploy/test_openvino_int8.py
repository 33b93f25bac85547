"""Networks that NNCF has quantised."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from test_samples import make_classes
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy.export_store import Export, list_exports
from phiscale.deploy.exporters.openvino import pack, write_openvino
from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer, quiet_nncf
from phiscale.deploy.runtimes.base import open_export
from phiscale.errors import DataError, MissingDependencyError
from phiscale.nn.network import Network
from phiscale.spec import NetworkSpec, StageSpec
from phiscale.weights.config import read_config
from phiscale.weights.model_dir import save
from small_model import TINY, make_model

SPECS = {
    "mbconv": TINY,
    "relu6, no squeeze-excite": replace(
        TINY,
        activation="relu6",
        stages=(StageSpec(block="mbconv", out_channels=8, expand_ratio=2, num_layers=2),),
    ),
    "basic, grey": replace(
        TINY,
        in_channels=1,
        head=None,
        activation="relu",
        stages=(StageSpec(block="basic", out_channels=8, stride=2, num_layers=2),),
    ),
}
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)


def write(spec: NetworkSpec, folder: Path, *, dynamic_size: bool = False) -> Path:
    torch.manual_seed(0)
    directory = save(Network(spec), folder, classes=("cat", "dog", "owl"))
    tensors = {name: tensor.numpy() for name, tensor in Network(spec).state_dict().items()}
    write_openvino(read_config(directory), tensors, folder / "model.xml", dynamic_size=dynamic_size)
    return folder / "model.xml"


def run(path: Path, pixels: np.ndarray, *, streams: int = 1) -> np.ndarray:
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": streams}
    return np.array(ov.Core().compile_model(path, "CPU", config)([pixels])[0])


def in_int8(path: Path) -> set[str]:
    """Convolutions with a rounding before their input; the classifier's is before the pool."""
    ops = ov.Core().read_model(path).get_ops()
    return {
        node.get_friendly_name().partition("/")[0]
        for node in ops
        if node.get_type_name() in ("Convolution", "GroupConvolution")
        and node.input_value(0).get_node().get_type_name() == "FakeQuantize"
    }


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dynamic_size", [False, True], ids=["fixed", "dynamic"])
def test_it_answers_alike(name: str, dynamic_size: bool, tmp_path: Path) -> None:
    path = write(SPECS[name], tmp_path / "model", dynamic_size=dynamic_size)
    pixels = PIXELS[..., : SPECS[name].in_channels]
    quantizer = OpenVinoQuantizer(path)
    (tmp_path / "int8").mkdir()
    quantizer(tmp_path / "int8" / "model.xml", pixels)
    found, wanted = run(tmp_path / "int8" / "model.xml", pixels), run(path, pixels)
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert abs(found - wanted).mean() < 0.01
    np.testing.assert_allclose(run(tmp_path / "int8" / "model.xml", pixels, streams=2), found, atol=1e-4)
    if dynamic_size:
        assert run(tmp_path / "int8" / "model.xml", pixels[:, :, :20]).shape == (32, 3)


def test_groups_stay_in_floating_point(tmp_path: Path) -> None:
    path = write(TINY, tmp_path / "model")
    quantizer = OpenVinoQuantizer(path)
    seen: list[int] = []
    assert sorted(quantizer.groups) == [
        "classifier", "head", "stage 1 dense", "stage 1 depthwise", "stage 2 dense", "stage 2 depthwise",
        "stem",
    ]  # fmt: skip
    quantizer(tmp_path / "int8.xml", PIXELS, on_image=seen.append)
    everything = {
        "stem", "head", "stages.0.0.depthwise", "stages.0.0.project",
        *(f"stages.1.{layer}.{kind}" for layer in (0, 1) for kind in ("expand", "depthwise", "project")),
    }  # fmt: skip
    assert in_int8(tmp_path / "int8.xml") == everything
    assert seen[:32] == list(range(1, 33))
    quantizer(tmp_path / "kept.xml", PIXELS, kept=("stem", "stage 2 depthwise"))
    assert in_int8(tmp_path / "kept.xml") == everything - {
        "stem", "stages.1.0.depthwise", "stages.1.1.depthwise",
    }  # fmt: skip
    # All of it in floating point: what is left is the rounding of squeeze-excite's weights to 8 bits.
    quantizer(tmp_path / "float.xml", PIXELS, kept=quantizer.groups)
    assert in_int8(tmp_path / "float.xml") == set()
    np.testing.assert_allclose(run(tmp_path / "float.xml", PIXELS), run(path, PIXELS), atol=1e-3)


def test_every_swish_is_one_operation(tmp_path: Path) -> None:
    kinds = [node.get_type_name() for node in ov.Core().read_model(write(TINY, tmp_path / "m")).get_ops()]
    assert kinds.count("Swish") == 8
    assert kinds.count("Sigmoid") == 1  # squeeze-excite's gate
    assert "ShapeOf" not in kinds


def test_export_calibrates_and_measures_on_the_users_images(tmp_path: Path) -> None:
    model_dir = make_model(tmp_path / "model")
    photos = make_classes(tmp_path / "photos", {"cat": 10, "dog": 10, "owl": 10})
    result = CliRunner().invoke(
        app,
        ["export", str(model_dir), "openvino", "--precision", "int8", "--images", str(photos),
         "--max-drop", "100", "--json"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["loss"]["measure"] == "accuracy"
    assert (record["loss"]["images"], record["loss"]["views"]) == (15, 9)
    assert record["quantization"]["images"] == 15
    assert record["quantization"]["kept"] == []
    assert record["versions"]["nncf"]
    export, *others = list_exports(read_config(model_dir))
    assert not others
    assert export.size_bytes == sum(
        path.stat().st_size for path in export.path.iterdir() if path.name != "export.json"
    )
    assert {path.name for path in export.path.iterdir()} == {"model.xml.gz", "model.bin", "export.json"}
    answers = ps.load(model_dir, runtime="openvino").predict([photos / "cat" / "000.png"])
    assert answers[0].labels


def test_the_text_of_a_small_network_is_packed(tmp_path: Path) -> None:
    path = write(TINY, tmp_path / "model")
    plain = Export(
        path=path.parent,
        format="openvino",
        precision="int8",
        file=path.name,
        image_size=None,
        weights_sha256="",
        check=None,
        latency_ms={},
        versions={},
    )
    text, wanted = path.read_bytes(), open_export(plain)(PIXELS)
    packed = pack(plain)
    assert packed.file == "model.xml.gz"
    assert not path.exists()
    assert packed.model_path.stat().st_size < 0.15 * len(text)
    np.testing.assert_array_equal(open_export(packed)(PIXELS), wanted)
    # What `gunzip` gives is OpenVINO's own.
    path.write_bytes(gzip.decompress(packed.model_path.read_bytes()))
    assert path.read_bytes() == text
    # With weights enough that the text counts for little, it stays as it is.
    with path.with_suffix(".bin").open("ab") as file:
        file.truncate(10 * len(text))
    assert pack(plain) == plain
    assert path.exists()


def test_export_says_what_int8_costs(tmp_path: Path) -> None:
    model_dir = make_model(tmp_path / "model")
    photos = make_classes(tmp_path / "photos", {"a": 4, "b": 4})
    command = ["export", str(model_dir), "openvino", "--precision", "int8", "--images", str(photos)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "there are no labels to measure accuracy with" in " ".join(result.stdout.split())
    assert "int8     all" in result.stdout


def test_int8_needs_images_of_the_models_own(tmp_path: Path) -> None:
    model_dir = make_model(tmp_path / "model")
    with pytest.raises(DataError, match="int8 is calibrated and measured on images of the model's own"):
        ps.export(model_dir, "openvino", precision="int8")
    assert not (model_dir / "exports").exists()


def test_without_nncf_there_is_a_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_dir = make_model(tmp_path / "model")
    photos = make_classes(tmp_path / "photos", {"cat": 4, "dog": 4})
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'phiscale\[deploy\]'"):
        ps.export(model_dir, "openvino", precision="int8", images=photos)
    assert list((model_dir / "exports").iterdir()) == []


def test_nncf_is_quiet_and_sends_nothing(tmp_path: Path) -> None:
    path = write(TINY, tmp_path / "model")
    code = f"""
import logging, os, sys
import numpy as np
from pathlib import Path
from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer
pixels = np.zeros((4, 32, 32, 3), np.uint8)
OpenVinoQuantizer(Path({str(path)!r}))(Path({str(tmp_path / "int8.xml")!r}), pixels)
import nncf.telemetry.decorator
assert type(nncf.telemetry.decorator.telemetry).__name__ in ("type", "MagicMock"), "telemetry is on"
assert "NNCF_CI" not in os.environ
assert logging.getLoggerClass() is logging.Logger
"""
    environment = {name: value for name, value in os.environ.items() if name != "NNCF_CI"}
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_quiet_is_over_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_nncf() as nncf:
        assert nncf.__name__ == "nncf"
        print("nothing")
    print("something")
    assert capsys.readouterr().out == "something\n"
