from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from small_images import make_images, make_model
from typer.testing import CliRunner, Result

from phiscale.cli.evaluate import evaluate
from phiscale.errors import DataError

app = typer.Typer()
app.command()(evaluate)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = make_images(tmp_path / "images", {"ant": 5, "cat": 6})
    (root / "cat" / "broken.png").write_text("x")
    return root


def test_table(model: Path, images: Path) -> None:
    result = run(model, images)
    assert result.exit_code == 0, result.output
    for text in ("11 images, split all", "top-1", "ECE", "images/s", "confusion matrix"):
        assert text in result.stdout
    assert "skipped cat/broken.png" in result.stdout
    assert "owl" in result.stdout.split("confusion")[1]
    assert "owl" not in result.stdout.split("confusion")[0]  # no image of it, nothing to rank
    assert result.stderr == ""
    assert "top-4" not in result.stdout  # of four classes it would always be 100 %


def test_json_is_the_metrics(model: Path, images: Path) -> None:
    result = run(model, images, "--json", "--limit", 7, "--batch-size", 3)
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    stored = json.loads((model / "metrics.json").read_text())
    assert content == {key: stored[key] for key in content}
    assert content["settings"]["limit"] == 7


def test_worst_classes_come_first(model: Path, images: Path) -> None:
    make_images(images, {"dog": 4, "owl": 3})
    scores = {
        item["name"]: item["f1"] for item in json.loads(run(model, images, "--json").stdout)["per_class"]
    }
    table = run(model, images).stdout.split("worst classes first")[1].split("confusion")[0]
    order = [line.split()[0] for line in table.splitlines() if line.split() and line.split()[0] in scores]
    assert sorted(order) == sorted(scores)
    assert [scores[name] for name in order] == sorted(scores.values())


def test_mistakes_are_our_errors(model: Path, images: Path, tmp_path: Path) -> None:
    result = run(model, images, "--strict")
    assert isinstance(result.exception, DataError)
    assert isinstance(run(model, tmp_path / "none").exception, DataError)
    assert run(model, images, "--split", "dev").exit_code == 2
