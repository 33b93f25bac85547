"""`scale --latency-ms` and `benchmark`, with a clock that is a formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from made_up_clock import install_clock
from PIL import Image
from typer.testing import CliRunner, Result

from phiscale.cli.main import app
from phiscale.errors import BudgetError, ModelDirError, PhiscaleError, SpecError
from phiscale.spec import NetworkSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[NetworkSpec]:
    """The networks that were timed so far."""
    return install_clock(monkeypatch, tmp_path / "cache")


def run(*arguments: str) -> Result:
    result = RUNNER.invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def error_of(*arguments: str) -> PhiscaleError:
    exception = RUNNER.invoke(app, arguments).exception
    assert isinstance(exception, PhiscaleError), exception
    return exception


# ---------------------------------------------------------------------------------------- scale


def test_scale_says_what_it_measured(clock: list[NetworkSpec]) -> None:
    result = run("scale", "efficientnet_b0", "--latency-ms", "8", "--runtime", "torch", "--threads", "2")
    text = result.stdout
    assert "of the milliseconds" in text
    assert "the next larger, φ =" in text
    assert "torch " in text
    assert "fp32, 2 threads, 1 image at a time" in text
    assert f"{len(clock)} measurements" in text
    lines = [line for line in result.stderr.splitlines() if line.startswith("measured")]
    assert len(lines) == len(clock) <= 12


def test_scale_again_measures_nothing(clock: list[NetworkSpec]) -> None:
    arguments = ("scale", "efficientnet_b0", "--latency-ms", "8", "--runtime", "torch", "--threads", "1")
    first = json.loads(run(*arguments, "--json").stdout)
    timed = len(clock)
    again = json.loads(run(*arguments, "--json").stdout)
    assert len(clock) == timed == first["timing"].pop("measurements")
    assert again["timing"].pop("measurements") == 0
    assert again == first
    assert "all measured before" in run(*arguments).stdout
    run(*arguments, "--fresh")
    assert len(clock) == 2 * timed


def test_scale_in_json() -> None:
    result = run("scale", "efficientnet_b0", "--latency-ms", "8", "--macs", "5G", "--threads", "1", "--json")
    assert result.stderr == ""
    content = json.loads(result.stdout)
    timing = content["timing"]
    assert timing["median_ms"] <= 8 < timing["next"]["median_ms"]
    assert timing["p90_ms"] >= timing["median_ms"]
    assert list(content["rules"]) == ["paper"]
    assert content["rules"]["paper"]["binding"] == ["latency_ms"]
    assert content["complexity"]["macs"] <= 5e9


def test_throughput_in_batches() -> None:
    content = json.loads(
        run("scale", "efficientnet_b0", "--images-per-second", "200", "--batch-size", "16", "--json").stdout
    )
    assert content["timing"]["batch_size"] == 16
    assert content["timing"]["images_per_second"] >= 200
    # Both limits hold: here the latency of the batch is the narrower one.
    narrower = json.loads(
        run(
            *("scale", "efficientnet_b0", "--images-per-second", "200", "--batch-size", "16"),
            *("--latency-ms", "40", "--json"),
        ).stdout
    )
    assert narrower["timing"]["median_ms"] <= 40


def test_counting_alone_measures_nothing(clock: list[NetworkSpec]) -> None:
    assert json.loads(run("scale", "efficientnet_b0", "--macs", "1G", "--json").stdout)["timing"] is None
    assert clock == []


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["--latency-ms", "0.01"], BudgetError, "latency_ms=0.01 but it needs"),
        (["--latency-ms", "0"], BudgetError, "latency_ms must be a positive number"),
        (["--images-per-second", "0"], BudgetError, "images_per_second must be a positive number"),
        (["--latency-ms", "8", "--runtime", "abacus"], ModelDirError, "no runtime is named 'abacus'"),
        (["--latency-ms", "8", "--runtime", "onnx", "--precision", "int8"], ModelDirError, "not in int8"),
        (["--latency-ms", "8", "--phi", "1"], SpecError, "in one way"),
    ],
)
def test_mistakes(options: list[str], kind: type[Exception], message: str) -> None:
    error = error_of("scale", "efficientnet_b0", *options)
    assert isinstance(error, kind)
    assert message in str(error)


# ------------------------------------------------------------------------------------ benchmark


def test_benchmark_prints_a_table_and_what_to_buy() -> None:
    text = run("benchmark", "--runtime", "torch", "--threads", "1").stdout
    for name in ("efficientnet_b0", "efficientnet_b3", "efficientnet_lite2", "resnet50", "mobilenet_v2"):
        assert sum(line.split()[:1] == [name] for line in text.splitlines()) >= 1
    assert "★" in text
    assert "ImageNet-1k alone" in text
    assert "ResNet18_Weights" in text
    # On a machine where time is multiply-adds, ResNets are the worse buy.
    assert "is the better buy than resnet50 on this machine" in text
    assert "is faster than" not in text


def test_benchmark_in_json() -> None:
    content = json.loads(
        run("benchmark", "resnet18", "efficientnet_b0", "resnet18", "--threads", "1", "--json").stdout
    )
    assert [row["network"] for row in content["networks"]] == ["resnet18", "efficientnet_b0"]
    keys = {
        "image_size",
        "macs",
        "activations",
        "params",
        "median_ms",
        "p90_ms",
        "top1",
        "source",
        "on_front",
    }
    assert keys <= content["networks"][0].keys()
    assert "1 thread" in content["where"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_benchmark_draws(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{ending}"
    assert f"wrote {path}" in run("benchmark", "--threads", "1", "--plot", str(path)).stdout
    if ending == "png":
        with Image.open(path) as picture:
            assert min(picture.size) > 400
    else:
        assert path.stat().st_size > 10_000


def test_labels_do_not_cover_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from phiscale.evaluation.plots import new_figure

    figures: list[Figure] = []

    def keep(width: float, height: float) -> Figure:
        figures.append(new_figure(width, height))
        return figures[-1]

    monkeypatch.setattr("phiscale.cli.benchmark_plot.new_figure", keep)
    run("benchmark", "--all", "--threads", "1", "--plot", str(tmp_path / "all.png"))
    for axis in figures[0].axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) >= 15
        assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[index + 1 :])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["efficientnet_b9"], "did you mean"),
        (["resnet18", "--all"], "not both"),
        (["--plot", "picture.txt"], "must end in .png, .svg or .pdf"),
        (["--plot", "no-such-folder/picture.png"], "cannot write no-such-folder/picture.png: No such"),
    ],
)
def test_mistakes_of_benchmark(options: list[str], message: str, clock: list[NetworkSpec]) -> None:
    assert message in str(error_of("benchmark", *options))
    assert clock == []  # found before anything is measured
