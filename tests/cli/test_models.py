from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phiscale import __version__
from phiscale.cli import main
from phiscale.cli.units import format_bytes, format_count, parse_bytes, parse_count
from phiscale.families import get_spec, list_specs
from phiscale.scaling.complexity import complexity


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main.app, ["models", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_every_network() -> None:
    lines = run().splitlines()
    for name in list_specs():
        cost = complexity(get_spec(name))
        (row,) = [line.split() for line in lines if line.split()[:1] == [name]]
        height, width = get_spec(name).image_size
        counts = [format_count(cost.params), format_count(cost.macs), format_count(cost.activations)]
        assert row == [name, f"{height}×{width}", *counts]


def test_the_papers_numbers_are_shown() -> None:
    (row,) = [line.split() for line in run("efficientnet").splitlines() if "efficientnet_b4" in line]
    assert row == ["efficientnet_b4", "380×380", "19.3M", "4.39G", "49.5M"]


def test_one_family() -> None:
    output = run("mobilenet")
    assert "mobilenet_v1" in output
    assert "resnet" not in output


def test_json() -> None:
    rows = json.loads(run("--json"))
    assert [row["name"] for row in rows] == list_specs()
    assert rows[0] == {
        "name": "efficientnet_b0",
        "image_size": [224, 224],
        "params": 5288548,
        "macs": 385814752,
        "activations": complexity(get_spec("efficientnet_b0")).activations,
    }


# ---------------------------------------------------------------------------- the program itself


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["phiscale", *arguments])
    with pytest.raises(SystemExit) as caught:
        main.main()
    return caught.value.code


def test_exit_code_of_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, "models", "resnet") == 0
    captured = capsys.readouterr()
    assert "resnet101" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "vit"], "error: no family is named 'vit'; known: efficientnet, "),
        (["summary", "efficientnet_b77"], "error: no network is named 'efficientnet_b77'; did you mean "),
        (["summary", "missing.json"], "error: cannot read the spec missing.json: "),
        (["scale", "efficientnet_b0"], "error: say what to scale to in one way: a limit (--macs 1G), "),
        (["scale", "efficientnet_b0", "--macs", "1"], "error: no network on this rule fits: the smallest "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["nonsense"], ["models", "--nonsense"], ["summary"]])
def test_a_wrong_command_line_has_exit_code_two(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, *arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"phiscale {__version__}\n"


def test_as_a_program(tmp_path: Path) -> None:
    code = "from phiscale.cli.main import main; main()"
    good = subprocess.run(
        [sys.executable, "-c", code, "models", "resnet", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert json.loads(good.stdout)[0]["name"] == "resnet18"
    bad = subprocess.run(
        [sys.executable, "-c", code, "summary", "efficientnet_b9"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: no network is named 'efficientnet_b9'")
    assert "Traceback" not in bad.stderr


def test_a_closed_pipe_is_no_fault(tmp_path: Path) -> None:
    code = "from phiscale.cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "models", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait() in (0, 1)  # click itself ends with 1 when the reader has gone
    assert errors == ""


# ------------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1G", 1e9),
        ("1.5g", 1.5e9),
        ("390M", 390e6),
        ("4.5e9", 4.5e9),
        ("2 B", 2e9),
        ("3T", 3e12),
        (" 12k ", 12e3),
        ("1e3K", 1e6),
        ("7", 7.0),
        (".5M", 5e5),
    ],
)
def test_parse_count(text: str, value: float) -> None:
    assert parse_count(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300MB", 300e6),
        ("300 MiB", 300 * 2**20),
        ("1.5GiB", 1.5 * 2**30),
        ("20k", 20e3),
        ("20KiB", 20 * 1024),
        ("2G", 2e9),
        ("512b", 512),
        ("512", 512),
    ],
)
def test_parse_bytes(text: str, value: float) -> None:
    assert parse_bytes(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "G", "abc", "-1G", "0", "0M", "1.2.3G", "1X", "1GB2", "1e", "nan", "inf", "1,5G"]
)
def test_what_is_no_quantity(text: str) -> None:
    for parse, example in ((parse_count, "1.2G, 390M or 4e8"), (parse_bytes, "20MB or 1.5GiB")):
        with pytest.raises(Exception, match="is no positive quantity; write it like " + example):
            parse(text)


@pytest.mark.parametrize(
    ("value", "count", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (999.6, "1K", "1 KB"),
        (1000, "1K", "1 KB"),
        (1234, "1.23K", "1.23 KB"),
        (385_814_752, "386M", "386 MB"),
        (999_499, "999K", "999 KB"),
        (999_600, "1M", "1 MB"),
        (999_400_000, "999M", "999 MB"),
        (999_600_000, "1G", "1 GB"),
        (475_703_653_280, "476G", "476 GB"),
        (1_234_567_890_123, "1235G", "1235 GB"),
    ],
)
def test_formats(value: float, count: str, size: str) -> None:
    assert format_count(value) == count
    assert format_bytes(value) == size


@pytest.mark.parametrize("digits", [1, 2, 3])
@pytest.mark.parametrize("power", range(1, 11))
def test_what_is_printed_can_be_typed(digits: int, power: int) -> None:
    value = int("123"[:digits]) * 10.0**power
    assert parse_count(format_count(value)) == pytest.approx(value)
    assert parse_bytes(format_bytes(value)) == pytest.approx(value)
