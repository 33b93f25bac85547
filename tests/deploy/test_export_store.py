from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from phiscale.deploy.export_store import (
    RECORD,
    Check,
    Export,
    Loss,
    Quantization,
    list_exports,
    storing,
)
from phiscale.errors import ModelDirError
from phiscale.weights.config import ModelDir, read_config
from small_model import make_model

LOSS = Loss(
    measure="accuracy",
    drop=0.25,
    top1=0.9,
    agreement=0.99,
    mean_difference=0.001,
    images=800,
    views=2,
    source="photos",
)


@pytest.fixture
def model(tmp_path: Path) -> ModelDir:
    return read_config(make_model(tmp_path / "model"))


def make_export(model: ModelDir, name: str, *, ms: float = 1.0, **changes: object) -> Export:
    format, _, precision = name.partition("-")  # noqa: A001
    with storing(model, name) as folder:
        export = Export(
            path=folder,
            format=format,  # type: ignore[arg-type]
            precision=precision,  # type: ignore[arg-type]
            file="model.x",
            image_size=(32, 32),
            weights_sha256=model.weights_sha256,
            check=Check(images=64, source="photos", max_difference=0.0, agreement=1.0),
            latency_ms={"export": ms, "eager": 9.0},
            versions={"phiscale": "0"},
        )
        export = replace(export, **changes)  # type: ignore[arg-type]
        (folder / "model.x").write_text(name)
        (folder / RECORD).write_text(export.to_json())
    return replace(export, path=model.path / "exports" / name)


def test_a_record_comes_back_as_it_was(model: ModelDir) -> None:
    quantization = Quantization(
        kept=("stem",), sensitivities={"stem": 0.5}, tried=((0, 3.0), (1, 0.25)), images=300, source="photos"
    )
    made = make_export(
        model, "openvino-int8", size_bytes=7, max_drop=0.5, loss=LOSS, quantization=quantization
    )
    assert list_exports(model) == [made]


def test_a_record_of_what_cannot_be_checked_says_why(model: ModelDir) -> None:
    made = make_export(
        model, "coreml-fp32", check=None, latency_ms={}, unchecked="Core ML runs on macOS only"
    )
    assert list_exports(model) == [made]


def test_the_fastest_comes_first(model: ModelDir) -> None:
    for name, ms in (("onnx-fp32", 3.0), ("openvino-int8", 1.0), ("openvino-fp32", 2.0)):
        make_export(model, name, ms=ms)
    assert [export.path.name for export in list_exports(model)] == [
        "openvino-int8",
        "openvino-fp32",
        "onnx-fp32",
    ]


def test_a_record_of_an_older_version_is_read(model: ModelDir) -> None:
    made = make_export(model, "onnx-fp32")
    record = json.loads((made.path / RECORD).read_text())
    for newer in ("sha256", "size_bytes", "max_drop", "loss", "quantization", "is_within_max_drop"):
        del record[newer]
    (made.path / RECORD).write_text(json.dumps(record))
    assert list_exports(model) == [made]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "floppy"},
        {"precision": "int1"},
        {"file": "../onnx-fp32/model.x"},
        {"file": ""},
        {"file": ".."},
        {"file": "\0"},
        {"latency_ms": []},
        {"latency_ms": {"export": "fast"}},
        {"check": None},
        {"check": None, "unchecked": 7},
        {"check": {"colour": "blue"}},
        {"image_size": []},
        {"sha256": []},
        {"loss": {"drop": None}},
        {"loss": 3},
        {"quantization": {"kept": 1, "tried": [1]}},
        {"max_drop": "much"},
    ],
    ids=str,
)
def test_a_damaged_record_costs_that_export_only(
    model: ModelDir, change: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = make_export(model, "onnx-fp32"), make_export(model, "openvino-fp32")
    record = json.loads((damaged.path / RECORD).read_text())
    (damaged.path / RECORD).write_text(json.dumps({**record, **change}))
    assert list_exports(model) == [whole]
    assert caplog.messages == [
        f"openvino-fp32 is left aside: {damaged.path / RECORD} is damaged; export again"
    ]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_garbage_for_a_record_costs_that_export_only(model: ModelDir, content: bytes) -> None:
    whole, damaged = make_export(model, "onnx-fp32"), make_export(model, "openvino-fp32")
    (damaged.path / RECORD).write_bytes(content)
    assert list_exports(model) == [whole]


def test_no_verdict_hangs_on_a_single_image(model: ModelDir) -> None:
    made = make_export(model, "openvino-int8", max_drop=0.5, loss=LOSS)
    assert made.is_within_max_drop
    few = replace(LOSS, images=50)
    assert replace(made, loss=replace(few, drop=2.0)).is_within_max_drop
    assert not replace(made, loss=replace(few, drop=2.1)).is_within_max_drop
    assert not replace(made, loss=replace(LOSS, drop=0.6)).is_within_max_drop
    assert replace(made, loss=None).is_within_max_drop


def test_a_kill_between_the_two_moves_keeps_the_old_one(model: ModelDir) -> None:
    made = make_export(model, "onnx-fp32")
    aside = made.path.with_name(".old-onnx-fp32")
    made.path.rename(aside)
    left = made.path.with_name(".tmp-onnx-fp32-12345678")
    left.mkdir()
    (left / RECORD).write_text(made.to_json())
    (left / "model.x").write_text("new")
    assert [export.path for export in list_exports(model)] == [aside]
    with contextlib.suppress(KeyboardInterrupt), storing(model, "onnx-fp32"):
        assert list_exports(model) == [made]
        raise KeyboardInterrupt
    assert list_exports(model) == [made]
    assert [path.name for path in made.path.parent.iterdir()] == ["onnx-fp32"]
    assert (made.path / "model.x").read_text() == "onnx-fp32"


@pytest.mark.parametrize("move", [1, 2])
def test_a_move_that_fails_keeps_the_old_one(
    model: ModelDir, monkeypatch: pytest.MonkeyPatch, move: int
) -> None:
    made = make_export(model, "onnx-fp32", ms=1.0)
    moves, replace_path = 0, Path.replace

    def failing(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += 1
        if moves == move:
            raise OSError(28, os.strerror(28))
        return replace_path(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(ModelDirError, match="No space left on device"):
        make_export(model, "onnx-fp32", ms=2.0)
    assert list_exports(model) == [made]
    assert [path.name for path in made.path.parent.iterdir()] == ["onnx-fp32"]
