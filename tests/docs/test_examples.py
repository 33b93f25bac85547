"""The examples run, and print the numbers that they are there for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT
from made_photos import make_photos

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scale_and_count(tmp_path: Path) -> None:
    output = run("scale_and_count.py", folder=tmp_path)
    for macs in ("0.39G", "1.58G", "1.45G", "1.54G", "1.80G"):
        assert macs in output
    # The second table gives every rule the same multiply-adds, never more.
    lines = [line for line in output.splitlines() if line.endswith("%")]
    shares = [float(line.rsplit(maxsplit=1)[1].rstrip("%")) for line in lines]
    assert len(shares) == 5
    assert all(90 < share <= 100 for share in shares)


def test_own_baseline(tmp_path: Path) -> None:
    output = run("own_baseline.py", folder=tmp_path)
    assert "tiny" in output
    assert "φ" in output


def test_train_on_a_folder(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos")
    arguments = ("photos", "--out", "model", "--macs", "20e6", "--epochs", "2")
    output = run("train_on_a_folder.py", *arguments, folder=tmp_path)
    assert "top-1" in output
    assert (tmp_path / "model" / "metrics.json").is_file()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_run_above(example: Path) -> None:
    assert example.name in Path(__file__).read_text(encoding="utf-8")
