"""Images in tars and Parquet files, ours and as other people write them."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_folders import write_images

from malformed import image_bytes, picture
from phiscale.data import tars
from phiscale.data.augment import Augment, TrainTransform
from phiscale.data.cache import open_cache
from phiscale.data.decode import ImageError
from phiscale.data.loading import make_loader
from phiscale.data.packing import PackReport, pack
from phiscale.data.scan import scan
from phiscale.data.shards import is_packed
from phiscale.data.sources import ImageRecord, ImageSource, open_source
from phiscale.errors import DataError
from phiscale.preprocess import Preprocess

FORMATS = ("webdataset", "parquet")
TRAIN = TrainTransform(Preprocess.for_size(16), Augment(crop_scale=(0.3, 1), policy="trivial"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """JPEGs and PNGs of three classes."""
    root = write_images(tmp_path / "photographs", {"ant": 4, "bee": 5, "cat": 3})
    for path in sorted(root.rglob("*.png"))[::2]:
        picture(150, 110, seed=len(str(path))).save(path.with_suffix(".jpg"))
        path.unlink()
    return root


def packed(images: Path, out: Path, **options: Any) -> PackReport:
    return pack(open_source(images, val_fraction=0), out, **{"shard_size": 15_000, **options})


def batches(source: ImageSource, *, workers: int = 0) -> list[Any]:
    loader = make_loader(source, source.split("train"), TRAIN, batch_size=4, shuffle=True, workers=workers)
    return list(loader)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def jpeg(seed: int = 0) -> bytes:
    return image_bytes(picture(30, 20, seed=seed), "JPEG")


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_train_as_the_folder_does(kind: Any, photographs: Path, tmp_path: Path) -> None:
    report = packed(photographs, tmp_path / "out", format=kind)
    assert report.shards > 2
    assert is_packed(tmp_path / "out")
    assert not is_packed(photographs)
    folder, shards = open_source(photographs), open_source(tmp_path / "out")
    assert shards.classes == folder.classes
    assert shards.records == folder.records  # the same ids, labels and split
    for record in folder.records:
        path = folder.path(record)
        assert path is not None
        assert shards.file(record) == path.read_bytes()
        assert shards.path(record) is None
        np.testing.assert_array_equal(np.asarray(shards.read(record)), np.asarray(folder.read(record)))
    for (one, labels), (other, others) in zip(batches(folder), batches(shards, workers=2), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(labels, others)
    assert scan(shards).to_dict() | {"location": ""} == scan(folder).to_dict() | {"location": ""}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_index(kind: Any, photographs: Path, tmp_path: Path) -> None:
    report = packed(photographs, tmp_path / "out", format=kind)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["classes"] == ["ant", "bee", "cat"]
    assert index["counts"] == {"train": {"ant": 4, "bee": 5, "cat": 3}}
    assert sum(shard["images"] for shard in index["shards"]) == index["images"] == report.images == 12
    assert sum(shard["bytes"] for shard in index["shards"]) == report.size_bytes
    assert all(shard["bytes"] < 35_000 for shard in index["shards"])
    first = tmp_path / "out" / index["shards"][0]["file"]
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"is missing or not of \d+ bytes; pack anew"):
        open_source(tmp_path / "out")


@pytest.mark.parametrize("kind", FORMATS)
def test_splits_stay(kind: Any, tmp_path: Path) -> None:
    for split, number in (("train", 4), ("val", 2), ("test", 1)):
        write_images(tmp_path / "images" / split, {"a": number, "b": number}, salt=split)
    packed(tmp_path / "images", tmp_path / "out", format=kind)
    names = {path.name.partition("-")[0] for path in (tmp_path / "out").iterdir()} - {"index.json"}
    assert names == {"train", "val", "test"}
    assert open_source(tmp_path / "out").records == open_source(tmp_path / "images").records


def test_a_torchvision_kind_of_source_is_packed_without_loss(tmp_path: Path) -> None:
    class Arrays:
        def load(self, image_id: str, **_: Any) -> Any:
            return picture(9, 7, seed=int(image_id))

        def path(self, image_id: str) -> None: ...

        def file(self, image_id: str) -> None: ...

        def stamp(self, image_id: str) -> str:
            return ""

    records = tuple(ImageRecord(str(number), number % 2, "train") for number in range(4))
    source = ImageSource(location="arrays", classes=("a", "b"), records=records, reader=Arrays())
    pack(source, tmp_path / "out")
    shards = open_source(tmp_path / "out", val_fraction=0)
    assert shards.records == records
    for record in records:
        np.testing.assert_array_equal(np.asarray(shards.read(record)), np.asarray(source.read(record)))


def test_image_size(photographs: Path, tmp_path: Path) -> None:
    packed(photographs, tmp_path / "out", image_size=40)
    folder, shards = open_source(photographs, val_fraction=0), open_source(tmp_path / "out", val_fraction=0)
    for record in folder.records:
        before, after = folder.read(record), shards.read(record)
        assert min(after.size) == min(40, *before.size)
        if after.size == before.size:
            np.testing.assert_array_equal(np.asarray(after), np.asarray(before))
        else:
            wanted = np.asarray(before.convert("RGB").resize(after.size, 3)).astype(int)
            assert np.abs(np.asarray(after) - wanted).mean() < 4


def test_what_cannot_be_read_is_packed_as_it_is(photographs: Path, tmp_path: Path) -> None:
    (photographs / "ant" / "broken.jpg").write_bytes(jpeg()[:-200])
    (photographs / "ant" / "empty.jpg").write_bytes(b"")
    for format_, size in (("webdataset", None), ("webdataset", 10), ("parquet", 10)):
        out = tmp_path / f"{format_}{size}"
        packed(photographs, out, format=format_, image_size=size)
        report = scan(open_source(out))
        assert report.unusable == {"ant/broken.jpg", "ant/empty.jpg"}


@pytest.mark.parametrize("kind", FORMATS)
def test_packing_is_repeatable_and_complete_once(kind: Any, photographs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        packed(photographs, tmp_path / name, format=kind)
    content = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert content == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    again = packed(photographs, tmp_path / "one", format=kind)
    assert again.went_on == again.shards
    assert content == {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    with pytest.raises(DataError, match="holds other images, or the same packed otherwise"):
        packed(photographs, tmp_path / "one", format=format, image_size=8)
    with pytest.raises(DataError, match="empty it"):
        packed(photographs, photographs, format=kind)


def _pack_and_die(images: Path, out: Path, format_: Any, after: int) -> None:
    def progress(done: int, total: int) -> None:
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)

    packed(images, out, format=format_, progress=progress)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("after", [1, 7, 12])
def test_killed_and_gone_on(kind: Any, after: int, photographs: Path, tmp_path: Path) -> None:
    packed(photographs, tmp_path / "whole", format=kind)
    process = multiprocessing.get_context("forkserver").Process(
        target=_pack_and_die, args=(photographs, tmp_path / "out", kind, after)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match="was broken off; give the same command again"):
        open_source(tmp_path / "out")
    report = packed(photographs, tmp_path / "out", format=kind)
    assert (report.went_on > 0) == (after > 1)
    whole, gone_on = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out")
    )
    assert gone_on == whole


def test_a_shard_that_was_damaged_meanwhile_is_not_gone_on_from(photographs: Path, tmp_path: Path) -> None:
    packed(photographs, tmp_path / "out")
    shard = next((tmp_path / "out").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(DataError, match="missing or damaged"):
        packed(photographs, tmp_path / "out")


def test_other_peoples_tars(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    for split, number in (("train", 3), ("validation", 2)):
        for shard in range(2):
            files: dict[str, bytes] = {}
            for index in range(number):
                files[f"n{index}/img_{shard}.{index}.jpg"] = jpeg(10 * shard + index)
                files[f"n{index}/img_{shard}.cls"] = str(index % 2).encode()
            write_tar(folder / f"imagenet1k-{split}-{shard:02d}.tar", files)
    source = open_source(folder)
    assert source.classes == ("0", "1")
    assert (len(source.split("train")), len(source.split("val"))) == (6, 4)
    assert source.records[0].id == "imagenet1k-train-00/n0/img_0.0.jpg"
    assert source.file(source.records[4]) == jpeg(11)
    for location in (f"wds:{folder}", f"wds:{folder}/*.tar", f"wds:{folder}/imagenet1k-train-{{00..01}}.tar"):
        assert len(open_source(location, val_fraction=0).split("train")) == 6
    assert len(open_source(folder / "imagenet1k-train-00.tar", val_fraction=0)) == 3


def test_labels_of_tars(tmp_path: Path) -> None:
    files = {
        "1.jpg": jpeg(),
        "1.cls": b"4\n",
        "2.png": image_bytes(picture(), "PNG"),
        "2.json": b'{"label": 4, "path": "x.jpg"}',
        "3.json": b'{"label": "cat"}',
        "3.cls": b"1",
        "3.JPEG": jpeg(),
        "4.txt": b"no image",
        "5.jpg": jpeg(),
        "5.txt": b"a text",
        "5.cls": b"7",
    }
    source = open_source(write_tar(tmp_path / "x.tar", files), val_fraction=0)
    assert [(record.id, source.classes[record.label]) for record in source.records] == [
        ("x/1.jpg", "4"),
        ("x/2.png", "4"),
        ("x/3.JPEG", "cat"),
        ("x/5.jpg", "7"),
    ]
    assert source.ignored == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.jpg": b"x"}, "1 has no label; a .cls file"),
        ({"1.jpg": b"x", "1.json": b"[]"}, "1 has no label"),
        ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, "the sample 1 has 2 images"),
        ({"1.cls": b"0"}, "no images in"),
        ({"1.jpg": b"x", "1.cls": b"0", "2.jpg": b"x", "2.cls": b"0", "./1.txt": b""}, "one class"),
    ],
)
def test_tars_that_cannot_be_used(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write_tar(tmp_path / "x.tar", files))


@pytest.mark.parametrize("damage", ["cut off", "compressed", "text"])
def test_no_tar(damage: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(), "1.cls": b"0", "2.jpg": jpeg(), "2.cls": b"1"})
    content = path.read_bytes()
    path.write_bytes(
        {"cut off": content[:1500], "compressed": gzip.compress(content), "text": b"text" * 500}[damage]
    )
    with pytest.raises(DataError, match="is no tar, is compressed or is cut off"):
        open_source(path)


def test_a_tar_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"1.jpg": jpeg(), "1.cls": b"0", "2.jpg": jpeg(1), "2.cls": b"1"}
    path = write_tar(tmp_path / "x.tar", files)
    scans, real = [], tars._scan

    def watched(shard: Path) -> Any:
        scans.append(shard)
        return real(shard)

    monkeypatch.setattr(tars, "_scan", watched)
    first = open_source(path, val_fraction=0)
    assert open_source(path, val_fraction=0) == first
    assert len(scans) == 1
    write_tar(path, {**files, "3.jpg": jpeg(2), "3.cls": b"1"})
    assert len(open_source(path, val_fraction=0)) == 3
    assert len(scans) == 2


def test_a_shard_that_changes_or_goes_is_an_error_of_its_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"1.jpg": jpeg(), "1.cls": b"0", "2.jpg": jpeg(1), "2.cls": b"1"})
    source = open_source(path, val_fraction=0)
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(ImageError, match=r"x/2\.jpg: the shard ends too early"):
        source.read(source.records[1])
    path.unlink()
    with pytest.raises(ImageError, match="No such file"):
        source.read(source.records[0])


@pytest.mark.parametrize("as_struct", [True, False])
def test_other_peoples_parquet(as_struct: bool, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    for split, number in (("train", 5), ("test", 2)):
        data = [jpeg(index) for index in range(number)]
        images = [{"bytes": each, "path": None} for each in data] if as_struct else data
        table = pyarrow.table({"image": images, "label": [index % 2 for index in range(number)]})
        parquet.write_table(
            table.replace_schema_metadata(metadata),
            tmp_path / f"{split}-00000-of-00001.parquet",
            row_group_size=2,
        )
    source = open_source(tmp_path, val_fraction=0)
    assert source.classes == ("cat", "dog")
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [5, 0, 2]
    by_id = {record.id: record for record in source.records}
    assert source.file(by_id["train-00000-of-00001/3"]) == jpeg(3)
    assert by_id["train-00000-of-00001/3"].label == 1
    copied = pickle.loads(pickle.dumps(source))
    assert copied.file(by_id["test-00000-of-00001/1"]) == jpeg(1)


def test_a_manifest_stays_a_manifest(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_images(tmp_path, {"a": 2, "b": 2})
    rows = {"path": ["a/0.png", "a/1.png", "b/0.png", "b/1.png"], "label": ["a", "a", "b", "b"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "some.parquet")
    assert not is_packed(tmp_path / "some.parquet")
    assert open_source(tmp_path / "some.parquet").classes == ("a", "b")
    # A folder of classes is one, whatever lies beside the classes.
    write_tar(tmp_path / "a.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    assert open_source(tmp_path).records[0].id == "a/0.png"
    # So are loose images, which `predict` takes, with its results beside them.
    write_tar(tmp_path / "a" / "a.tar", {"1.jpg": jpeg(), "1.cls": b"0"})
    assert not is_packed(tmp_path / "a")
    (tmp_path / "tables").mkdir()
    parquet.write_table(pyarrow.table(rows), tmp_path / "tables" / "results.parquet")
    assert not is_packed(tmp_path / "tables")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cache_of_shards_is_made_anew_when_they_change(
    kind: Any, photographs: Path, tmp_path: Path
) -> None:
    paths = []
    for salt in ("", "other"):
        write_images(photographs, {"ant": 2}, salt=salt)
        out = tmp_path / "out"
        for path in out.iterdir() if out.is_dir() else ():
            path.unlink()
        packed(photographs, out, format=kind)
        source = open_source(out)
        cache = open_cache(source, source.records, Preprocess.for_size(16), mode="disk", folder=tmp_path)
        assert cache is not None
        paths.append(cache.path)
        for position, record in enumerate(source.records):
            np.testing.assert_array_equal(
                cache.read(position), np.asarray(source.read(record).convert("RGB"))
            )
    assert paths[0] != paths[1]
