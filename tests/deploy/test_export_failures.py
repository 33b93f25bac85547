"""What goes wrong while an export is made or after: one clear line, and nothing half-written."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_model import make_model
from test_samples import make_classes
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy import export as export_module
from phiscale.deploy.export_store import RECORD, list_exports
from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer
from phiscale.deploy.runtimes.base import open_export
from phiscale.errors import ModelDirError
from phiscale.weights.config import read_config

FILES = [("onnx", "model.onnx"), ("openvino", "model.xml"), ("openvino", "model.bin")]
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("exported") / "model")
    ps.export(folder, "onnx")
    ps.export(folder, "openvino")
    return folder


@pytest.fixture
def model_dir(exported: Path, tmp_path: Path) -> Path:
    """A model with an export for ONNX Runtime and one for OpenVINO."""
    return shutil.copytree(exported, tmp_path / "model")


def clear(model_dir: Path) -> None:
    shutil.rmtree(model_dir / "exports")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_usable(model_dir: Path) -> None:
    assert ps.load(model_dir).predict(PIXELS)[0].labels


# ---- damaged afterwards ----


@pytest.mark.parametrize(("format", "file"), FILES)
@pytest.mark.parametrize("damage", ["empty", "cut in half", "one byte short", "zeros", "one bit"])
def test_a_damaged_file(model_dir: Path, format: str, file: str, damage: str) -> None:  # noqa: A002
    path = model_dir / "exports" / f"{format}-fp32" / file
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(
        {
            "empty": b"",
            "cut in half": whole[:middle],
            "one byte short": whole[:-1],
            "zeros": whole[:middle] + bytes(len(whole) - middle),
            "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        }[damage]
    )
    with pytest.raises(ModelDirError, match=f"{file} is damaged; export again") as caught:
        ps.load(model_dir, runtime=format)
    assert "\n" not in str(caught.value)
    require_usable(model_dir)
    path.write_bytes(whole)
    assert ps.load(model_dir, runtime=format).predict(PIXELS)[0].labels


@pytest.mark.parametrize(("format", "file"), FILES)
def test_a_file_damaged_in_an_export_without_checksums(model_dir: Path, format: str, file: str) -> None:  # noqa: A002
    folder = model_dir / "exports" / f"{format}-fp32"
    [export] = [export for export in list_exports(read_config(model_dir)) if export.path == folder]
    (folder / RECORD).write_text(replace(export, sha256={}).to_json())
    (folder / file).write_bytes((folder / file).read_bytes()[:1000])
    with pytest.raises(ModelDirError, match="export again") as caught:
        ps.load(model_dir, runtime=format)
    assert "\n" not in str(caught.value)
    require_usable(model_dir)


def test_a_missing_file(model_dir: Path) -> None:
    (model_dir / "exports" / "openvino-fp32" / "model.bin").unlink()
    with pytest.raises(ModelDirError, match=r"cannot read .*model\.bin.*; export again"):
        ps.load(model_dir, runtime="openvino")
    require_usable(model_dir)


# ---- a full disk ----


MAIN = "from phiscale.cli.main import main; main()"


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_in_openvino(*_: Any, **__: Any) -> None:
    raise RuntimeError("Exception from src/core:12:\nbasic_ios::clear: iostream error\n")


WRITES = {
    "folder": ("onnx", "pathlib.Path.mkdir", full, "No space left on device"),
    "onnx": ("onnx", "onnx.save", full, "No space left on device"),
    "graph": ("openvino", "openvino.save_model", full_in_openvino, "iostream error; is the disk full?"),
    "text": ("openvino", "pathlib.Path.write_text", full, "No space left on device"),
    "record": ("onnx", "phiscale.deploy.export.write_text", full, "No space left on device"),
    "rename": ("onnx", "pathlib.Path.replace", full, "No space left on device"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("exported_before", [False, True], ids=["first export", "second export"])
def test_a_full_disk(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch, write: str, exported_before: bool
) -> None:
    format, target, failing, message = WRITES[write]  # noqa: A001
    if not exported_before:
        clear(model_dir)
    before = content(model_dir)
    with monkeypatch.context() as patch:
        patch.setattr(target, failing)
        result = CliRunner().invoke(app, ["export", str(model_dir), format])
    assert result.exit_code == 1
    assert isinstance(result.exception, ModelDirError)
    assert str(result.exception).startswith(f"cannot write the export to {model_dir / 'exports'}: ")
    assert str(result.exception).endswith(message)
    assert content(model_dir) == before
    require_usable(model_dir)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_disk_that_is_really_full(model_dir: Path, format: str) -> None:  # noqa: A002
    before = content(model_dir)

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    result = subprocess.run(
        [sys.executable, "-c", MAIN, "export", str(model_dir), format],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit_file_size,
    )
    assert result.returncode == 2, result.stderr
    [line] = result.stderr.strip().splitlines()
    assert f"cannot write the export to {model_dir / 'exports'}" in line
    assert content(model_dir) == before


# ---- an engine that dies ----


@pytest.mark.parametrize("at", [1, 4, 7])
def test_an_engine_that_dies_in_the_check(model_dir: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    before = content(model_dir)
    opened = open_export

    class Dying:
        def __init__(self, runtime: Callable[[Any], Any]) -> None:
            self.runtime, self.calls = runtime, 0

        def __call__(self, images: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise RuntimeError("segment 7 is gone\nand more")
            return self.runtime(images)

    monkeypatch.setattr(export_module, "open_export", lambda export: Dying(opened(export)))
    with pytest.raises(ModelDirError, match=r"the engine failed .*: segment 7 is gone$"):
        ps.export(model_dir, "onnx")
    assert content(model_dir) == before
    require_usable(model_dir)


def test_an_engine_that_is_wrong_in_streams(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(model_dir)
    opened = open_export

    class Wrong:
        def __init__(self, runtime: Callable[[Any], Any]) -> None:
            self.runtime = runtime

        def __call__(self, images: Any) -> Any:
            return self.runtime(images)

        def for_throughput(self) -> Callable[[Any], Any]:
            return lambda images: np.roll(self.runtime(images), 1, axis=1)

    monkeypatch.setattr(export_module, "open_export", lambda export: Wrong(opened(export)))
    with pytest.raises(ModelDirError, match="when it works on several images at once; nothing was exported"):
        ps.export(model_dir, "onnx")
    assert content(model_dir) == before


# ---- interrupted ----

STEPS = {
    "writing": "onnx.save",
    "opening": "phiscale.deploy.export.open_export",
    "checking": "phiscale.deploy.export._compare",
    "timing": "phiscale.deploy.export._latencies",
    "recording": "phiscale.deploy.export.write_text",
    "moving": "pathlib.Path.replace",
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("exported_before", [False, True], ids=["first export", "second export"])
def test_ctrl_c(model_dir: Path, monkeypatch: pytest.MonkeyPatch, step: str, exported_before: bool) -> None:
    if not exported_before:
        clear(model_dir)
    before = content(model_dir)

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step], interrupt)
        with pytest.raises(KeyboardInterrupt):
            ps.export(model_dir, "onnx")
    assert content(model_dir) == before
    require_usable(model_dir)


def test_ctrl_c_while_quantising(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_classes(tmp_path / "photos", {"cat": 4, "dog": 4})
    before = content(model_dir)
    quantize = OpenVinoQuantizer.__call__

    def interrupted(self: OpenVinoQuantizer, path: Path, images: Any, **options: Any) -> None:
        def stop(seen: int) -> None:
            if seen == 3:
                raise KeyboardInterrupt

        quantize(self, path, images, **{**options, "on_image": stop})

    monkeypatch.setattr(OpenVinoQuantizer, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ps.export(model_dir, "openvino", precision="int8", images=photos)
    assert content(model_dir) == before


KILLED = """
import importlib, os, pathlib, signal, sys
import phiscale as ps

directory, step, last, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
module, _, name = step.rpartition(".")
owner = pathlib.Path if module == "pathlib.Path" else importlib.import_module(module)
original, calls = getattr(owner, name), 0

def dying(*args, **kwargs):
    global calls
    calls += 1
    if calls < last:
        return original(*args, **kwargs)
    if after:
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, name, dying)
ps.export(directory, "onnx")
"""
# The function, and at which of its calls. What moves is the record, then the old export, then the new one.
KILLS = [("writing", 1), ("opening", 1), ("recording", 1), ("moving", 1), ("moving", 2), ("moving", 3)]


@pytest.mark.parametrize(
    ("step", "call", "moment"),
    [
        pytest.param(step, call, moment, marks=() if (call, moment) == (3, "before") else pytest.mark.slow)
        for step, call in KILLS
        for moment in ("before", "after")
    ],
)
def test_kill_9(model_dir: Path, step: str, call: int, moment: str) -> None:
    folder = model_dir / "exports" / "onnx-fp32"
    old = content(folder)
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(model_dir), STEPS[step], str(call), moment],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == -9, result.stderr
    require_usable(model_dir)
    [export] = [export for export in list_exports(read_config(model_dir)) if export.format == "onnx"]
    # The new one is there from the last move on, and not a moment before.
    assert (content(export.path) == old) == ((call, moment) != (3, "after"))
    assert ps.load(model_dir, runtime="onnx").predict(PIXELS)[0].labels
    # The next export clears away what the dead one left.
    assert ps.export(model_dir, "onnx") == folder
    assert sorted(path.name for path in folder.parent.iterdir()) == ["onnx-fp32", "openvino-fp32"]
