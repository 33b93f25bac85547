import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from malformed import make_malformed, picture
from phiscale.data import cache as cache_module
from phiscale.data.cache import CacheMode, PixelCache, default_cache_dir, open_cache
from phiscale.data.decode import decode
from phiscale.data.sources import ImageSource, open_source
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess

RGB = Preprocess.for_size(32)
GREY = Preprocess.for_size(32, channels=1)


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    for number in range(24):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(10 + number, 40 - number, seed=number).save(path)
    return open_source(tmp_path / "images")


def build(
    source: ImageSource, folder: Path, mode: CacheMode = "disk", preprocess: Preprocess = RGB
) -> PixelCache:
    cache = open_cache(source, source.records, preprocess, mode=mode, folder=folder / "cache")
    assert cache is not None
    return cache


@pytest.mark.parametrize("preprocess", [RGB, GREY])
@pytest.mark.parametrize("mode", ["memory", "disk", "auto"])
def test_the_cache_is_exact(
    source: ImageSource, tmp_path: Path, mode: CacheMode, preprocess: Preprocess
) -> None:
    cache = build(source, tmp_path, mode, preprocess)
    assert (cache.path is not None) == (mode == "disk")
    for position, record in enumerate(source.records):
        expected = np.asarray(decode(source.read(record), channels=preprocess.channels))
        found = cache.read(position)
        assert found is not None
        assert np.array_equal(found, expected)
    assert (
        cache.nbytes
        == sum(r.width * r.height for r in map(source.read, source.records)) * preprocess.channels
    )


def test_odd_and_broken_files(tmp_path: Path) -> None:
    make_malformed(tmp_path / "images" / "a")
    make_malformed(tmp_path / "images" / "b")
    source = open_source(tmp_path / "images")
    memory, disk = build(source, tmp_path, "memory"), build(source, tmp_path, "disk")
    for position, record in enumerate(source.records):
        try:
            expected = np.asarray(decode(source.read(record)))
        except DataError:
            assert memory.read(position) is None
            assert disk.read(position) is None
        else:
            for cache in (memory, disk):
                found = cache.read(position)
                assert found is not None, record.id
                assert np.array_equal(found, expected)


def test_a_file_is_used_again(source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(source, tmp_path)

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(cache_module, "decode", fail)
    monkeypatch.setattr(cache_module, "count_pixels", fail)
    second = build(source, tmp_path)
    assert second.path == first.path
    assert np.array_equal(second.read(5), first.read(5))  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0, 10, 30, 100, -1])
def test_a_half_written_file_is_made_again(source: ImageSource, tmp_path: Path, keep: int) -> None:
    first = build(source, tmp_path)
    assert first.path is not None
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:keep])
    build(source, tmp_path)
    assert first.path.read_bytes() == whole


def test_a_crash_leaves_nothing_behind(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; choose another folder"):
        build(source, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_changed_image_makes_another_file(source: ImageSource, tmp_path: Path) -> None:
    first = build(source, tmp_path)
    path = source.path(source.records[3])
    assert path is not None
    picture(33, 44, seed=99).save(path)
    os.utime(path, ns=(1, 1))
    second = build(source, tmp_path)
    assert second.path != first.path
    changed = second.read(3)
    assert changed is not None
    assert changed.shape == (44, 33, 3)


def test_limits(source: ImageSource, tmp_path: Path) -> None:
    for mode in ("memory", "disk"):
        with pytest.raises(DataError, match=f"more than the {mode} cache's limit"):
            open_cache(source, source.records, RGB, mode=mode, folder=tmp_path, limit=1000)
    assert open_cache(source, source.records, RGB, mode="auto", folder=tmp_path, limit=1000) is None
    assert open_cache(source, source.records, RGB, mode="off") is None


def test_auto_goes_to_disk_when_memory_is_short(
    source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_MEMORY_LIMIT", 1000)
    cache = build(source, tmp_path, "auto")
    assert cache.path is not None


def test_a_disk_cache_is_sent_as_its_path(source: ImageSource, tmp_path: Path) -> None:
    cache = build(source, tmp_path)
    sent = pickle.dumps(cache)
    assert len(sent) < cache.nbytes / 4
    again = pickle.loads(sent)
    assert np.array_equal(again.read(7), cache.read(7))  # type: ignore[arg-type]


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "phiscale"
