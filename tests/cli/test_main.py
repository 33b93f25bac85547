"""The program as a process: exit codes, one line for the user's mistake, nothing heavy for --help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "from phiscale.cli.main import main; main()"
COMMANDS = ("models", "summary", "scale", "scan", "fit", "evaluate", "predict", "export", "weights", "demo")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True)


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in result.stdout


def test_version() -> None:
    from phiscale import __version__

    assert run("--version").stdout == f"phiscale {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("summary", "efficientnet_bo"),
        ("scale", "efficientnet_b0", "--macs", "1k"),
        ("scale", "efficientnet_b0"),
        ("scan", "no-such-folder"),
        ("fit", "no-such-folder"),
        ("evaluate", "no-such-model", "no-such-folder"),
        ("predict", "no-such-model", "photo.jpg"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_the_usage_is_exit_code_2() -> None:
    result = run("scale", "efficientnet_b0", "--macs", "many")
    assert result.returncode == 2
    assert "write it like" in result.stderr


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; import phiscale.cli.main; "
        "heavy = [m for m in ('torch', 'numpy', 'PIL', 'lightning') if m in sys.modules]; print(heavy)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
