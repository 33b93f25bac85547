from __future__ import annotations

import os
from pathlib import Path

import pytest

from phiscale.deploy.inputs import expand, images_in
from phiscale.errors import DataError
from small_model import make_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


def relative(paths: list[str], root: Path) -> list[str]:
    return [Path(path).relative_to(root).as_posix() for path in paths]


def test_folder(photos: Path) -> None:
    found = relative(list(images_in(photos)), photos)
    assert found == ["a.png", "b.jpg", "broken.jpg", "z.bmp", "deep/c.png", "deep/er/d.JPG"]


def test_patterns(photos: Path) -> None:
    assert relative(list(expand([f"{photos}/*.png"])), photos) == ["a.png"]
    assert relative(list(expand([f"{photos}/**/*.png"])), photos) == ["a.png", "deep/c.png"]
    assert relative(list(expand([f"{photos}/dee?"])), photos) == ["deep/c.png", "deep/er/d.JPG"]
    # Matches nothing, or does not exist: has its own row.
    assert list(expand([f"{photos}/*.gif", "none.png"])) == [f"{photos}/*.gif", "none.png"]


def test_a_file_with_brackets_in_its_name(photos: Path) -> None:
    odd = photos / "[1].png"
    odd.write_bytes((photos / "a.png").read_bytes())
    assert list(expand([str(odd)])) == [str(odd)]


def test_standard_input(photos: Path) -> None:
    lines = [b"one.png\n", b"\n", b"with space.png\r\n", b"caf\xe9.png"]
    paths = list(expand(["first.png", "-", str(photos / "a.png")], stdin=lines))
    assert paths == [
        "first.png",
        "one.png",
        "with space.png",
        os.fsdecode(b"caf\xe9.png"),
        str(photos / "a.png"),
    ]


def test_nothing_in_a_folder_is_said_at_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images in .*empty; looked for .*\.jpg"):
        expand([str(photos), str(tmp_path / "empty")])


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "", "[", "**"])
def test_odd_names_do_no_harm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(expand([name])) in ([name], [])
