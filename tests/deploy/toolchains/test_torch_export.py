"""torch.export and AOTInductor: the same answers, for any batch, and no code of strangers."""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import (
    MBCONV,
    METADATA,
    SPECS,
    assert_same_answers,
    eager,
    make_model,
    pixels,
    write,
)

import phiscale as ps
from phiscale.deploy.exporters import torch as exporter
from phiscale.deploy.exporters.torch import write_torch
from phiscale.deploy.runtimes import inductor
from phiscale.deploy.runtimes.inductor import COMPILED, InductorRuntime
from phiscale.errors import ModelDirError, ShapeError

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="AOTInductor needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Notes on what was made here go to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C++ compiler; it saves ten seconds, too."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_an_exported_program_answers_like_the_network(
    name: str, dynamic: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(tmp_path / "model", SPECS[name])
    with caplog.at_level(logging.WARNING, "phiscale.deploy"):
        path = write(write_torch, model, tmp_path / "model.pt2", dynamic_size=dynamic)
    assert "not compiled" in caplog.text
    assert "no compiler" in caplog.text
    assert "long story" not in caplog.text
    assert not path.with_name(COMPILED).exists()
    runtime, wanted = InductorRuntime(path), eager(model)
    assert not runtime.is_compiled
    for size in [model.spec.image_size, (61, 50)] if dynamic else [model.spec.image_size]:
        for count in (1, 3):
            images = pixels(model, count, size)
            assert_same_answers(runtime(images), wanted(images))


@needs_compiler
@pytest.mark.slow
def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model", MBCONV)
    folder = ps.export(model.path, "torch")
    path, size = folder / "model.pt2", model.spec.image_size
    record = json.loads((folder / "export.json").read_text())
    assert record["check"]["max_difference"] < 1e-5
    runtime, wanted, images = InductorRuntime(path, image_size=size), eager(model), pixels(model)
    assert runtime.is_compiled
    assert_same_answers(runtime(images), wanted(images))
    assert_same_answers(runtime(images[1:2]), wanted(images[1:2]))
    # Strides that the compiled code does not expect.
    np.testing.assert_array_equal(runtime(images[:, :, ::-1][:, :, ::-1]), runtime(images))
    with pytest.raises(ShapeError, match="takes images of"):
        runtime(pixels(model, size=(32, 32)))
    for name in ("model.pt2", COMPILED):
        with zipfile.ZipFile(folder / name) as archive:
            kept = [archive.read(entry) for entry in archive.namelist() if entry.endswith("metadata.json")]
        assert any(json.loads(text).get("classes") == json.dumps(list(model.classes)) for text in kept), name

    # Another processor, or another PyTorch: its own program still runs.
    monkeypatch.setattr(inductor, "_machine", lambda: "another")
    elsewhere = InductorRuntime(path)
    assert not elsewhere.is_compiled
    assert_same_answers(elsewhere(images), wanted(images))


@pytest.mark.usefixtures("no_compiler")
def test_a_stranger_s_file_is_not_opened(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(write_torch, make_model(tmp_path / "model", MBCONV), tmp_path / "model.pt2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "another user"))
    path.with_name(COMPILED).write_bytes(b"native code")
    with pytest.raises(ModelDirError, match="can run any code; export again"):
        InductorRuntime(path)


@pytest.mark.usefixtures("no_compiler")
def test_a_changed_file_is_not_opened(tmp_path: Path) -> None:
    path = write(write_torch, make_model(tmp_path / "model", MBCONV), tmp_path / "model.pt2")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelDirError, match="was changed or not made here"):
        InductorRuntime(path)
    inductor.vouch(path)  # damaged before anybody looked
    with pytest.raises(ModelDirError, match=r"cannot open .*; export again"):
        InductorRuntime(path)


@pytest.mark.usefixtures("no_compiler")
def test_metadata_is_in_the_file(tmp_path: Path) -> None:
    path = write(write_torch, make_model(tmp_path / "model", MBCONV), tmp_path / "model.pt2")
    found = {exporter.METADATA: ""}
    torch.export.load(path, extra_files=found)
    assert json.loads(found[exporter.METADATA]) == METADATA


def test_a_free_size_needs_more_than_one_pixel_at_the_end(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", replace(MBCONV, image_size=(4, 48)))
    with pytest.raises(ModelDirError, match=r"only from 5 px on, and mbconv takes 4×48"):
        write(write_torch, model, tmp_path / "model.pt2", dynamic_size=True)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientnet_b0", "efficientnet_lite0"])
def test_full_size(network: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", ps.get_spec(network))
    path = write(write_torch, model, tmp_path / "model.pt2")
    runtime, images = InductorRuntime(path), pixels(model)
    assert runtime.is_compiled
    assert_same_answers(runtime(images), eager(model)(images))
