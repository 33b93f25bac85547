from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phiscale.cli.main import app
from phiscale.errors import PhiscaleError, ShapeError, SpecError
from phiscale.families import get_spec
from phiscale.scaling.complexity import complexity
from phiscale.spec import NetworkSpec

B0 = get_spec("efficientnet_b0")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["summary", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def table_rows(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.split()[:1] and line.split()[0].isdigit()]


def test_table_1_of_the_paper() -> None:
    rows = table_rows(run("efficientnet_b0"))
    assert len(rows) == 9
    assert rows[0] == ["1", "Conv3x3", "224×224", "32", "1", "2", "928", "10.8M", "(3%)", "401K"]
    assert rows[3][:8] == ["4", "MBConv6,", "k5x5,", "se0.25", "56×56", "40", "2", "2"]
    assert rows[8][1:4] == ["Conv1x1,", "pool,", "FC"]
    shares = [int(cell.strip("(%)")) for row in rows for cell in row if cell.endswith("%)")]
    assert sum(shares) == pytest.approx(100, abs=4)


def test_the_totals() -> None:
    cost = complexity(B0, 8)
    line = run("efficientnet_b0", "--batch-size", "8").splitlines()[-1]
    assert line.startswith(
        "5,288,548 parameters, 386M multiply-adds, weights 21.4 MB; batch of 8: inference "
    )
    assert (
        f"inference {cost.inference_bytes / 1e6:.3g} MB, training {cost.training_bytes / 1e6:.3g} MB" in line
    )


def test_another_image_size() -> None:
    rows = table_rows(run("efficientnet_b0", "--image-size", "97", "131"))
    assert rows[0][2] == "97×131"
    assert rows[1][4] == "49×66"


def test_json() -> None:
    result = json.loads(run("mobilenet_v2", "--json", "--batch-size", "4", "--image-size", "96", "160"))
    cost = complexity(get_spec("mobilenet_v2"), 4, (96, 160))
    assert NetworkSpec.from_dict(result["spec"]) == get_spec("mobilenet_v2")
    counted = result["complexity"]
    for name in (
        "params",
        "macs",
        "activations",
        "file_bytes",
        "inference_bytes",
        "training_bytes",
        "batch_size",
    ):
        assert counted[name] == getattr(cost, name)
    assert counted["image_size"] == [96, 160]
    assert [stage["macs"] for stage in counted["stages"]] == [stage.macs for stage in cost.stages]
    assert counted["stages"][0]["operator"] == "Conv3x3"


def test_layers() -> None:
    output = run("resnet18", "--layers", "--image-size", "64", "64", "--batch-size", "2")
    assert output.count("BatchNorm2d (norm)") == 20
    assert "[2, 64, 32, 32]" in output
    assert "Total params: 11,689,512" in output
    lines = output.splitlines()
    assert max(len(line) for line in lines) <= 160  # nothing was wrapped
    assert any(line.rstrip().endswith("9,408") or "9,408 " in line for line in lines)


def test_a_file_is_taken_for_a_name(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    # Brackets and colons in a name are no markup.
    path.write_text(replace(B0, name="own [/red] [bold]:smile:", num_classes=10).to_json(), encoding="utf-8")
    output = run(str(path))
    assert "own [/red] [bold]:smile:" in output
    assert f"{complexity(replace(B0, num_classes=10)).params:,} parameters" in output


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["efficientnet_b99"], SpecError, "no network is named 'efficientnet_b99'"),
        (
            ["efficientnet_b0", "--image-size", "0", "224"],
            SpecError,
            "image_size must be one or two positive",
        ),
        (["efficientnet_b0", "--layers", "--image-size", "16", "16"], ShapeError, "16×16 px is too small"),
    ],
)
def test_mistakes(arguments: list[str], error: type[PhiscaleError], message: str) -> None:
    with pytest.raises(error, match=message):
        run(*arguments)


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "0"], ["--image-size", "224"], ["--image-size", "a", "b"]]
)
def test_wrong_options(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["summary", "efficientnet_b0", *arguments]).exit_code == 2
