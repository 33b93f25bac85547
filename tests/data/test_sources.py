import csv
import gzip
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_folders import write_images
from PIL import Image

from phiscale.data.listing import Entry
from phiscale.data.sources import ImageSource, Split, _carve, open_source
from phiscale.errors import DataError


def ids(source: ImageSource, split: Split) -> list[str]:
    return [record.id for record in source.split(split)]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, {"dog": 5, "cat": 10, "cat/more": 2})
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bird").mkdir()
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.empty_classes == ("bird",)
    assert source.ignored == 3
    assert Counter(r.label for r in source.records) == {0: 12, 1: 5}
    assert Counter(r.label for r in source.split("val")) == {0: 2, 1: 1}
    assert "cat/more/0.png" in [r.id for r in source.records]
    assert source.read(source.records[0]).size == (24, 20)
    assert source == open_source(tmp_path)


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders(tmp_path: Path, val: str) -> None:
    for part, number in (("train", 4), (val, 2), ("test", 1)):
        write_images(tmp_path / part, {"a": number, "b": number})
    source = open_source(tmp_path)
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [8, 4, 2]
    assert ids(source, "test") == ["test/a/0.png", "test/b/0.png"]


def test_val_is_carved_out_of_train_only(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"a": 10, "b": 10})
    write_images(tmp_path / "test", {"a": 5, "b": 5})
    source = open_source(tmp_path, val_fraction=0.3)
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [14, 6, 10]
    assert all(name.startswith("train/") for name in ids(source, "val"))


def make_split_folders(root: Path, *splits: str) -> Path:
    for split in splits:
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for index in range(20):
                (root / split / name / f"{index}.png").write_bytes(b"")
    return root


@pytest.mark.parametrize("hold_out", [10, 0.25])
def test_held_out_images_leave_val_to_be_the_test(tmp_path: Path, hold_out: float) -> None:
    source = open_source(make_split_folders(tmp_path, "train", "val"), hold_out=hold_out)
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [30, 10, 40]
    assert all(record.id.startswith("train/") for record in source.split("val"))
    assert all(record.id.startswith("val/") for record in source.split("test"))
    assert Counter(record.label for record in source.split("val")) == {0: 5, 1: 5}


def test_holding_out_is_checked(tmp_path: Path) -> None:
    root = make_split_folders(tmp_path / "three", "train", "val", "test")
    with pytest.raises(DataError, match="val and test images already; leave out hold_out"):
        open_source(root, hold_out=5)
    for wrong in (-1, 40, 1000, True):
        with pytest.raises(DataError, match="number below that of the 40 train images"):
            open_source(make_split_folders(tmp_path / f"{wrong}", "train"), hold_out=wrong)


def test_only_a_test_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "test", {"a": 1})
    assert len(open_source(tmp_path).split("test")) == 1


def test_train_can_be_the_name_of_a_class(tmp_path: Path) -> None:
    write_images(tmp_path, {"car": 2, "train": 2})
    assert open_source(tmp_path).classes == ("car", "train")
    write_images(tmp_path, {"car/red": 1, "train/steam": 1})
    assert open_source(tmp_path).classes == ("car", "train")


def test_links_are_followed_and_rings_end(tmp_path: Path) -> None:
    write_images(tmp_path / "real", {"cat": 3, "dog": 3})
    images = tmp_path / "images"
    images.mkdir()
    for name in ("cat", "dog"):
        (images / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "ring").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "real" / "cat" / "self").symlink_to("self")
    assert len(open_source(images, val_fraction=0)) == 6


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "files", {"x": 6})
    rows = [
        {"path": f"files/x/{i}.png", "label": str(i % 2), "split": "" if i < 4 else "valid"} for i in range(6)
    ]
    path = write_csv(tmp_path / "list.csv", rows)
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        path = tmp_path / "list.parquet"
        numbers = [{**row, "label": int(row["label"])} for row in rows]
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(numbers), path)
    source = open_source(path)
    assert source.classes == ("0", "1")
    assert ids(source, "val") == ["files/x/4.png", "files/x/5.png"]
    assert source.read(source.records[0]).size == (24, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,class\na.png,x\n", "no column 'label'; its columns: path, class"),
        ("path,label\n", "lists no images"),
        ("", "no column 'path'"),
        ("path,label\na.png,\n", "row 1: label is empty"),
        ("path,label\n,x\n", "row 1: path is empty"),
        ("path,label\na.png,x\nb.png,y\na.png,x\n", "row 3: a.png is listed before, in row 1"),
        ("path,label,split\na.png,x,holdout\n", "split must be train, val or test, got 'holdout'"),
        ("path,label\n" + "x" * 200_000 + ",y\n", "cannot read"),
    ],
)
def test_manifests_that_are_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        open_source(path)
    assert "\n" not in str(error.value)


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "list.parquet").write_text("nothing")
    with pytest.raises(DataError, match=r"cannot read .*list.parquet"):
        open_source(tmp_path / "list.parquet")


def test_split_file(tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"a": 3, "b": 3})
    rows = [
        {"path": f"{name}/{i}.png", "split": ("train", "val", "test")[i]} for name in "ab" for i in range(3)
    ]
    split_file = write_csv(tmp_path / "splits.csv", rows)
    source = open_source(tmp_path / "images", split_file=split_file)
    assert ids(source, "val") == ["a/1.png", "b/1.png"]
    assert ids(source, "test") == ["a/2.png", "b/2.png"]
    write_csv(split_file, rows[:-1])
    with pytest.raises(DataError, match=r"does not list 1 of the images, such as b/2.png"):
        open_source(tmp_path / "images", split_file=split_file)
    write_csv(split_file, [*rows, {"path": "c/0.png", "split": "val"}])
    with pytest.raises(DataError, match=r"1 images that are not there, such as c/0.png"):
        open_source(tmp_path / "images", split_file=split_file)
    with pytest.raises(DataError, match="does not exist"):
        open_source(tmp_path / "images", split_file=tmp_path / "none.csv")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; give a folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="does not exist"):
        open_source("zero\0character")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="expected one folder per class"):
        open_source(tmp_path / "empty")
    write_images(tmp_path, {"loose": 2})
    with pytest.raises(DataError, match=r"only loose files; expected .*/cat/1.jpg"):
        open_source(tmp_path / "loose")
    with pytest.raises(DataError, match="is no manifest"):
        open_source(tmp_path / "loose" / "0.png")
    one = write_images(tmp_path / "one", {"only": 3})
    with pytest.raises(DataError, match="one class, class only; a classifier needs two"):
        open_source(one)
    assert open_source(one, val_fraction=0).classes == ("only",)
    single = write_images(tmp_path / "single", {"a": 3, "b": 1})
    with pytest.raises(DataError, match="class b has a single image"):
        open_source(single)
    new = tmp_path / "new"
    write_images(new / "train", {"a": 2, "b": 2})
    write_images(new / "val", {"a": 1, "c": 1, "d": 1})
    with pytest.raises(DataError, match="classes c, d in val but not in train"):
        open_source(new)
    write_images(new / "valid", {"a": 1})
    with pytest.raises(DataError, match="holds val and valid; keep one"):
        open_source(new)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan"), True])
def test_val_fraction_is_checked(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError, match=r"val_fraction must lie in \[0, 1\)"):
        open_source(tmp_path, val_fraction=fraction)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**40),
)
def test_carving_is_stratified_and_deterministic(sizes: list[int], fraction: float, seed: int) -> None:
    entries = [Entry(f"{c}/{i}", str(c), None) for c, size in enumerate(sizes) for i in range(size)]
    before: list[Split] = ["train"] * len(entries)
    after = _carve(entries, before, fraction, seed)
    taken = Counter(entry.label for entry, split in zip(entries, after, strict=True) if split == "val")
    for label, size in enumerate(sizes):
        assert taken[str(label)] == min(max(round(size * fraction), 1), size - 1)
    # An image's place does not depend on the order of the listing.
    turned = _carve(entries[::-1], before, fraction, seed)
    assert turned[::-1] == after


def test_the_seed_matters_and_added_images_leave_the_others_in_place() -> None:
    entries = [Entry(f"a/{i}", "a", None) for i in range(200)]
    before: list[Split] = ["train"] * 200
    assert _carve(entries, before, 0.2, 0) != _carve(entries, before, 0.2, 1)
    more = [*entries, *(Entry(f"a/new{i}", "a", None) for i in range(10))]
    after = _carve(more, ["train"] * 210, 0.2, 0)[:200]
    moved = sum(x != y for x, y in zip(_carve(entries, before, 0.2, 0), after, strict=True))
    assert moved <= 10


def test_without_keeps_the_classes(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path, {"a": 3, "b": 3}), val_fraction=0)
    less = source.without([source.records[0], "b/1.png"])
    assert [record.id for record in less.records] == ["a/1.png", "a/2.png", "b/0.png", "b/2.png"]
    assert less.classes == source.classes
    assert len(source) == 6


def write_fashion_mnist(root: Path, train: int = 30, test: int = 10) -> str:
    """A data set in torchvision's layout, of random images."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, number in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, number, 28, 28) + images.tobytes()
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, number) + labels.tobytes())
    return f"torchvision:FashionMNIST:{root}"


def test_torchvision(tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    source = open_source(write_fashion_mnist(tmp_path))
    assert [len(source.split(split)) for split in ("train", "val", "test")] == [20, 10, 10]
    assert source.classes == tuple(sorted(FashionMNIST.classes))
    theirs = FashionMNIST(tmp_path, train=False)
    for record in source.split("test"):
        index = int(record.id.removeprefix("test/"))
        assert source.classes[record.label] == FashionMNIST.classes[theirs[index][1]]
        assert source.read(record).tobytes() == theirs[index][0].tobytes()


def test_torchvision_locations_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must read torchvision:NAME:ROOT"):
        open_source("torchvision:MNIST")
    with pytest.raises(DataError, match="'ImageNot' is not known; known: MNIST"):
        open_source("torchvision:ImageNot:data")
    with pytest.raises(DataError, match=r"CIFAR10 is not under .*download=True"):
        open_source(f"torchvision:CIFAR10:{tmp_path}")


def test_a_gzipped_part_is_no_data_set(tmp_path: Path) -> None:
    location = write_fashion_mnist(tmp_path)
    images = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    images.with_suffix(".gz").write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    with pytest.raises(DataError, match="FashionMNIST is not under"):
        open_source(location)


def test_reading_names_the_file(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path, {"a": 3, "b": 3}))
    record = source.records[0]
    (tmp_path / record.id).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a/0.png: the content is not an image"):
        source.read(record)
    Image.new("RGB", (100, 100)).save(tmp_path / record.id)
    with pytest.raises(DataError, match="100×100 pixels; at most 9,999"):
        source.read(record, max_pixels=9999)


def test_with_fewer_keeps_the_share_of_each_class(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path, {"a": 40, "b": 20, "c": 4}), val_fraction=0.25)
    fewer = source.with_fewer("train", 16)
    assert Counter(record.label for record in fewer.split("train")) == {0: 10, 1: 5, 2: 1}
    assert fewer.split("val") == source.split("val")
    assert {r.id for r in source.with_fewer("train", 8).split("train")} < {r.id for r in fewer.split("train")}
    assert source.with_fewer("train", 16, seed=1).records != fewer.records
    assert source.with_fewer("train", 48) is source
    with pytest.raises(DataError, match="2 images cannot show 3 classes"):
        source.with_fewer("train", 2)
