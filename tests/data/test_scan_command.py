import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from image_folders import write_images
from typer.testing import CliRunner, Result

from malformed import make_malformed, picture
from phiscale.cli.scan import scan
from phiscale.errors import DataError


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(scan)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", {"cat": 12, "dog": 12})
    return tmp_path / "images"


def test_the_table(images: Path) -> None:
    make_malformed(images / "cat")
    (images / "cat" / "[bold]odd.jpg").write_bytes(b"")
    picture(60, 50, 1).save(images / "cat" / "same.png")
    picture(60, 50, 1).save(images / "dog" / "same.png")
    result = run(images)
    assert result.exit_code == 0, result.output
    assert re.match(
        r"\d+ of \d+ images can be used; 2 classes\n  train  \d+ images: cat \d+, dog 10\n", result.stdout
    )
    for kind in ("unreadable", "zero byte", "truncated", "oversized", "duplicate conflict", "exif rotated"):
        assert kind in result.stdout
    assert "cat/[bold]odd.jpg" in result.stdout
    assert re.search(r"… \d+ more", result.stdout)
    assert re.search(r"cat/same.png = dog/same.png", result.stdout)


def test_a_sound_folder(images: Path) -> None:
    result = run(images, "--val-fraction", "0.25")
    assert "24 of 24 images can be used" in result.stdout
    assert "18 images: cat 9, dog 9" in result.stdout
    assert "6 images: cat 3, dog 3" in result.stdout


def test_json_is_the_only_thing_on_stdout(images: Path) -> None:
    make_malformed(images / "dog")
    result = run(images, "--json", "--no-near-duplicates", "--workers", "2")
    report = json.loads(result.stdout)
    assert result.exit_code == 0
    assert report["classes"] == ["cat", "dog"]
    assert report["kinds"]["truncated"] > 5
    assert not any(kind.startswith("near") for kind in report["kinds"])


def test_strict(images: Path) -> None:
    assert run(images, "--strict").exit_code == 0
    (images / "cat" / "0.png").write_bytes(b"")
    result = run(images, "--strict", "--json")
    assert isinstance(result.exception, DataError)
    assert "1 of 24 images cannot be used" in str(result.exception)
    assert json.loads(result.stdout)["usable"] == 23


def test_a_wrong_folder_is_our_error(tmp_path: Path) -> None:
    assert isinstance(run(tmp_path / "nowhere").exception, DataError)


def test_the_command_file_imports_nothing_heavy() -> None:
    code = "import sys, phiscale.cli.scan; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_scanning_a_folder_loads_no_torch(images: Path) -> None:
    code = (
        "import sys\nfrom phiscale.data.sources import open_source\nfrom phiscale.data.scan import scan\n"
        f"scan(open_source({str(images)!r}))\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
