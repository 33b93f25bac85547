"""What goes wrong while an export is made or after: one clear line, and nothing half-written."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_samples import make_classes
from typer.testing import CliRunner

import phiscale as ps
from phiscale.cli.main import app
from phiscale.deploy import export as export_module
from phiscale.deploy.export_store import RECORD, Export, list_exports
from phiscale.deploy.exporters.openvino_int8 import OpenVinoQuantizer
from phiscale.deploy.runtimes.base import open_export
from phiscale.errors import ModelDirError
from phiscale.weights.config import WEIGHTS, read_config
from small_model import make_model

FILES = [
    ("onnx-fp32", "model.onnx"),
    ("openvino-fp32", "model.xml"),
    ("openvino-fp32", "model.bin"),
    ("openvino-int8", "model.xml.gz"),
    ("openvino-int8", "model.bin"),
]
PIXELS = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "one byte short": lambda whole: whole[:-1],
    "zeros": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    "one bit": lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classes(tmp_path_factory.mktemp("photos"), {"cat": 4, "dog": 4})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    folder = make_model(tmp_path_factory.mktemp("exported") / "model")
    ps.export(folder, "onnx")
    ps.export(folder, "openvino")
    ps.export(folder, "openvino", precision="int8", images=photos, max_drop=100.0)
    return folder


@pytest.fixture
def model_dir(exported: Path, tmp_path: Path) -> Path:
    """A model with an export for ONNX Runtime and two for OpenVINO."""
    return shutil.copytree(exported, tmp_path / "model")


@pytest.fixture
def int8(photos: Path) -> list[str]:
    """Arguments of ``phiscale export`` after the model directory."""
    return ["openvino", "--precision", "int8", "--images", str(photos), "--max-drop", "100"]


def clear(model_dir: Path) -> None:
    shutil.rmtree(model_dir / "exports")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def require_usable(model_dir: Path) -> None:
    assert ps.load(model_dir).predict(PIXELS)[0].labels


# ---- damaged afterwards ----


@pytest.mark.parametrize(("name", "file"), FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file(model_dir: Path, name: str, file: str, damage: str) -> None:
    path = model_dir / "exports" / name / file
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[damage](whole))
    with pytest.raises(ModelDirError, match=f"{file} is damaged; export again") as caught:
        ps.load(model_dir, runtime=name)
    assert "\n" not in str(caught.value)
    require_usable(model_dir)
    path.write_bytes(whole)
    assert ps.load(model_dir, runtime=name).predict(PIXELS)[0].labels


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record(model_dir: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    record = model_dir / "exports" / "openvino-int8" / RECORD
    # One bit of a checksum: the record can be read, but it is of another file.
    one_bit = record.read_bytes().replace(b'"model.bin"', b'"model.bio"')
    record.write_bytes(one_bit if damage == "one bit" else DAMAGE[damage](record.read_bytes().rstrip()))
    require_usable(model_dir)
    with pytest.raises(ModelDirError) as caught:
        ps.load(model_dir, runtime="openvino-int8")
    said = [*caplog.messages, str(caught.value)]
    assert any("export again" in line for line in said)
    assert "\n" not in str(caught.value)
    assert ps.load(model_dir, runtime="onnx").predict(PIXELS)[0].labels


@pytest.mark.parametrize(("name", "file"), FILES)
def test_a_file_damaged_in_an_export_without_checksums(model_dir: Path, name: str, file: str) -> None:
    folder = model_dir / "exports" / name
    [export] = [export for export in list_exports(read_config(model_dir)) if export.path == folder]
    (folder / RECORD).write_text(replace(export, sha256={}).to_json())
    (folder / file).write_bytes((folder / file).read_bytes()[:1000])
    with pytest.raises(ModelDirError, match="export again") as caught:
        ps.load(model_dir, runtime=name)
    assert "\n" not in str(caught.value)
    require_usable(model_dir)


@pytest.mark.parametrize("name", ["openvino-fp32", "openvino-int8"])
def test_a_missing_file(model_dir: Path, name: str) -> None:
    (model_dir / "exports" / name / "model.bin").unlink()
    with pytest.raises(ModelDirError, match=r"cannot read .*model\.bin.*; export again"):
        ps.load(model_dir, runtime=name)
    require_usable(model_dir)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_not_exported(model_dir: Path, damage: str) -> None:
    weights = model_dir / WEIGHTS
    weights.write_bytes(DAMAGE[damage](weights.read_bytes()))
    before = content(model_dir)
    with pytest.raises(ModelDirError, match=r"copy or download it again|copy the whole directory again"):
        ps.export(model_dir, "onnx")
    assert content(model_dir) == before


# ---- a disk that is full, or not to be written on ----


MAIN = "from phiscale.cli.main import main; main()"


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forbidden(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def full_in_openvino(*_: Any, **__: Any) -> None:
    raise RuntimeError("Exception from src/core:12:\nbasic_ios::clear: iostream error\n")


WRITES = {
    "forbidden": ("onnx", "pathlib.Path.mkdir", forbidden, "Permission denied"),
    "folder": ("onnx", "pathlib.Path.mkdir", full, "No space left on device"),
    "onnx": ("onnx", "onnx.save", full, "No space left on device"),
    "graph": ("openvino", "openvino.save_model", full_in_openvino, "iostream error; is the disk full?"),
    "text": ("openvino", "pathlib.Path.write_text", full, "No space left on device"),
    "record": ("onnx", "phiscale.deploy.export.write_text", full, "No space left on device"),
    "rename": ("onnx", "pathlib.Path.replace", full, "No space left on device"),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("exported_before", [False, True], ids=["first export", "second export"])
def test_a_disk_that_cannot_be_written(
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


@pytest.mark.parametrize("target", ["openvino.save_model", "phiscale.deploy.export.write_text"])
def test_a_disk_that_is_full_of_attempts(
    model_dir: Path, int8: list[str], monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    before = content(model_dir)
    module, _, name = target.rpartition(".")
    write, calls = getattr(importlib.import_module(module), name), 0

    def full_at_last(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        # OpenVINO writes the network in fp32 first, and then the attempts at int8.
        if target.startswith("phiscale") or calls == 2:
            full_in_openvino() if target.startswith("openvino") else full()
        write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(target, full_at_last)
        result = CliRunner().invoke(app, ["export", str(model_dir), *int8])
    assert isinstance(result.exception, ModelDirError)
    assert str(result.exception).startswith(f"cannot write the export to {model_dir / 'exports'}: ")
    assert "\n" not in str(result.exception)
    assert content(model_dir) == before
    assert ps.load(model_dir, runtime="openvino-int8").predict(PIXELS)[0].labels


def run_export(
    arguments: list[str],
    *,
    prefix: Sequence[str] = (),
    preexec_fn: Callable[[], None] | None = None,
) -> str:
    """Run ``phiscale export`` where it must fail, in a process of its own. Returns the line that it says."""
    result = subprocess.run(
        [*prefix, sys.executable, "-c", MAIN, "export", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=preexec_fn,
    )
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    line, *more = result.stderr.strip().splitlines()
    assert not more
    return line


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_a_file_that_may_not_grow(model_dir: Path, format: str) -> None:  # noqa: A002
    before = content(model_dir)

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    line = run_export([str(model_dir), format], preexec_fn=limit_file_size)
    assert line.startswith(f"error: cannot write the export to {model_dir / 'exports'}: ")
    assert content(model_dir) == before


# A file system in memory, that this process and its children see alone; what is left there is copied out.
ON_A_SMALL_DISK = """
set -e
disk=$1 pages=$2 model=$3 left=$4
shift 4
mount -t tmpfs -o size=$((4096 * pages)) tmpfs "$disk"
cp -r "$model" "$disk/model"
status=0
"$@" || status=$?
cp -r "$disk/model" "$left"
exit $status
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_run(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, check=False).returncode == 0


@pytest.mark.skipif(
    not can_run(*NAMESPACE, "true"), reason="this system lets nobody mount a file system of their own"
)
@pytest.mark.parametrize(
    ("name", "free_pages"),
    [
        ("onnx", 4),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("onnx", 1), ("int8", 1), ("int8", 4))),
    ],
)
def test_a_disk_that_is_really_full(
    model_dir: Path, int8: list[str], tmp_path: Path, name: str, free_pages: int
) -> None:
    # By files and folders; the one more is the file system's own.
    used = sum(-(-path.stat().st_size // 4096) for path in model_dir.rglob("*") if path.is_file()) + 1
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), str(used + free_pages), str(model_dir), str(left)]
    arguments = int8 if name == "int8" else [name]
    line = run_export([str(disk / "model"), *arguments], prefix=[*NAMESPACE, *shell])
    assert line.startswith(f"error: cannot write the export to {disk / 'model' / 'exports'}: ")
    assert content(left) == content(model_dir)


# Root may write everywhere, but for this privilege.
AS_ANYBODY = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.skipif(
    bool(AS_ANYBODY) and not can_run(*AS_ANYBODY, "true"), reason="root may write everywhere here"
)
@pytest.mark.parametrize(
    "exported_before",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["first export", "second export"],
)
def test_a_folder_that_cannot_be_written(model_dir: Path, exported_before: bool) -> None:
    if not exported_before:
        clear(model_dir)
    before = content(model_dir)
    folder = model_dir / "exports" if exported_before else model_dir
    folder.chmod(0o555)
    line = run_export([str(model_dir), "onnx"], prefix=AS_ANYBODY)
    folder.chmod(0o755)
    assert line == f"error: cannot write the export to {model_dir / 'exports'}: Permission denied"
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


# What is opened for int8: the network in fp32, to be checked and as what the attempts are compared with; the
# first attempt; and the one that is taken.
@pytest.mark.parametrize("dying", [1, 2, 3, 4])
def test_an_engine_that_dies_in_an_attempt(
    model_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, dying: int
) -> None:
    before = content(model_dir)
    opened, count = open_export, 0

    def dies(_images: Any) -> Any:
        raise RuntimeError("segment 7 is gone\nand more")

    def open_or_die(export: Export) -> Any:
        nonlocal count
        count += 1
        return dies if count == dying else opened(export)

    monkeypatch.setattr(export_module, "open_export", open_or_die)
    with pytest.raises(ModelDirError, match=r"the engine failed .*: segment 7 is gone$"):
        ps.export(model_dir, "openvino", precision="int8", images=photos, max_drop=100.0)
    assert count == dying
    assert content(model_dir) == before


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


def test_ctrl_c_while_quantising(model_dir: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


# `phiscale export`, to which a signal comes before or after a call of some function.
SIGNALLED = """
import importlib, os, pathlib, signal, sys
from phiscale.cli.main import main

coming, step, last, moment = sys.argv[1:5]
sys.argv[1:5] = ["export"]
coming, last, after = signal.Signals[coming], int(last), moment == "after"
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
    os.kill(os.getpid(), coming)

setattr(owner, name, dying)
main()
"""
QUANTISING = "phiscale.deploy.exporters.openvino_int8._share_limits"
# The function, and at which of its calls. What moves last is the old export, and then the new one; before
# that the record, and in int8 the two files of the attempt that is taken.
KILLS = {
    "onnx-fp32": [
        ("writing", 1),
        ("opening", 1),
        ("recording", 1),
        ("moving", 1),
        ("moving", 2),
        ("moving", 3),
    ],
    "openvino-int8": [("quantising", 1), ("opening", 3), *(("moving", call) for call in range(1, 6))],
}
LAST = {name: kills[-1] for name, kills in KILLS.items()}


def signalled(
    name: str, model_dir: Path, arguments: list[str], *, step: str, call: int, moment: str
) -> subprocess.CompletedProcess[str]:
    target = {**STEPS, "quantising": QUANTISING}[step]
    return subprocess.run(
        [sys.executable, "-c", SIGNALLED, name, target, str(call), moment, str(model_dir), *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("name", "step", "call", "moment"),
    [
        # One of each in the quick tests: the worst moment, between the two last moves, and the longest one.
        pytest.param(
            *(name, step, call, moment),
            marks=()
            if (name, moment, (step, call))
            in (("onnx-fp32", "before", ("moving", 3)), ("openvino-int8", "after", ("quantising", 1)))
            else pytest.mark.slow,
        )
        for name, kills in KILLS.items()
        for step, call in kills
        for moment in ("before", "after")
    ],
)
def test_kill_9(model_dir: Path, int8: list[str], name: str, step: str, call: int, moment: str) -> None:
    folder = model_dir / "exports" / name
    old = content(folder)
    arguments = int8 if name == "openvino-int8" else ["onnx"]
    result = signalled("SIGKILL", model_dir, arguments, step=step, call=call, moment=moment)
    assert result.returncode == -9, result.stderr
    require_usable(model_dir)
    format, _, precision = name.partition("-")  # noqa: A001
    [export] = [
        export
        for export in list_exports(read_config(model_dir))
        if (export.format, export.precision) == (format, precision)
    ]
    # The new one is there from the last move on, and not a moment before.
    assert (content(export.path) == old) == (((step, call), moment) != (LAST[name], "after"))
    assert ps.load(model_dir, runtime=format).predict(PIXELS)[0].labels
    # The next export clears away what the dead one left.
    assert CliRunner().invoke(app, ["export", str(model_dir), *arguments]).exit_code == 0
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        "onnx-fp32",
        "openvino-fp32",
        "openvino-int8",
    ]


@pytest.mark.parametrize(
    ("name", "step"),
    [("onnx-fp32", "checking"), pytest.param("openvino-int8", "quantising", marks=pytest.mark.slow)],
)
def test_an_interrupt_by_signal(model_dir: Path, int8: list[str], name: str, step: str) -> None:
    before = content(model_dir)
    arguments = int8 if name == "openvino-int8" else ["onnx"]
    result = signalled("SIGINT", model_dir, arguments, step=step, call=1, moment="before")
    assert result.returncode == 130, result.stderr
    assert result.stdout == ""
    assert result.stderr == "stopped; nothing half-made is left, and earlier exports are as they were\n"
    assert content(model_dir) == before
