"""ExecuTorch, where it is installed: `make toolchains`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from networks import MBCONV, METADATA, SPECS, assert_same_answers, eager, make_model, pixels, write

import phiscale as ps
from phiscale.deploy.exporters.executorch import write_executorch
from phiscale.deploy.runtimes.executorch import ExecuTorchRuntime
from phiscale.errors import ModelDirError

pytest.importorskip("executorch")
# Of Python's functions that ExecuTorch calls.
pytestmark = pytest.mark.filterwarnings("ignore:(read|open)_(text|binary) is deprecated:DeprecationWarning")


@pytest.mark.parametrize("name", SPECS)
def test_answers_like_the_network(name: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", SPECS[name])
    runtime = ExecuTorchRuntime(write(write_executorch, model, tmp_path / "model.pte"))
    images = pixels(model)
    first = runtime(images)
    kept = first.copy()
    assert_same_answers(first, eager(model)(images))
    runtime(images[::-1])
    assert (first == kept).all()  # the second run wrote elsewhere


def test_export_and_metadata(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    folder = ps.export(model.path, "executorch")
    assert json.loads((folder / "export.json").read_text())["check"]["max_difference"] < 1e-5
    runtime = pytest.importorskip("executorch.runtime")
    path = write(write_executorch, model, tmp_path / "model.pte")
    program = runtime.Runtime.get().load_program(path)
    (text,) = program.load_method("metadata").execute([])
    assert json.loads(text) == METADATA


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    with pytest.raises(ModelDirError, match="executorch is exported for one image size"):
        ps.export(model.path, "executorch", dynamic_size=True)
    path = tmp_path / "model.pte"
    path.write_bytes(b"no program")
    with pytest.raises(ModelDirError, match=r"cannot open .*; export again"):
        ExecuTorchRuntime(path)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientnet_b0", "efficientnet_lite0"])
def test_full_size(network: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ps.get_spec(network))
    runtime = ExecuTorchRuntime(write(write_executorch, model, tmp_path / "model.pte"))
    images = pixels(model)
    assert_same_answers(runtime(images), eager(model)(images))
