"""Core ML, where coremltools is installed: `make toolchains`. What was written is read back and computed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import mil
import numpy as np
import pytest
import torch
from networks import MBCONV, METADATA, SPECS, assert_same_answers, eager, make_model, pixels, write
from numpy.typing import NDArray
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy.export_store import list_exports
from phiscale.deploy.exporters.coreml import INPUT, write_coreml
from phiscale.deploy.runtimes.coreml import CoreMlRuntime, why_not_here
from phiscale.errors import MissingDependencyError, ModelDirError

ct = pytest.importorskip("coremltools")
pytestmark = [
    # Of its own functions, which coremltools calls.
    pytest.mark.filterwarnings("ignore:Function _TORCH_OPS_REGISTRY:DeprecationWarning"),
    # It leaves temporary folders to the garbage collector.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def collect_garbage() -> Iterator[None]:
    """Here, where what that warns of is known."""
    yield
    gc.collect()


@pytest.mark.parametrize("name", SPECS)
def test_the_program_answers_like_the_network(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", SPECS[name])
    path = write(write_coreml, model, tmp_path / "model.mlpackage")
    images = pixels(model)
    assert_same_answers(_carry_out(path, images), eager(model)(images))


def test_it_is_an_image_classifier_with_metadata(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    path = write(write_coreml, model, tmp_path / "model.mlpackage")
    package = ct.models.MLModel(str(path), skip_model_load=True)
    described = package.get_spec().description
    (image,) = described.input
    assert image.name == INPUT
    assert (image.type.imageType.height, image.type.imageType.width) == (35, 48)
    assert described.predictedFeatureName
    assert described.predictedProbabilitiesName
    assert METADATA.items() <= dict(package.user_defined_metadata).items()
    program = mil.load(path)
    (classify,) = [operation for operation in mil.operations(program) if operation.op_type == "classify"]
    assert list(classify.inputs["classes"].val) == list(model.classes)
    assert "batch_norm" not in {operation.op_type for operation in mil.operations(program)}


def test_grey_images_are_grey(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", SPECS["lite, grey"])
    path = write(write_coreml, model, tmp_path / "model.mlpackage")
    (image,) = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description.input
    assert image.type.imageType.colorSpace == ct.proto.FeatureTypes_pb2.ImageFeatureType.GRAYSCALE


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    with pytest.raises(ModelDirError, match="coreml is exported for one image size"):
        write(write_coreml, model, tmp_path / "model.mlpackage", dynamic_size=True)
    if why_not_here():
        with pytest.raises(MissingDependencyError, match="Core ML runs on macOS only"):
            CoreMlRuntime(tmp_path)


@pytest.mark.skipif(why_not_here() is None, reason="this system can check it")
def test_an_export_that_cannot_be_checked_says_so(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    result = CliRunner().invoke(app, ["export", str(model.path), "coreml"])
    assert result.exit_code == 0, result.output
    assert "checked  not: Core ML runs on macOS only\n" in result.stdout
    [export] = list_exports(model)
    assert (export.check, export.unchecked) == (None, "Core ML runs on macOS only")
    assert (export.model_path / "Manifest.json").is_file()
    export.verify()
    with pytest.raises(MissingDependencyError, match="Core ML runs on macOS only"):
        ps.load(model.path, runtime="coreml")


@pytest.mark.skipif(why_not_here() is not None, reason="Core ML runs on macOS only")
def test_core_ml_answers_like_the_network(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    folder = ps.export(model.path, "coreml")
    images = pixels(model)
    found = CoreMlRuntime(folder / "model.mlpackage")(images)
    np.testing.assert_allclose(found, eager(model)(images), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientnet_b0", "efficientnet_lite0"])
def test_full_size(network: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ps.get_spec(network))
    path = write(write_coreml, model, tmp_path / "model.mlpackage")
    images = pixels(model)
    assert_same_answers(_carry_out(path, images), eager(model)(images))


def _carry_out(path: Path, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities by the program, one image at a time as Core ML would."""
    program = mil.load(path)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    found: NDArray[np.float32] = torch.cat([mil.run(program, plane[None]) for plane in planes]).numpy()
    return found
