"""``phiscale data pack``, and the other commands on what it makes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from malformed import image_bytes, picture
from phiscale.cli.main import main
from phiscale.deploy.inputs import expand
from phiscale.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(24):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(picture(40, 30, seed=number), "JPEG"))
    return tmp_path / "images"


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[Any]) -> int:
    monkeypatch.setattr(sys, "argv", ["phiscale", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_scan_fit_evaluate_and_predict_take_shards(
    kind: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, model = tmp_path / "shards", tmp_path / "model"
    pack: list[Any] = ["data", "pack", images, out, "--format", kind, "--shard-size", "10KB", "--json"]
    assert run(monkeypatch, pack) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 24
    assert report["shards"] > 1
    assert run(monkeypatch, ["scan", out, "--json", "--strict"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 24
    quick = ["epochs=1", "batch_size=8", "warmup_epochs=0", "cache=off", "workers=1"]
    settings = [part for setting in quick for part in ("--set", setting)]
    fit: list[Any] = [
        "fit",
        out,
        "--model",
        "mobilenet_v1",
        "--macs",
        "1M",
        "--image-size",
        "32",
        "--out",
        model,
    ]
    assert run(monkeypatch, [*fit, *settings]) == 0
    assert run(monkeypatch, ["evaluate", model, out]) == 0
    capsys.readouterr()
    answers = {}
    for name, place in (("folder", images), ("shards", out)):
        assert run(monkeypatch, ["predict", model, place, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        answers[name] = {row["source"].removeprefix(f"{place}/"): row["scores"] for row in rows}
    assert answers["shards"] == answers["folder"]


def test_what_was_printed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, ["data", "pack", images, tmp_path / "out"]) == 0
    assert "24 images in 1 shard," in capsys.readouterr().out
    assert run(monkeypatch, ["data", "pack", images, tmp_path / "out", "--image-size", "8"]) == 2
    assert "holds other images, or the same packed otherwise" in capsys.readouterr().err


def test_shards_that_are_damaged_are_an_error_before_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(DataError, match="is no tar"):
        expand([str(tmp_path / "x.tar")], stdin=io.BytesIO())
